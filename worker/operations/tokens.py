"""Bearer tokens of the HTTP API: shown once when created, stored as a hash in `{reg}:tokens`.

A token is `rwt_<id>_<secret>`. The id finds its entry and is no secret; the secret has 256 random
bits, so that a plain SHA-256 of it is as safe as a slow hash.
"""

import hashlib
import re
import secrets
from dataclasses import dataclass
from hmac import compare_digest
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from regworker.domain.actor import Actor
from regworker.domain.errors import RegistrationWorkerError
from regworker.domain.job import NAME
from regworker.ledger import SyncLedger
from regworker.ledger.admin import TOKENS, token
from regworker.ledger.records import text
from regworker.settings import Role

TokenScope = Literal["enqueue", "read", "read:all", "support", "operate"]

#: The default limit of requests per second: more than any form needs, and few enough for a process
#: that handles some thousands.
RATE = 200.0

#: The highest limit: no process handles so many.
MOST_RATE = 1_000_000.0

#: Milliseconds since 1970: the end of the year 9999.
_LATEST = 253_402_300_799_999

_FORM = re.compile(r"rwt_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")

_ACCOUNT = re.compile(r"[a-z0-9]+(?:[_-][a-z0-9]+)*/[a-z0-9]+(?:[_-][a-z0-9]+)*")


class TokenError(RegistrationWorkerError):
    """Raised when a token cannot be created as requested, or when its id is unknown."""


def _account(value: str) -> str:
    if not _ACCOUNT.fullmatch(value):
        raise ValueError("is not of the form provider/account")
    return value


class Token(BaseModel):
    """A stored token: its rights, and the hash of its secret."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    id: str
    name: Annotated[str, Field(pattern=NAME, max_length=64)]
    """The owner of its jobs: tokens with one name see the same jobs, so that one can replace
    another."""
    may: tuple[TokenScope, ...]
    accounts: tuple[Annotated[str, AfterValidator(_account)], ...] = ()
    """`provider/account` each; empty: all."""
    rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = RATE
    hash: Annotated[str, Field(repr=False, pattern=r"^[0-9a-f]{64}$")]
    created_at: Annotated[int, Field(ge=0, le=_LATEST)]
    revoked_at: Annotated[int, Field(ge=0, le=_LATEST)] = 0
    """Milliseconds, by the ledger's clock; 0: it is valid."""

    @classmethod
    def read(cls, id_: str, kept: Any) -> "Token | None":
        """The stored token of an id; None if what is stored is no token, which then gives no
        rights."""
        try:
            found = cls.model_validate_json(kept)
        except ValidationError:
            return None
        return found if found.id == id_ else None

    def is_of(self, secret: str) -> bool:
        """Whether a secret is this token's; compared in constant time."""
        return compare_digest(self.hash, _hashed(secret)) and not self.revoked_at


#: The role on the pages that a scope gives, the highest first.
_ROLES: tuple[tuple[TokenScope, Role], ...] = (
    ("operate", "operator"),
    ("support", "support"),
    ("read:all", "viewer"),
)


def role_of(token: Token) -> Role | None:
    """The role of a token's holder on the pages; None: no access.

    The pages show all jobs: a token for own jobs only, or for some accounts, gives no access.
    """
    if token.accounts:
        return None
    return next((role for scope, role in _ROLES if scope in token.may), None)


@dataclass(frozen=True, slots=True)
class Presented:
    """A token as it was sent. It is well formed; it was not looked up yet."""

    id: str
    secret: str

    @classmethod
    def read(cls, text: str) -> "Presented | None":
        """Parse a token; None if it does not have the form of our tokens."""
        found = _FORM.fullmatch(text)
        return cls(found[1], found[2]) if found else None


class TokenStore:
    """Creates, lists and revokes tokens, for the command line."""

    def __init__(self, ledger: SyncLedger) -> None:
        self._ledger = ledger
        self.unreadable: list[str] = []
        """The ids of what `all` could not read."""

    def new(
        self,
        name: str,
        may: tuple[str, ...],
        accounts: tuple[str, ...] = (),
        rate: float = RATE,
        *,
        actor: Actor | None = None,
    ) -> tuple[str, Token]:
        """Create a token; return its text, which nobody can read later, and what is stored of it.

        `actor`: the person who creates it; None for a program.
        """
        if not 0 < rate <= MOST_RATE:
            what = f"rate: must be more than 0 and at most {MOST_RATE:,.0f} requests a second"
            raise TokenError(f"no token was created: {what}")
        secret = secrets.token_urlsafe(32)
        given: dict[str, Any] = {
            "id": secrets.token_hex(6),
            "name": name,
            "may": may,
            "accounts": accounts,
            "rate": rate,
            "hash": _hashed(secret),
            "created_at": self._now(),
        }
        try:
            made = Token.model_validate(given)
        except ValidationError as error:
            what = "; ".join(f"{one['loc'][0]}: {one['msg']}" for one in error.errors())
            raise TokenError(f"no token was created: {what}") from None
        after = f"{made.name}: {','.join(made.may)}"
        self._ledger(token(made.id, made.model_dump_json(), "", actor, "token.new", ("", after)))
        return f"rwt_{made.id}_{secret}", made

    def all(self) -> list[Token]:
        """All tokens including revoked ones; the oldest first. `unreadable` names the others."""
        found = self._ask(lambda redis: redis.hgetall(TOKENS))
        kept = {text(id_): value for id_, value in found.items()}
        read = {id_: Token.read(id_, value) for id_, value in kept.items()}
        self.unreadable = sorted(id_ for id_, one in read.items() if one is None)
        tokens = [one for one in read.values() if one is not None]
        return sorted(tokens, key=lambda one: (one.created_at, one.id))

    def revoke(self, id_: str, actor: Actor | None = None) -> Token:
        """Revoke a token; it takes effect within seconds. May be repeated.

        An entry that cannot be read is replaced by a revoked token without a name and rights.
        """
        found = self._ask(lambda redis: redis.hget(TOKENS, id_))
        if found is None:
            raise TokenError(f"there is no token {id_}: see regworker tokens list")
        known = Token.read(id_, found) or _unknown(id_)
        if known.revoked_at:
            return known
        gone = known.model_copy(update={"revoked_at": self._now()})
        change = (f"{known.name}: {','.join(known.may)}", "revoked")
        command = token(id_, gone.model_dump_json(), found, actor, "token.revoke", change)
        if not self._ledger(command):
            # Another process has just revoked it.
            return self.revoke(id_, actor)
        return gone

    def _now(self) -> int:
        seconds, micros = self._ask(lambda redis: redis.time())
        return int(seconds) * 1000 + int(micros) // 1000

    def _ask(self, question: Any) -> Any:
        return self._ledger.patiently(lambda: question(self._ledger.redis), 10.0)


def _unknown(id_: str) -> Token:
    """A token that nobody has, in place of one that cannot be read."""
    nobody = _hashed(secrets.token_urlsafe(32))
    return Token(id=id_, name="unreadable", may=(), hash=nobody, created_at=0)


def _hashed(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()

"""Bearer tokens of the HTTP API: shown once when created, stored as a hash in `{reg}:tokens`.

A token is `rwt_<id>_<secret>`. The id finds its entry and is no secret; the secret has 256 random
bits, so that a plain SHA-256 of it is as safe as a slow hash.
"""

import hashlib
import re
import secrets
from dataclasses import dataclass
from hmac import compare_digest
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from regworker.domain.actor import Actor
from regworker.domain.errors import RegistrationWorkerError
from regworker.domain.job import NAME
from regworker.ledger import SyncLedger
from regworker.ledger.admin import TOKENS, token
from regworker.ledger.records import text
from regworker.settings import Role

TokenScope = Literal["enqueue", "read", "read:all", "support", "operate"]
SCOPES: tuple[TokenScope, ...] = get_args(TokenScope)

#: The default limit of requests per second: more than any form needs, and few enough for a process
#: that handles some thousands.
RATE = 200.0

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
    rate: Annotated[float, Field(gt=0)] = RATE
    hash: Annotated[str, Field(repr=False)]
    created_at: int
    revoked_at: int = 0
    """Milliseconds, by the ledger's clock; 0: it is valid."""

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
        """All tokens including revoked ones; the oldest first."""
        found = self._ask(lambda redis: redis.hvals(TOKENS))
        tokens = [Token.model_validate_json(one) for one in found]
        return sorted(tokens, key=lambda one: (one.created_at, one.id))

    def revoke(self, id_: str, actor: Actor | None = None) -> Token:
        """Revoke a token; it takes effect within seconds. May be repeated."""
        found = self._ask(lambda redis: redis.hget(TOKENS, id_))
        if found is None:
            raise TokenError(f"there is no token {id_}: see regworker tokens list")
        known = Token.model_validate_json(found)
        if known.revoked_at:
            return known
        gone = known.model_copy(update={"revoked_at": self._now()})
        change = (f"{known.name}: {','.join(known.may)}", "revoked")
        command = token(id_, gone.model_dump_json(), text(found), actor, "token.revoke", change)
        if not self._ledger(command):
            # Another process has just revoked it.
            return self.revoke(id_, actor)
        return gone

    def _now(self) -> int:
        seconds, micros = self._ask(lambda redis: redis.time())
        return int(seconds) * 1000 + int(micros) // 1000

    def _ask(self, question: Any) -> Any:
        return self._ledger.patiently(lambda: question(self._ledger.redis), 10.0)


def _hashed(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()

"""The visitors of the pages and their rights: by a password, a token, or a trusted proxy's headers.

A session is a signed cookie. Its key is derived from the sealing key and the password, so that all
processes share it, and a new password ends every session. A service without sealing keys uses a
random key that is stored in the ledger: anybody who can read it there can change the ledger itself.
"""

import asyncio
import hmac
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, get_args

from fastapi import Request
from itsdangerous import BadSignature, URLSafeTimedSerializer

from regworker.domain.actor import MOST_NAME, Actor
from regworker.ledger import SyncLedger
from regworker.ledger.records import text
from regworker.ledger.transitions import PREFIX
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from worker.gateway.auth import Principal, Role
from worker.gateway.client_address import Proxies, peer
from worker.gateway.problems import HttpProblem, NotTaken
from worker.operations.tokens import Presented, Token, role_of

#: From the least to the most.
ROLES: tuple[Role, ...] = get_args(Role)

COOKIE = "regworker_session"

#: Where a service without sealing keys stores the secret that signs sessions.
KEPT_SECRET = f"{PREFIX}pages"

#: Seconds for which a request waits for that secret.
PATIENCE = 3.0

#: Seconds for which a form may stay open.
FORM_LIFE = 12 * 3600

#: Wrong passwords that one address may send in `WINDOW` seconds.
MOST_FAILURES, WINDOW = 10, 300.0

#: The most addresses whose wrong passwords are counted.
MOST_ADDRESSES = 10_000


@dataclass(frozen=True, slots=True)
class Visitor:
    """A person and their session."""

    principal: Principal
    session: str
    """Forms are bound to it: another session's form is refused."""
    by_proxy: bool = False
    token: str = ""
    """The id of the token with which they signed in; the session has its role while it is valid."""

    @property
    def role(self) -> Role:
        """The person's role."""
        return self.principal.role or "viewer"

    def may(self, role: Role) -> bool:
        """Whether the person may do what a role may do."""
        return ROLES.index(self.role) >= ROLES.index(role)

    def actor(self, why: str = "") -> Actor:
        """The person's name in the audit log."""
        return Actor(self.principal.name, self.role, "page", why)


class Sessions:
    """Identifies the sender of a request, signs people in, and checks that a form is theirs."""

    def __init__(self, settings: Settings, ledger: SyncLedger) -> None:
        self._settings, self._ledger = settings, ledger
        self._password = settings.serve_password
        self._role: Role = settings.serve_role
        self._proxies = Proxies(settings.serve_trusted_proxy)
        self._headers = settings.serve_user_header, settings.serve_groups_header
        self._groups: dict[str, set[str]] = {}
        for one in settings.serve_groups:
            role, _, group = one.partition("=")
            self._groups.setdefault(role, set()).add(group)
        self._life = settings.serve_session
        self._failures = Failures()

    def use(self, settings: Settings) -> None:
        """From now on, use the keys of other settings. A session ends with its key."""
        self._settings = settings
        for name in ("_secrets", "_sessions", "_forms"):
            self.__dict__.pop(name, None)

    async def prepare(self) -> None:
        """Read the secret that signs sessions, once. Raises `LedgerUnavailable`."""
        if "_secrets" not in self.__dict__:
            # In a thread, so that the loop does not wait for the ledger.
            await asyncio.to_thread(getattr, self, "_secrets")

    @cached_property
    def _secrets(self) -> list[str]:
        if self._settings.sealing_keys.get_secret_value():
            return _keys(self._settings)
        return [_kept_secret(self._ledger) + _password(self._settings)]

    @cached_property
    def _sessions(self) -> URLSafeTimedSerializer:
        return URLSafeTimedSerializer(self._secrets, salt="session")

    @cached_property
    def _forms(self) -> URLSafeTimedSerializer:
        return URLSafeTimedSerializer(self._secrets, salt="form")

    @property
    def by_password(self) -> bool:
        """Whether people can sign in here."""
        return self._password is not None

    @property
    def life(self) -> float:
        """Seconds for which a session is valid."""
        return self._life

    def visitor(self, request: Request) -> Visitor | None:
        """The sender of a request; None: not signed in. Raises `NotTaken`."""
        if self._proxies:
            found = self._by_proxy(request)
            if found is not None:
                return found
        return self._by_cookie(request)

    def sign_in(self, request: Request, name: str, password: str) -> str:
        """A session's cookie. Raises `NotTaken` for a wrong password, and after too many of
        them."""
        address = self._patient(request)
        known = self._password.get_secret_value() if self._password else secrets.token_hex()
        if not hmac.compare_digest(password.encode(), known.encode()) or self._password is None:
            self._failures.note(address)
            raise NotTaken(HttpProblem(403, "wrong-password", "the password is wrong"))
        return str(self._sessions.dumps([name.strip()[:MOST_NAME], secrets.token_hex(8)]))

    def sign_in_by_token(self, request: Request, given: str, known: Token | None) -> str:
        """The same with a token; `known`: the stored token with its id."""
        address = self._patient(request)
        presented = Presented.read(given)
        if presented is None or known is None or not known.is_of(presented.secret):
            self._failures.note(address)
            raise NotTaken(HttpProblem(403, "wrong-token", "the token is not valid"))
        if role_of(known) is None:
            what = "the pages need a token for all accounts with read:all, support or operate"
            raise NotTaken(HttpProblem(403, "no-role", what))
        return str(self._sessions.dumps([known.name, secrets.token_hex(8), known.id]))

    @staticmethod
    def with_token(visitor: Visitor, token: Token | None) -> Visitor | None:
        """The person who signed in with a token, with its present rights; None if it is no longer
        valid."""
        role = role_of(token) if token and not token.revoked_at else None
        return role and replace(visitor, principal=replace(visitor.principal, role=role))

    def form_token(self, visitor: Visitor) -> str:
        """The value that each form of a page must send back."""
        return str(self._forms.dumps([visitor.principal.name, visitor.session]))

    def check_form(self, request: Request, visitor: Visitor, token: str) -> None:
        """Raise `NotTaken` for a form that does not come from this visitor's pages."""
        # Browsers report where a form was sent from: refuse forms of other sites.
        if request.headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
            raise NotTaken(HttpProblem(403, "another-site", "the form was sent from another site"))
        try:
            found = self._forms.loads(token, max_age=FORM_LIFE)
        except BadSignature:
            found = None
        if found != [visitor.principal.name, visitor.session]:
            what = (
                "the form belongs to another session or is too old; nothing was done: open it again"
            )
            raise NotTaken(HttpProblem(403, "wrong-form", what))

    def said(self, text: str) -> str:
        """A message for the next page, signed."""
        return str(self._forms.dumps(text[:500], salt="said"))

    def read_said(self, cookie: str) -> str:
        """The message; '' if it is not authentic or was for an earlier page."""
        try:
            return str(self._forms.loads(cookie, max_age=60, salt="said"))
        except BadSignature:
            return ""

    def _by_proxy(self, request: Request) -> Visitor | None:
        user, groups = (request.headers.getlist(name) for name in self._headers)
        if not user and not groups:
            return None
        trusted = self._proxies.has(peer(request.scope))
        if not trusted or len(user) != 1 or len(groups) > 1 or not user[0].strip():
            what = "only the trusted proxy may name a user in headers, and only once each"
            raise NotTaken(HttpProblem(403, "untrusted-proxy", what))
        name = user[0].strip()[:MOST_NAME]
        theirs = {one.strip() for one in "".join(groups).split(",")}
        roles = [role for role in ROLES if theirs & self._groups.get(role, set())]
        if not roles:
            what = "none of your groups has a role here; ask an operator for a role"
            raise NotTaken(HttpProblem(403, "no-role", what))
        principal = Principal(name, "person", peer(request.scope), role=roles[-1])
        return Visitor(principal, f"proxy:{name}", by_proxy=True)

    def _by_cookie(self, request: Request) -> Visitor | None:
        cookie = request.cookies.get(COOKIE)
        if not cookie:
            return None
        try:
            name, session, *tokens = self._sessions.loads(cookie, max_age=int(self._life))
        except (BadSignature, ValueError, TypeError):
            return None
        token = str(tokens[0]) if tokens else ""
        if not token and self._password is None:
            return None
        # A token's rights are looked up for each request.
        role: Role = "viewer" if token else self._role
        principal = Principal(str(name), "person", peer(request.scope), role=role)
        return Visitor(principal, str(session), token=token)

    def _patient(self, request: Request) -> str:
        """The sender's address; `NotTaken` if too many wrong passwords came from it."""
        address = self._proxies.sender(request.scope)
        if wait := self._failures.wait(address):
            what = "too many wrong passwords or tokens from this address; wait some minutes"
            headers = {"retry-after": f"{wait:.0f}"}
            raise NotTaken(HttpProblem(429, "too-many", what, headers=headers))
        return address


class Failures:
    """Counts wrong passwords per address, with limited memory."""

    def __init__(self) -> None:
        self._seen: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def wait(self, address: str, now: float | None = None) -> float:
        """Seconds until the address may try again; 0: at once."""
        began, count = self._seen.get(address, (0.0, 0))
        left = began + WINDOW - (time.monotonic() if now is None else now)
        return max(1.0, left) if count >= MOST_FAILURES and left > 0 else 0.0

    def note(self, address: str, now: float | None = None) -> None:
        """Count one failure."""
        now = time.monotonic() if now is None else now
        began, count = self._seen.pop(address, (now, 0))
        if began + WINDOW <= now:
            began, count = now, 0
        self._seen[address] = began, count + 1
        while len(self._seen) > MOST_ADDRESSES:
            self._seen.popitem(last=False)


def _keys(settings: Settings) -> list[str]:
    keyring = Keyring.of(settings)
    # The library signs with the last key; a keyring seals with its first.
    return list(reversed(keyring.fingerprints(b"pages\0" + _password(settings).encode())))


def _password(settings: Settings) -> str:
    return settings.serve_password.get_secret_value() if settings.serve_password else ""


def _kept_secret(ledger: SyncLedger) -> str:
    """The key for all sessions, created once and stored in the ledger."""

    def kept(redis: Any) -> Any:
        redis.set(KEPT_SECRET, secrets.token_hex(32), nx=True)
        return redis.get(KEPT_SECRET)

    return text(ledger.patiently(lambda: ledger.ask(kept), PATIENCE))

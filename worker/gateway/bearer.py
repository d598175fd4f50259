"""Checks bearer tokens: who sends a request, with which rights, and how often."""

import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from redis.exceptions import RedisError

from regworker.domain.errors import LedgerUnavailable
from regworker.ledger import AsyncLedger
from regworker.ledger.admin import TOKENS
from worker.gateway.auth import Principal, Scope
from worker.gateway.client_address import Proxies, peer
from worker.gateway.metrics import refusals
from worker.gateway.problems import HttpProblem, NotTaken
from worker.operations.tokens import Presented, Token

#: Seconds for which a token is cached: a revoked one may work for so long.
BELIEVED = 2.0

#: The most tokens that are cached.
REMEMBERED = 10_000

#: Failed attempts of one address: so many at once, and one more every so many seconds.
FAILURES, FORGIVEN = 20.0, 3.0

#: The most addresses whose failures are counted.
ADDRESSES = 10_000

#: The most requests of one token that are long at the same time, for each request a second that it
#: may send; and at all. Long are those that wait for news, or for their client.
WAITING, MOST_WAITING = 5, 1000

#: The most of all tokens: fewer than a process' connections, so that others still get in.
ALL_WAITING = 1500

#: The most seconds that an answer asks to wait.
LONGEST = 86400.0

#: Seconds for reading a token from the ledger.
PATIENCE = 3.0


@dataclass(slots=True)
class Bucket:
    """A token bucket: `rate` a second, and at most `most` saved up."""

    rate: float
    most: float
    left: float
    at: float

    def take(self, now: float) -> float:
        """Take one: 0.0, or the seconds until one is available, at most a day."""
        self.left = min(self.most, self.left + (now - self.at) * self.rate)
        self.at = now
        if self.left < 1:
            return min(LONGEST, (1 - self.left) / self.rate)
        self.left -= 1
        return 0.0


@dataclass(slots=True)
class _Seen:
    token: Token
    until: float
    pace: Bucket
    principal: Principal
    """A cached token, as of its last request."""


def demand(principal: Principal, scope: Scope) -> None:
    """Raise `NotTaken` (403) if the sender lacks a scope."""
    if not principal.may(scope):
        raise NotTaken(HttpProblem(403, "forbidden", f"this token lacks the scope {scope}"))


class Gate:
    """Authenticates requests. One per process: limits apply to each process separately."""

    def __init__(
        self, ledger: AsyncLedger, proxies: Proxies, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ledger = ledger
        self._proxies = proxies
        self._clock = clock
        self._known: dict[str, _Seen] = {}
        self._failures: dict[str, Bucket] = {}
        self._waiting: Counter[str] = Counter()
        self.refused = refusals()

    async def admit(self, asked: Mapping[str, Any], scope: Scope | None = None) -> Principal:
        """The sender of a request; raises `NotTaken` (401, 403, 429) if it is refused.

        `asked`: the request's ASGI scope, whose state keeps the principal.
        """
        origin = peer(asked)
        presented = self._presented(asked)
        known = await self._look(presented) if presented else None
        if known is None:
            raise NotTaken(self._failed(self._proxies.sender(asked)))
        token = known.token
        principal = known.principal
        if principal.origin != origin:
            principal = known.principal = replace(principal, origin=origin)
        asked["state"]["principal"] = principal
        if wait := known.pace.take(self._clock()):
            self.refused.add("rate")
            what = f"this token may send {token.rate:g} requests a second; repeat it later"
            later = {"retry-after": str(max(1, round(wait + 0.5)))}
            raise NotTaken(HttpProblem(429, "too-many", what, headers=later))
        if scope is not None:
            demand(principal, scope)
        return principal

    @staticmethod
    def _presented(asked: Mapping[str, Any]) -> Presented | None:
        given = [value for name, value in asked["headers"] if name == b"authorization"]
        if len(given) != 1 or given[0][:7].lower() != b"bearer ":
            return None
        return Presented.read(given[0][7:].decode("latin-1").strip())

    async def recheck(self, principal: Principal) -> None:
        """Raise `NotTaken` (401) if the token was revoked after its request was admitted."""
        token = await self.token(principal.token)
        if token is None or token.revoked_at:
            self.refused.add("token")
            raise NotTaken(_unauthorized())

    @asynccontextmanager
    async def waits(self, principal: Principal) -> AsyncIterator[None]:
        """Around a request that waits for news, or for its client; raises `NotTaken` (429) if too
        many of this token do, or of all tokens."""
        token = await self.token(principal.token)
        most = int(max(1, min(MOST_WAITING, WAITING * token.rate))) if token else 0
        why, whose = "", ""
        if self._waiting[principal.token] >= most:
            why, whose = "waiting", f"{most} requests of this token"
        elif self._waiting.total() >= ALL_WAITING:
            why, whose = "all_waiting", f"{ALL_WAITING} requests of all tokens"
        if why:
            self.refused.add(why)
            what = f"{whose} wait for news, or for the rest of a body; repeat it later"
            raise NotTaken(HttpProblem(429, "too-many", what, headers={"retry-after": "1"}))
        self._waiting[principal.token] += 1
        try:
            yield
        finally:
            self._waiting[principal.token] -= 1
            if not self._waiting[principal.token]:
                del self._waiting[principal.token]

    async def token(self, id_: str) -> Token | None:
        """The token of an id, at most some seconds old, valid or revoked."""
        known = await self._seen(id_)
        return known.token if known else None

    async def _look(self, presented: Presented) -> _Seen | None:
        known = await self._seen(presented.id)
        return known if known and known.token.is_of(presented.secret) else None

    async def _seen(self, id_: str) -> _Seen | None:
        now = self._clock()
        known = self._known.get(id_)
        if known is None or known.until < now:
            try:
                found = await self._ledger.patiently(
                    lambda: self._ledger.ask(lambda redis: redis.hget(TOKENS, id_)),
                    PATIENCE,
                )
            except RedisError as error:
                raise LedgerUnavailable("tokens cannot be looked up") from error
            token = None if found is None else Token.read(id_, found)
            if token is None:
                self._known.pop(id_, None)
                return None
            burst = max(1.0, token.rate)
            pace = known.pace if known else Bucket(token.rate, burst, burst, now)
            principal = Principal(
                name=token.name,
                kind="token",
                origin="",
                scopes=frozenset(token.may),
                accounts=frozenset(token.accounts) or None,
                token=token.id,
            )
            known = _Seen(token, now + BELIEVED, pace, principal)
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[id_] = known
        return known

    def _failed(self, sender: str) -> HttpProblem:
        now = self._clock()
        if len(self._failures) >= ADDRESSES and sender not in self._failures:
            self._failures.clear()
        bucket = self._failures.setdefault(sender, Bucket(1 / FORGIVEN, FAILURES, FAILURES, now))
        if wait := bucket.take(now):
            self.refused.add("attempts")
            later = {"retry-after": str(max(1, round(wait + 0.5)))}
            what = "too many requests from this address had no valid token"
            return HttpProblem(429, "too-many-attempts", what, headers=later)
        self.refused.add("token")
        return _unauthorized()


def _unauthorized() -> HttpProblem:
    challenge = {"www-authenticate": 'Bearer realm="registration-worker"'}
    what = "a valid bearer token is required: Authorization: Bearer rwt_..."
    return HttpProblem(401, "unauthorized", what, headers=challenge)

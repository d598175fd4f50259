"""Tokens by OAuth 2.0 client credentials (RFC 6749, section 4.4), cached while they are valid.

The attempt's own `send` fetches a token: within its time limit and under its lease. The
registration has not been sent by then, so a missing token is a retry without effect.
"""

import asyncio
import base64
from dataclasses import dataclass, field
from typing import Any

from regworker.domain.outcome import Outcome, Refused, Retryable
from regworker.domain.retry import parse_retry_after
from worker.providers.base import Answer, NotSent, Request, Send, read_json

#: Seconds before its expiry from which a token is not used any more.
EARLY = 30.0

#: Seconds for which a token without an expiry is used.
UNNAMED = 300.0


@dataclass(frozen=True, slots=True)
class ClientCredentials:
    """A client's credentials, and the token endpoint. Accounts with the same ones share a token."""

    token_url: str
    client_id: str
    client_secret: str = field(repr=False)
    scope: str = ""


@dataclass(slots=True)
class _Kept:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    token: str = field(default="", repr=False)
    until: float = 0.0
    failures: int = 0
    failure: Outcome | None = None
    """Of the last fetch that failed."""


_kept: dict[ClientCredentials, _Kept] = {}


async def bearer(credentials: ClientCredentials, send: Send) -> dict[str, str] | Outcome:
    """The header with a token, or the attempt's outcome if there is none."""
    kept = _kept.setdefault(credentials, _Kept())
    failures = kept.failures
    async with kept.lock:  # one fetch for all that wait
        now = asyncio.get_running_loop().time()
        if now >= kept.until:
            if kept.failure is not None and kept.failures > failures:
                # Otherwise each one that waits would wait for its own failure, after all others'.
                return kept.failure
            found = await _fetch(credentials, send)
            if not isinstance(found, tuple):
                if not isinstance(found, Retryable) or found.spends:
                    # Not that worker's own reason, such as a lost lease.
                    kept.failures, kept.failure = kept.failures + 1, found
                return found
            kept.token, lasts = found
            kept.until = now + max(lasts - EARLY, 1.0)
        return {"authorization": f"Bearer {kept.token}"}


def forget(credentials: ClientCredentials) -> None:
    """Fetch a new token next time: the provider refused this one (401)."""
    _kept.pop(credentials, None)


def basic(user: str, password: str) -> dict[str, str]:
    """The header of HTTP's basic authentication (RFC 7617)."""
    pair = base64.b64encode(f"{user}:{password}".encode()).decode()
    return {"authorization": f"Basic {pair}"}


async def _fetch(credentials: ClientCredentials, send: Send) -> tuple[str, float] | Outcome:
    fields = {"grant_type": "client_credentials"}
    if credentials.scope:
        fields["scope"] = credentials.scope
    headers = basic(credentials.client_id, credentials.client_secret)
    answer = await send(Request.form(credentials.token_url, fields, headers))
    if not isinstance(answer, Answer):
        # The registration was not sent, even if this request was.
        ours = isinstance(answer, NotSent) and answer.ours
        return Retryable(f"no token: {answer.reason}", spends=not ours)
    if answer.status in {400, 401, 403}:
        return Refused(f"no token (HTTP {answer.status}): check the client's id and secret")
    return _token(answer)


def _token(answer: Answer) -> tuple[str, float] | Outcome:
    if answer.status == 200:
        match read_json(answer):
            case {"access_token": str(token), **rest} if token.isascii() and token.isprintable():
                return token, _seconds(rest.get("expires_in"))
            case _:
                return Retryable("no token: the answer differs from the documentation")
    wait = parse_retry_after(answer.headers.get("retry-after"))
    return Retryable(f"no token: HTTP {answer.status}", retry_after=wait)


def _seconds(given: Any) -> float:
    known = isinstance(given, int | float) and not isinstance(given, bool) and 0 < given < 1e9
    return float(given) if known else UNNAMED

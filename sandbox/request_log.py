"""The ledger of every request that the providers saw: who, what, which fault, what came of it."""

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(slots=True)
class SeenRequest:
    """One request, without passwords and keys. Noted on arrival, completed when answered."""

    seq: int
    #: Seconds since the epoch, at arrival.
    time: float
    provider: str
    #: `customer-registration`, `storefront.sign-up`, ...; the path's end for an unknown call.
    call: str
    email: str | None
    #: The fault that was applied to it.
    fault: str | None
    #: The HTTP status that was answered; None while, or when, nothing was.
    status: int | None = None
    #: Whether this request made an account (so far: a late commit comes late).
    committed: bool = False


class RequestLog:
    """Requests in the order of their arrival; safe under threads."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._lock = threading.Lock()
        self._now = now
        self._seen: list[SeenRequest] = []
        self._by_email: dict[str, list[SeenRequest]] = {}

    def arrived(
        self, provider: str, call: str, email: str | None, fault: str | None
    ) -> SeenRequest:
        """Note a request before anything is done about it."""
        with self._lock:
            seen = SeenRequest(len(self._seen) + 1, self._now(), provider, call, email, fault)
            self._seen.append(seen)
            if email is not None:
                self._by_email.setdefault(email.casefold(), []).append(seen)
            return seen

    def find(
        self, provider: str | None = None, call: str | None = None, email: str | None = None
    ) -> list[SeenRequest]:
        """List requests, oldest first; with `email` in O(1)."""
        with self._lock:
            candidates = self._seen if email is None else self._by_email.get(email.casefold(), [])
            candidates = list(candidates)
        return [
            seen
            for seen in candidates
            if provider in (None, seen.provider) and call in (None, seen.call)
        ]

    def clear(self) -> None:
        """Forget every request."""
        with self._lock:
            self._seen.clear()
            self._by_email.clear()

    def __len__(self) -> int:
        return len(self._seen)


def public(seen: SeenRequest) -> dict[str, Any]:
    """Describe a seen request as JSON."""
    return asdict(seen)

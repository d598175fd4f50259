"""The record of every request that the providers received: sender, call, fault, result."""

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(slots=True)
class SeenRequest:
    """One request, without passwords and keys. Recorded on arrival, completed when answered."""

    seq: int
    #: Seconds since the epoch, at arrival.
    time: float
    provider: str
    #: `customer-registration`, `storefront.sign-up`, ...; the path's end for an unknown call.
    call: str
    email: str | None
    #: The fault that affected it.
    fault: str | None
    #: The HTTP status of the answer; None while, or if, there is none.
    status: int | None = None
    #: Whether this request created an account (so far: a late commit comes late).
    committed: bool = False


class RequestLog:
    """Requests in the order of their arrival; thread-safe."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._lock = threading.Lock()
        self._now = now
        self._seen: list[SeenRequest] = []
        self._by_email: dict[str, list[SeenRequest]] = {}

    def arrived(
        self, provider: str, call: str, email: str | None, fault: str | None
    ) -> SeenRequest:
        """Record a request before it is processed."""
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
        """Delete every request."""
        with self._lock:
            self._seen.clear()
            self._by_email.clear()

    def __len__(self) -> int:
        return len(self._seen)


def public(seen: SeenRequest) -> dict[str, Any]:
    """A recorded request as JSON."""
    return asdict(seen)

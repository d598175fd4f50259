"""Connections that block a thread no longer than the present call may take.

redis-py has one time limit per connection, set when its pool is made; a host wants one per call.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import redis
from redis.exceptions import TimeoutError  # noqa: A004

_END: ContextVar[float] = ContextVar("end", default=float("inf"))


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Connect and read for at most so many seconds from now, in this thread."""
    token = _END.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _END.reset(token)


def bounded(pool: redis.ConnectionPool) -> None:
    """Make a pool create connections that obey `within`."""
    kind = pool.connection_class
    pool.connection_class = type(f"Bounded{kind.__name__}", (_Bounded, kind), {})


class _Bounded:
    """A mix-in for redis-py's connection classes."""

    socket_connect_timeout: float
    socket_timeout: float

    def connect(self, *args: Any, **kwargs: Any) -> Any:
        usual = self.socket_connect_timeout
        self.socket_connect_timeout = max(_SHORTEST, min(usual, left()))
        try:
            return super().connect(*args, **kwargs)  # type: ignore[misc]
        finally:
            self.socket_connect_timeout = usual

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        wait = max(_SHORTEST, left())
        if wait < self.socket_timeout and not self.can_read(timeout=wait):  # type: ignore[attr-defined]
            raise TimeoutError("no answer within the time limit of the call")
        return super().read_response(*args, **kwargs)  # type: ignore[misc]


#: Seconds. A socket would take a time limit of 0 as non-blocking.
_SHORTEST = 0.001


#: Seconds after which an expired limit is ignored. A host's exception (a signal, a time limit) may
#: have come in the very line that would have removed it.
_FORGOTTEN = 1.0


def left() -> float:
    """The remaining seconds of this thread's call."""
    found = _END.get() - time.monotonic()
    return found if found > -_FORGOTTEN else float("inf")

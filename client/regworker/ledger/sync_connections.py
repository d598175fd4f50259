"""redis-py's connections to the ledger, made safe for a host that interrupts a call.

A host may raise an exception in the middle of any line: Celery's soft time limit comes from a
signal handler. Three things must not happen then. The next command must not read the answer to the
interrupted one: a connection counts its outstanding answers, and one with outstanding answers, or
one that is half open, is closed before it is used again. A pool must not run out of connections:
one that was lost between the pool and its user is closed, and counts no longer. And hiredis must
not run Python code while it packs a command (it crashes the process if that raises), so it gets
only text and bytes.
"""

from collections.abc import Callable, Iterable
from threading import RLock
from typing import Any
from weakref import WeakSet

import redis
from redis.connection import ConnectionPool
from redis.event import EventDispatcher
from redis.exceptions import ResponseError

pack_command: Callable[[tuple[Any, ...]], bytes] | None
try:
    from hiredis import pack_command
except ImportError:  # not in every producer's installation
    pack_command = None


#: Created once: every part of every command is compared with them. Nearly all are text: looking up
#: the type takes less time than `isinstance`.
_TEXT, _NUMBERS = frozenset((str, bytes)), (int, float)


def plain(parts: Iterable[Any]) -> tuple[Any, ...]:
    """A command's parts, with numbers as text."""
    return tuple(
        [
            part if type(part) in _TEXT or not isinstance(part, _NUMBERS) else str(part)
            for part in parts
        ]
    )


def packs() -> bool:
    """Whether hiredis is installed."""
    return pack_command is not None


def packed(command: Iterable[Any]) -> bytes:
    """The bytes of a command; needs hiredis."""
    assert pack_command is not None  # noqa: S101 -- for the type checker
    return pack_command(plain(command))


class _Exact:
    """A mix-in for redis-py's connection classes, which have no types for this."""

    owed = 0
    """Requested answers that were not read completely."""
    between = False
    """Whether it is being opened or closed. If that was interrupted, it has a socket and no parser,
    or the other way round."""

    def connect(self) -> None:
        """Called whenever the pool returns the connection."""
        if self.owed or self.between:
            self.disconnect()
        self.between = True
        super().connect()  # type: ignore[misc]
        self.between = False

    def disconnect(self, *args: Any, **options: Any) -> None:
        """A closed connection has no outstanding answers. redis-py also closes it within `connect`,
        to open it again at another node."""
        was, self.between = self.between, True
        super().disconnect(*args, **options)  # type: ignore[misc]
        self.owed = 0
        self.between = was

    def send_command(self, *args: Any, **options: Any) -> None:
        """Counted before a byte is sent."""
        self.owed += 1
        super().send_command(*plain(args), **options)  # type: ignore[misc]

    def pack_commands(self, commands: Iterable[Any]) -> Any:
        """The same for commands that are sent together."""
        asked = [plain(command) for command in commands]
        self.owed += len(asked)
        return super().pack_commands(asked)  # type: ignore[misc]

    def read_response(self, *args: Any, **options: Any) -> Any:
        """An error is an answer, too."""
        try:
            answer = super().read_response(*args, **options)  # type: ignore[misc]
        except ResponseError:
            self.owed -= 1
            raise
        self.owed -= 1
        return answer


class LeakProofPool(ConnectionPool):
    """A pool that does not keep the connections it has lent: if nobody else does, they close."""

    _in_use_connections: Any
    _ended = False

    def reset(self) -> None:
        """Called when the pool is made, and in the child after a fork."""
        # Another thread may have held their locks at the fork; the child does not have that thread.
        self._lock = RLock()
        self._event_dispatcher = EventDispatcher()
        super().reset()
        self._in_use_connections = WeakSet()

    def end(self) -> None:
        """Close each connection as soon as no thread uses it: redis-py's `close` would take a
        connection's socket away from a thread that is reading from it."""
        self._ended = True
        self.disconnect(inuse_connections=False)

    def release(self, connection: Any) -> None:
        """Called when a thread is done with a connection."""
        super().release(connection)
        if self._ended:
            self.disconnect(inuse_connections=False)


def exact(client: redis.Redis) -> redis.Redis:
    """A client with such connections."""
    pool: ConnectionPool = client.connection_pool
    kind: Any = pool.connection_class
    pool.connection_class = type("Connection", (_Exact, kind), {})
    return client

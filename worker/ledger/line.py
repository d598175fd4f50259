"""One connection that all commands share: written as they come, answered in the same order.

redis-py's own clients take a connection out of a pool for each pipeline, set a timer for each
write and each answer, and wake a task to read what has come; here that costs more than the
commands, and turns of the loop besides. Connecting (TLS, passwords, the protocol's version) is
still redis-py's, and so are the errors that replies stand for.
"""

import asyncio
import builtins
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import redis.asyncio
from redis.exceptions import (
    ConnectionError,  # noqa: A004
    InvalidResponse,
    RedisError,
    TimeoutError,  # noqa: A004
)

Asked = tuple[bytes, asyncio.Future[Any]]
"""A command as it travels, and who waits for its answer."""

#: Bytes read at a time. Answers are short: this holds those to some hundred commands.
_READ = 64 * 1024

_INCOMPLETE = object()


class Line:
    """A line to the server, connected when first used and again after each fault.

    A fault of the connection is everybody's whose answer had not come: whether their commands were
    carried out is not known then.
    """

    def __init__(
        self, pool: redis.asyncio.ConnectionPool, patience: float, timed: Callable[[float], None]
    ) -> None:
        """`pool`: knows how to connect, with no timeout of its own for a socket.

        `patience`: seconds without an answer, while one is waited for, until the line is broken.
        `timed` hears how long each batch took, in seconds.
        """
        # Only a worker has it, and only a worker has a line.
        from hiredis import pack_command

        self._pack: Any = pack_command
        # By RESP 3, whatever the URL says, a server may also say what nobody has asked for.
        pool.connection_kwargs["protocol"] = 2
        self._pool = pool
        self._patience = patience
        self._timed = timed
        self._unsent: list[Asked] = []
        self._wire: _Wire | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._leaving: set[asyncio.Task[None]] = set()

    def ask(self, *command: str | bytes | float) -> asyncio.Future[Any]:
        """The answer to a command, which travels with all that is asked in this turn of the loop.

        An error reply is raised, as is redis-py's `ConnectionError` or `TimeoutError` where the
        connection fails.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        if not self._unsent:
            loop.call_soon(self._send)
        self._unsent.append((self._pack(command), answer))
        return answer

    def drop(self) -> None:
        """Close the connection; the next command makes another."""
        if self._wire is not None:
            self._wire.cut(ConnectionError("the connection was given up"))

    async def aclose(self) -> None:
        """Close the connection for good."""
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        self.drop()
        self._fail(ConnectionError("the line is closed"))
        await asyncio.gather(*self._leaving)

    def _send(self) -> None:
        if not self._unsent:
            return
        if self._wire is not None:
            unsent, self._unsent = self._unsent, []
            self._wire.send(unsent)
        elif self._connecting is None:
            self._connecting = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        connection: Any = self._pool.make_connection()  # type: ignore[no-untyped-call]
        try:
            # All of it: a server that hangs takes the connection, and then answers no greeting.
            async with asyncio.timeout(self._patience):
                await connection.connect()
            self._wire = _Wire(connection, self._patience, self._timed, self._cut)
        except asyncio.CancelledError:
            self._hang_up(connection)
            raise
        except Exception as error:  # noqa: BLE001 -- each who asked gets it
            self._hang_up(connection)
            silent = isinstance(error, builtins.TimeoutError)
            self._fail(_silence(self._patience) if silent else error)
        finally:
            self._connecting = None
        self._send()

    def _cut(self, connection: Any) -> None:
        self._wire = None
        self._hang_up(connection)

    def _hang_up(self, connection: Any) -> None:
        async def leave() -> None:
            with suppress(Exception):
                await connection.disconnect(nowait=True)

        task = asyncio.get_running_loop().create_task(leave())
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    def _fail(self, error: Exception) -> None:
        """Tell those whose commands have not been sent."""
        unsent, self._unsent = self._unsent, []
        for _, answer in unsent:
            if not answer.done():
                answer.set_exception(error)


class _Wire(asyncio.BufferedProtocol):
    """A connection that redis-py has made: what comes is handed out as soon as it is read."""

    def __init__(
        self,
        connection: Any,
        patience: float,
        timed: Callable[[float], None],
        cut: Callable[[Any], None],
    ) -> None:
        """`cut` is told, once, that the connection is of no more use."""
        from hiredis import Reader

        self._connection = connection
        self._patience = patience
        self._timed = timed
        self._told = cut
        self._is_cut = False
        self._unanswered: deque[tuple[asyncio.Future[Any], float]] = deque()
        """Who waits, and, of the last of a batch, when that was sent (0: of the others)."""
        self._heard = 0.0
        self._watch: asyncio.TimerHandle | None = None
        self._buffer = bytearray(_READ)
        self._reader: Any = Reader(
            protocolError=InvalidResponse,
            replyError=connection._parser.parse_error,
            notEnoughData=_INCOMPLETE,
        )
        self._transport = connection._writer.transport
        if connection._reader.at_eof() or self._transport.is_closing():
            # The loop has told redis-py already, and tells nobody again.
            raise ConnectionError("the server closed the connection")
        self._transport.set_protocol(self)

    def send(self, batch: Sequence[Asked]) -> None:
        """Write commands; whoever asked hears of the answers."""
        if not self._unanswered:
            self._heard = time.monotonic()
        self._unanswered.extend((answer, 0.0) for _, answer in batch[:-1])
        self._unanswered.append((batch[-1][1], time.perf_counter()))
        self._transport.write(b"".join([command for command, _ in batch]))
        if self._watch is None:
            self._watch = asyncio.get_running_loop().call_later(self._patience, self._look)

    def cut(self, error: Exception) -> None:
        """Be done with the connection; all who wait get the error."""
        if self._is_cut:
            return
        self._is_cut = True
        if self._watch is not None:
            self._watch.cancel()
        self._transport.abort()
        fault = error if isinstance(error, RedisError) else ConnectionError(type(error).__name__)
        for answer, _ in self._unanswered:
            if not answer.done():
                answer.set_exception(fault)
        self._unanswered.clear()
        self._told(self._connection)

    def get_buffer(self, sizehint: int) -> bytearray:
        """Where the loop puts what has come."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Called by the loop with what has come."""
        try:
            self._reader.feed(self._buffer, 0, nbytes)
            while (found := self._reader.gets(False)) is not _INCOMPLETE:
                self._answer(found)
        except Exception as error:  # noqa: BLE001 -- no answer, or one that nobody asked for
            self.cut(error)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop, also when it was us who closed it."""
        self.cut(exc or ConnectionError("the server closed the connection"))

    def _answer(self, found: Any) -> None:
        answer, sent = self._unanswered.popleft()
        self._heard = time.monotonic()
        if sent:
            self._timed(time.perf_counter() - sent)
        if answer.done():
            return  # whoever asked has gone
        if isinstance(found, Exception):
            answer.set_exception(found)
        else:
            answer.set_result(found)

    def _look(self) -> None:
        self._watch = None
        if not self._unanswered:
            return
        left = self._heard + self._patience - time.monotonic()
        if left > 0:
            self._watch = asyncio.get_running_loop().call_later(left, self._look)
        else:
            self.cut(_silence(self._patience))


def _silence(patience: float) -> TimeoutError:
    return TimeoutError(f"no answer for {patience:g} s")

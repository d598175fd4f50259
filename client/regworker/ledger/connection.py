"""One connection that all commands share: they are written as they come, answered in order.

redis-py's own clients take a connection from a pool for each pipeline, set a timer for each write
and each answer, and wake a task to read it; here that would cost more than the commands, and extra
turns of the loop. redis-py still connects (TLS, passwords, the protocol's version) and maps error
replies to exceptions.
"""

import asyncio
import builtins
import copy
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import redis.asyncio
from redis.exceptions import (
    ConnectionError,  # noqa: A004
    InvalidResponse,
    RedisError,
    TimeoutError,  # noqa: A004
)

from regworker.domain.errors import LedgerUnavailable
from regworker.ledger.calls import Recipient, Sent, merged
from regworker.ledger.sync_connections import packed
from regworker.ledger.transitions import Command

Asked = tuple[bytes | Command[Any], Recipient]
"""A command, and what gets its answer."""

#: Bytes read at a time. Answers are short: this holds those to some hundred commands.
_READ = 64 * 1024

#: Bytes of the longest answer that is read. Scripts check sizes before they answer, and stay far
#: below; this is a second limit.
LONGEST_ANSWER = 32 * 1024 * 1024

_INCOMPLETE = object()


def apart(error: Exception) -> Exception:
    """An error for one of several callers: an exception that two raise has the frames of both."""
    try:
        return copy.copy(error)
    except Exception:  # noqa: BLE001 -- its constructor takes other arguments; nobody may miss it
        return error


class LedgerConnection:
    """A connection to the server, connected at first use and again after each error.

    An error of the connection affects all callers whose answer had not come: it is then unknown
    whether their commands were carried out.
    """

    def __init__(
        self,
        pool: redis.asyncio.ConnectionPool,
        patience: float,
        timed: Callable[[float], None],
        greet: Callable[[Any], Awaitable[None]] | None = None,
        sift: Callable[[Any], Any] | None = None,
    ) -> None:
        """`pool`: creates connections, without a socket timeout of its own.

        `patience`: seconds without an expected answer until the connection counts as broken.
        `timed` gets the seconds of each batch. `greet` gets each new redis-py connection, before
        any command is sent on it. `sift`: makes of hiredis' reader one that limits answers.
        """
        # With RESP 3, which a URL may choose, a server may also send unrequested messages.
        pool.connection_kwargs["protocol"] = 2
        self._pool = pool
        self._patience = patience
        self._timed = timed
        self._greet = greet
        self._sift = sift
        self._unsent: list[Asked] = []
        self._wire: _Wire | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._leaving: set[asyncio.Task[None]] = set()
        self._closed = False

    def ask(self, *command: str | bytes | float) -> asyncio.Future[Any]:
        """The answer to a command, which is sent together with all others of this turn of the loop.

        Raises an error reply, and redis-py's `ConnectionError` or `TimeoutError` if the connection
        fails; `LedgerUnavailable` once the connection is closed for good.
        """
        return self.ask_packed(packed(command))

    def ask_packed(self, command: bytes | Command[Any]) -> asyncio.Future[Any]:
        """The same with a packed command; or with one that is sent in one call with others of this
        turn, whatever was asked between them."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        if self._closed:
            answer.set_exception(LedgerUnavailable("the connection was closed by its owner"))
            return answer
        if not self._unsent:
            loop.call_soon(self._send)
        self._unsent.append((command, answer))
        return answer

    def drop(self, *, idle: bool = False) -> None:
        """Close the connection; the next command opens another. Callers under way get an error
        that is temporary. `idle`: only if there are none."""
        if self._wire is not None and not (idle and self._wire.busy):
            self._wire.cut(ConnectionError("the connection was abandoned"))

    async def aclose(self) -> None:
        """Close the connection for good."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        self.drop()
        self._fail(ConnectionError("the connection is closed"))
        await asyncio.gather(*self._leaving)

    def _send(self) -> None:
        if not self._unsent:
            return
        if self._wire is not None:
            unsent, self._unsent = self._unsent, []
            if sent := merged(unsent, apart):
                self._wire.send(sent)
        elif self._connecting is None:
            self._connecting = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        connection: Any = None
        try:
            connection = self._pool.make_connection()  # type: ignore[no-untyped-call]
            # For all of it: a hanging server accepts the connection and then answers nothing.
            async with asyncio.timeout(self._patience):
                await connection.connect()
                if self._greet is not None:
                    await self._greet(connection)
            self._wire = _Wire(connection, self._patience, self._timed, self._cut, self._sift)
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
        """Report an error to callers whose commands have not been sent."""
        unsent, self._unsent = self._unsent, []
        for _, answer in unsent:
            if not answer.done():
                answer.set_exception(apart(error))


class _Wire(asyncio.BufferedProtocol):
    """A connection that redis-py has opened: answers are passed on as soon as they are read."""

    def __init__(
        self,
        connection: Any,
        patience: float,
        timed: Callable[[float], None],
        cut: Callable[[Any], None],
        sift: Callable[[Any], Any] | None,
    ) -> None:
        """`cut` is called once, when the connection can no longer be used."""
        from hiredis import Reader

        self._connection = connection
        self._patience = patience
        self._timed = timed
        self._told = cut
        self._is_cut = False
        self._unanswered: deque[tuple[Recipient, float]] = deque()
        """The waiting callers, and for the last of each batch, when it was sent (0 for the
        others)."""
        self._heard = 0.0
        self._fed = 0
        """Bytes received since the last complete answer."""
        self._watch: asyncio.TimerHandle | None = None
        self._buffer = bytearray(_READ)
        self._reader: Any = Reader(
            protocolError=InvalidResponse,
            replyError=connection._parser.parse_error,
            notEnoughData=_INCOMPLETE,
        )
        self._sifted = sift is not None
        if sift is not None:
            self._reader = sift(self._reader)
        self._transport = connection._writer.transport
        if connection._reader.at_eof() or self._transport.is_closing():
            # The loop has already notified redis-py, and will not do so again.
            raise ConnectionError("the server closed the connection")
        self._transport.set_protocol(self)

    @property
    def busy(self) -> bool:
        """Whether somebody waits for an answer."""
        return bool(self._unanswered)

    def send(self, batch: Sequence[Sent]) -> None:
        """Write commands, and wait for their answers."""
        if not self._unanswered:
            self._heard = time.monotonic()
        self._unanswered.extend((answer, 0.0) for _, answer in batch[:-1])
        self._unanswered.append((batch[-1][1], time.perf_counter()))
        self._transport.write(b"".join([command for command, _ in batch]))
        if self._watch is None:
            self._watch = asyncio.get_running_loop().call_later(self._patience, self._look)

    def cut(self, error: Exception) -> None:
        """Stop using the connection; all waiting callers get the error."""
        if self._is_cut:
            return
        self._is_cut = True
        if self._watch is not None:
            self._watch.cancel()
        self._transport.abort()
        fault = error if isinstance(error, RedisError) else ConnectionError(type(error).__name__)
        for answer, _ in self._unanswered:
            if not answer.done():
                answer.set_exception(apart(fault))
        self._unanswered.clear()
        self._told(self._connection)

    def get_buffer(self, sizehint: int) -> bytearray:
        """Where the loop puts received bytes."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Called by the loop after it has received bytes."""
        try:
            self._fed += nbytes
            self._reader.feed(self._buffer, 0, nbytes)
            while (found := self._reader.gets(False)) is not _INCOMPLETE:
                self._fed = 0
                self._answer(found)
            if self._sifted:
                # What is dropped may take longer to arrive than an answer.
                self._heard = time.monotonic()
            elif self._fed > LONGEST_ANSWER:
                self._too_long()
        except Exception as error:  # noqa: BLE001 -- no answer, or one that nobody asked for
            self.cut(error)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop, also if this side closed the connection."""
        self.cut(exc or ConnectionError("the server closed the connection"))

    def _answer(self, found: Any) -> None:
        answer, sent = self._unanswered.popleft()
        self._heard = time.monotonic()
        if sent:
            self._timed(time.perf_counter() - sent)
        if answer.done():
            return  # its caller has gone
        try:
            if isinstance(found, Exception):
                answer.set_exception(found)
            else:
                answer.set_result(found)
        except Exception as error:
            # It is not among the unanswered ones any more.
            answer.set_exception(error)
            raise

    def _too_long(self) -> None:
        # Only its own caller must not repeat it; the others may.
        answer, _ = self._unanswered.popleft()
        if not answer.done():
            answer.set_exception(InvalidResponse(f"the answer is over {LONGEST_ANSWER} bytes"))
        self.cut(ConnectionError("an answer was too long"))

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

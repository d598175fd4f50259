"""One connection that all commands share: written as they come, answered in the same order.

redis-py's own clients take a connection out of a pool for each pipeline, and set a timer for each
write and each answer; here that costs more than the commands. Connecting (TLS, passwords, the
protocol's version) is still redis-py's, and so is reading.
"""

import asyncio
import builtins
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import redis.asyncio
from redis.exceptions import ConnectionError, RedisError, ResponseError, TimeoutError  # noqa: A004


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
        self._pool = pool
        self._patience = patience
        self._timed = timed
        self._connection: Any = None
        self._unsent: list[tuple[bytes, asyncio.Future[Any]]] = []
        self._asked = asyncio.Event()
        self._unanswered: deque[tuple[asyncio.Future[Any], float]] = deque()
        """Who waits, and, of the last of a batch, when that was sent (0: of the others)."""
        self._heard = 0.0
        self._writer: asyncio.Task[None] | None = None
        self._reader: asyncio.Task[None] | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._breaking: asyncio.Task[None] | None = None

    def ask(self, *command: str | bytes | float) -> asyncio.Future[Any]:
        """The answer to a command, which travels with all that is asked in this turn of the loop.

        An error reply is raised, as is redis-py's `ConnectionError` or `TimeoutError` where the
        connection fails.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        self._unsent.append((self._pack(command), answer))
        self._asked.set()
        if self._writer is None:
            self._writer = loop.create_task(self._write())
        return answer

    async def drop(self) -> None:
        """Close the connection; the next command makes another."""
        if self._connection is not None:
            await self._break(self._connection, ConnectionError("the connection was given up"))

    async def aclose(self) -> None:
        """Close the connection for good."""
        if self._writer is not None:
            self._writer.cancel()
        await self.drop()
        self._fail(ConnectionError("the line is closed"))
        if self._watch is not None:
            self._watch.cancel()

    async def _write(self) -> None:
        while True:
            await self._asked.wait()
            try:
                connection = self._connection or await self._connect()
            except Exception as error:  # noqa: BLE001 -- each who asked gets it
                self._asked.clear()
                self._fail(error)
                continue
            self._asked.clear()
            batch, self._unsent = self._unsent, []
            self._expect([answer for _, answer in batch])
            try:
                await connection.send_packed_command(
                    [command for command, _ in batch], check_health=False
                )
            except Exception as error:  # noqa: BLE001 -- the same
                await self._break(connection, error)

    async def _connect(self) -> Any:
        connection: Any = self._pool.make_connection()  # type: ignore[no-untyped-call]
        try:
            # All of it: a server that hangs takes the connection, and then answers no greeting.
            async with asyncio.timeout(self._patience):
                await connection.connect()
        except builtins.TimeoutError:
            await self._hang_up(connection)
            raise self._silence() from None
        self._connection = connection
        self._reader = asyncio.ensure_future(self._read(connection))
        return connection

    def _expect(self, answers: list[asyncio.Future[Any]]) -> None:
        if not self._unanswered:
            self._heard = time.monotonic()
        self._unanswered.extend((answer, 0.0) for answer in answers[:-1])
        self._unanswered.append((answers[-1], time.perf_counter()))
        if self._watch is None:
            self._watch = asyncio.get_running_loop().call_later(self._patience, self._look)

    async def _read(self, connection: Any) -> None:
        try:
            while True:
                found: Any = None
                fault = None
                try:
                    found = await connection.read_response(
                        disable_decoding=True, disconnect_on_error=False
                    )
                except ResponseError as error:
                    fault = error
                self._heard = time.monotonic()
                answer, sent = self._unanswered.popleft()
                if sent:
                    self._timed(time.perf_counter() - sent)
                if answer.done():
                    continue  # whoever asked has gone
                if fault is None:
                    answer.set_result(found)
                else:
                    answer.set_exception(fault)
        except Exception as error:  # noqa: BLE001 -- also an answer that nobody asked for
            await self._break(connection, error)

    def _look(self) -> None:
        self._watch = None
        if not self._unanswered:
            return
        loop = asyncio.get_running_loop()
        left = self._heard + self._patience - time.monotonic()
        if left > 0:
            self._watch = loop.call_later(left, self._look)
            return
        self._breaking = loop.create_task(self._break(self._connection, self._silence()))

    async def _break(self, connection: Any, error: Exception) -> None:
        if connection is None or self._connection is not connection:
            return
        self._connection = None
        waiting, self._unanswered = self._unanswered, deque()
        fault = error if isinstance(error, RedisError) else ConnectionError(type(error).__name__)
        for answer, _ in waiting:
            if not answer.done():
                answer.set_exception(fault)
        if self._reader is not None and self._reader is not asyncio.current_task():
            self._reader.cancel()
        await self._hang_up(connection)

    async def _hang_up(self, connection: Any) -> None:
        with suppress(Exception):
            await connection.disconnect(nowait=True)

    def _silence(self) -> TimeoutError:
        return TimeoutError(f"no answer for {self._patience:g} s")

    def _fail(self, error: Exception) -> None:
        """Tell those whose commands have not been sent."""
        unsent, self._unsent = self._unsent, []
        for _, answer in unsent:
            if not answer.done():
                answer.set_exception(error)

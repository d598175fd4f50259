"""One connection that all commands share: written as they come, answered in the same order.

redis-py's own clients take a connection out of a pool for each pipeline, and set a timer for each
write and each answer; here that costs more than the commands. Connecting (TLS, passwords, the
protocol's version) is still redis-py's, and so is reading.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import redis.asyncio
from redis.exceptions import ConnectionError, RedisError, ResponseError, TimeoutError  # noqa: A004

try:
    from hiredis import pack_command
except ImportError:  # a producer has no use for a line
    pack_command = None  # type: ignore[assignment]


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
        self._pool = pool
        self._patience = patience
        self._timed = timed
        self._connection: Any = None
        self._connecting = asyncio.Lock()
        self._reader: asyncio.Task[None] | None = None
        self._waiting: deque[_Batch] = deque()
        self._heard = 0.0
        self._watch: asyncio.TimerHandle | None = None
        self._breaking: asyncio.Task[None] | None = None

    async def ask(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """The answers to commands that travel together; an error reply stands at its place.

        Raises redis-py's `ConnectionError` or `TimeoutError` where the connection fails.
        """
        connection = self._connection or await self._connect()
        batch = _Batch(len(commands))
        if not self._waiting:
            self._heard = time.monotonic()
        self._waiting.append(batch)
        if self._watch is None:
            self._watch = batch.future.get_loop().call_later(self._patience, self._look)
        try:
            await connection.send_packed_command(_packed(connection, commands), check_health=False)
        except RedisError as error:
            await self._break(connection, error)
        answers = await batch.future
        self._timed(time.perf_counter() - batch.sent)
        return answers

    async def drop(self) -> None:
        """Close the connection; the next command makes another."""
        if self._connection is not None:
            await self._break(self._connection, ConnectionError("the connection was given up"))

    async def aclose(self) -> None:
        """Close the connection for good."""
        await self.drop()
        if self._watch is not None:
            self._watch.cancel()

    async def _connect(self) -> Any:
        async with self._connecting:
            if self._connection is None:
                connection: Any = self._pool.make_connection()  # type: ignore[no-untyped-call]
                await connection.connect()
                self._connection = connection
                self._reader = asyncio.ensure_future(self._read(connection))
            return self._connection

    async def _read(self, connection: Any) -> None:
        try:
            while True:
                try:
                    answer = await connection.read_response(
                        disable_decoding=True, disconnect_on_error=False
                    )
                except ResponseError as error:
                    answer = error
                self._heard = time.monotonic()
                if self._waiting[0].answered(answer):
                    self._waiting.popleft()
        except RedisError as error:
            await self._break(connection, error)
        except Exception as error:  # noqa: BLE001 -- also an answer that nobody asked for
            await self._break(connection, ConnectionError(type(error).__name__))

    def _look(self) -> None:
        self._watch = None
        if not self._waiting:
            return
        loop = asyncio.get_running_loop()
        left = self._heard + self._patience - time.monotonic()
        if left > 0:
            self._watch = loop.call_later(left, self._look)
            return
        silence = TimeoutError(f"no answer for {self._patience:g} s")
        self._breaking = loop.create_task(self._break(self._connection, silence))

    async def _break(self, connection: Any, error: RedisError) -> None:
        if connection is None or self._connection is not connection:
            return
        self._connection = None
        waiting, self._waiting = self._waiting, deque()
        for batch in waiting:
            batch.failed(error)
        if self._reader is not None and self._reader is not asyncio.current_task():
            self._reader.cancel()
        with suppress(RedisError, OSError):
            await connection.disconnect(nowait=True)


class _Batch:
    """Commands that travel together, and what has come of their answers."""

    __slots__ = ("_answers", "_size", "future", "sent")

    def __init__(self, size: int) -> None:
        self._size = size
        self._answers: list[Any] = []
        self.future: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self.sent = time.perf_counter()

    def answered(self, answer: Any) -> bool:
        """One more answer; whether it was the last."""
        self._answers.append(answer)
        if len(self._answers) < self._size:
            return False
        if not self.future.done():
            self.future.set_result(self._answers)
        return True

    def failed(self, error: RedisError) -> None:
        """No answer will come."""
        if not self.future.done():
            self.future.set_exception(error)


def _packed(connection: Any, commands: Sequence[Sequence[Any]]) -> Any:
    # redis-py packs by hiredis too, but not where it speaks to asyncio.
    if pack_command is None:
        return connection.pack_commands(commands)
    return [pack_command(tuple(command)) for command in commands]

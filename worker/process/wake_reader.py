"""Takes wake-ups out of a Redis broker's lists, in the I/O loop.

Everything else that comes from the broker is rare, and stays with Celery's thread: requests,
commands, timers. A wake-up comes with each job, and the loop is where the job runs: read there, it
changes no thread, and costs one command.

A wake-up that is lost costs time and nothing else: every unfinished job has an alarm.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any

import structlog
from redis.exceptions import ResponseError

from regworker.ledger.connection import LedgerConnection
from regworker.ledger.servers import async_pool
from worker.broker.redis_replies import Sieve
from worker.broker.redis_transport import Channel
from worker.process.priorities import Turns

log = structlog.get_logger(__name__)

#: Seconds that a read waits at the server. A worker that stops waits for its last read.
BLOCK = 1.0

#: Seconds without an answer until the connection is made anew.
PATIENCE = 4.0

#: Seconds until the next try while the broker does not answer, or the worker may take nothing.
PAUSE = 0.5

#: Seconds that a worker which stops waits for the last read.
STOP = 2 * BLOCK

#: Seconds after which the loop may do other work before the next message is handed on. One takes
#: 0.2 ms, but anybody may have put something else there, which takes some milliseconds.
TURN = 0.005


class WakeReader:
    """Reads a channel's expendable queues, as many messages at a time as there are free slots.

    Everything that it takes becomes a message of the channel, even what is none.
    """

    def __init__(
        self, url: str, loop: asyncio.AbstractEventLoop, room: Callable[[], int], timeout: float
    ) -> None:
        """`url`: of the broker, as in the settings. `room`: how many messages may be taken now.

        `timeout`: seconds to connect.
        """
        self._loop = loop
        self._room = room
        self._connect = partial(
            async_pool, url, follow=False, socket_timeout=None, socket_connect_timeout=timeout
        )
        self._turn = asyncio.Lock()
        self._reading: tuple[LedgerConnection, asyncio.Task[None]] | None = None
        self._queues: tuple[str, ...] = ()
        self._turns = Turns()
        self._keys: dict[tuple[str, ...], list[str]] = {}
        """The lists to read, by the order of their queues."""
        self._stopping = False
        self._pausing: asyncio.Future[None] | None = None
        self._in_trouble = self._single = False
        self._answered = time.monotonic()

    def start(self, channel: Channel) -> None:
        """Read for a channel, and no longer for another. For Celery's thread."""
        self._wait_for(self._start(channel))

    def stop(self) -> None:
        """Wait until nothing more is handed on. For Celery's thread."""
        self._wait_for(self._stop())

    def look_soon(self) -> None:
        """There may be room now. For any thread."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self.look)

    def look(self) -> None:
        """The same, for the loop's thread."""
        if not self._in_trouble:
            self._resume()

    @property
    def hears(self) -> bool:
        """Whether the broker answers this reader."""
        return time.monotonic() - self._answered < PATIENCE

    def _wait_for(self, work: Coroutine[Any, Any, None]) -> None:
        if self._loop.is_closed():
            work.close()
            return
        with suppress(TimeoutError):  # the loop hangs, and its watch reports it
            asyncio.run_coroutine_threadsafe(work, self._loop).result(2 * STOP)

    async def _start(self, channel: Channel) -> None:
        async with self._turn:
            await self._end()
            self._stopping = self._in_trouble = self._single = False
            self._answered = time.monotonic()
            connection = LedgerConnection(self._connect(), PATIENCE, lambda _: None, sift=Sieve)
            self._reading = connection, self._loop.create_task(self._run(channel, connection))

    async def _stop(self) -> None:
        async with self._turn:
            await self._end()

    async def _end(self) -> None:
        if self._reading is None:
            return
        connection, task = self._reading
        self._stopping = True
        self._resume()
        await asyncio.wait([task], timeout=STOP)
        # After a read that the broker did not answer, it may still send a message.
        await connection.aclose()
        # It may wait for a thread. If it went on, it would do so beside the next one.
        task.cancel()
        await asyncio.wait([task], timeout=STOP)
        self._reading = None

    async def _run(self, channel: Channel, connection: LedgerConnection) -> None:
        while not self._stopping:
            room = self._room()
            if room <= 0:
                await self._pause()
                continue
            try:
                found = await self._pop(channel, connection, room)
                if self._in_trouble:
                    log.info("wake-ups are taken again")
                self._in_trouble = False
                self._answered = time.monotonic()
                if found:
                    await self._hand_on(channel, connection, *found)
            except Exception as error:  # noqa: BLE001 -- whatever it is, it must not end this reader
                if not (self._in_trouble or self._stopping):
                    log.warning("no wake-up is taken now", error=type(error).__name__)
                self._in_trouble = True
                if "WRONGTYPE" in str(error):
                    # It blocks.
                    with suppress(Exception):
                        await asyncio.to_thread(channel.set_wrong_keys_aside, channel.apart)
                else:
                    # A new connection finds the new primary.
                    connection.drop()
                await self._pause()

    async def _pop(
        self, channel: Channel, connection: LedgerConnection, most: int
    ) -> tuple[bytes, list[bytes]] | None:
        """Messages of one list, the oldest first; None if none came in time."""
        if channel.active_apart != self._queues:
            self._queues = channel.active_apart
            self._turns.update(self._queues)
            self._keys.clear()
        if not self._queues:
            await self._pause()
            return None
        order = tuple(self._turns.consume(len(self._queues)))
        if (keys := self._keys.get(order)) is None:
            keys = self._keys[order] = channel.lists(order)
        if not self._single:
            try:
                found = await connection.ask(
                    "BLMPOP", BLOCK, len(keys), *keys, "RIGHT", "COUNT", most
                )
            except ResponseError as error:
                if "blmpop" not in str(error).lower():
                    raise
                # The broker's server may be older than the ledger's, or forbid it: then it gives
                # one message at a time.
                self._single = True
            else:
                return found and (found[0], found[1])
        found = await connection.ask("BRPOP", *keys, BLOCK)
        return found and (found[0], [found[1]])

    async def _hand_on(
        self, channel: Channel, connection: LedgerConnection, key: bytes, items: list[bytes]
    ) -> None:
        """Hand messages on while there is room, the first one first; the rest goes back."""
        left = items[::-1]
        since = self._loop.time()
        queue = channel.queue_of(key)
        self._turns.rotate(queue)
        try:
            while left and self._may_hand_on(channel, queue):
                channel.take(key, left.pop())
                if left and self._loop.time() - since > TURN:
                    await asyncio.sleep(0)
                    since = self._loop.time()
        finally:
            if left:
                back = [channel.as_it_came(key, item) for item in left]
                try:
                    await connection.ask("RPUSH", key, *back)
                except Exception as error:  # noqa: BLE001 -- their alarms replace them
                    name = type(error).__name__
                    log.warning("messages not put back", count=len(left), error=name)

    def _may_hand_on(self, channel: Channel, queue: str) -> bool:
        return queue in channel.active_apart and not self._stopping and self._room() > 0

    async def _pause(self) -> None:
        if self._stopping:
            return
        self._pausing = self._loop.create_future()
        timer = self._loop.call_later(PAUSE, self._resume)
        await self._pausing
        timer.cancel()

    def _resume(self) -> None:
        if self._pausing is not None and not self._pausing.done():
            self._pausing.set_result(None)

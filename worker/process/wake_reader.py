"""Takes wake-ups out of a Redis broker's lists, in the I/O loop.

Everything else that comes from the broker is rare, and stays with Celery's thread: requests,
commands, timers. A wake-up comes with each job, and the loop is where the job runs: read there, it
changes no thread, and costs one command.

A wake-up that is lost costs time and nothing else: every unfinished job has an alarm.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import structlog
from redis.exceptions import RedisError, ResponseError

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
        pool = async_pool(url, follow=False, socket_timeout=None, socket_connect_timeout=timeout)
        self._connection = LedgerConnection(pool, PATIENCE, lambda _: None, sift=Sieve)
        self._channel: Channel | None = None
        self._turns = Turns()
        self._keys: dict[tuple[str, ...], list[str]] = {}
        """The lists to read, by the order of their queues."""
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._pausing: asyncio.Future[None] | None = None
        self._single = False
        """Whether the server knows no BLMPOP: it gives one message at a time."""
        self._away = False
        self._answered = time.monotonic()

    def start(self, channel: Channel) -> None:
        """Read for a channel; what is taken from now on goes there. For Celery's thread."""

        def begin() -> None:
            self._channel, self._stopping = channel, False
            self._keys.clear()
            self._turns.update(channel.apart)
            if self._task is None or self._task.done():
                self._task = self._loop.create_task(self._run())

        self._loop.call_soon_threadsafe(begin)

    def stop(self) -> None:
        """Wait until nothing more is handed on. For Celery's thread."""
        with suppress(TimeoutError):  # the loop hangs, and its watch reports it
            asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(2 * STOP)

    async def _stop(self) -> None:
        self._stopping = True
        self.look()
        if self._task is not None and not self._task.done():
            await asyncio.wait([self._task], timeout=STOP)
        # After a read that the broker did not answer, it may still send a message.
        self._connection.drop()

    def look(self) -> None:
        """There may be room now. For the loop's thread."""
        if self._pausing is not None and not self._pausing.done():
            self._pausing.set_result(None)

    @property
    def hears(self) -> bool:
        """Whether the broker answers this reader."""
        return time.monotonic() - self._answered < PATIENCE or self._room() <= 0

    async def _run(self) -> None:
        while not self._stopping:
            room = self._room()
            if room <= 0:
                await self._pause()
                continue
            try:
                found = await self._pop(room)
            except Exception as error:  # noqa: BLE001 -- whatever it is, it must not end this reader
                await self._in_trouble(error)
                continue
            if self._away:
                log.info("wake-ups are taken again")
            self._away = False
            self._answered = time.monotonic()
            if found:
                await self._hand_on(*found)

    async def _in_trouble(self, error: Exception) -> None:
        if not self._away:
            log.warning("no wake-up is taken now", error=type(error).__name__)
        self._away = True
        if "WRONGTYPE" in str(error) and self._channel is not None:
            # It blocks.
            with suppress(RedisError, OSError):
                await asyncio.to_thread(self._channel.set_wrong_keys_aside, self._channel.apart)
        else:
            # A new connection finds the new primary.
            self._connection.drop()
        await self._pause()

    async def _pop(self, most: int) -> tuple[bytes, Sequence[bytes]] | None:
        """Messages of one list, the oldest first; None if none came in time."""
        channel = self._channel
        assert channel is not None  # noqa: S101 -- see `start`
        order = tuple(self._turns.consume(len(channel.apart)))
        if (keys := self._keys.get(order)) is None:
            keys = self._keys[order] = channel.lists(order)
        if not self._single:
            try:
                found = await self._connection.ask(
                    "BLMPOP", BLOCK, len(keys), *keys, "RIGHT", "COUNT", most
                )
            except ResponseError as error:
                if "unknown command" not in str(error):
                    raise
                # The broker's server may be older than the ledger's.
                self._single = True
            else:
                return found and (found[0], found[1])
        found = await self._connection.ask("BRPOP", *keys, BLOCK)
        return found and (found[0], [found[1]])

    async def _hand_on(self, key: bytes, items: Sequence[bytes]) -> None:
        channel = self._channel
        assert channel is not None  # noqa: S101 -- see `start`
        # The last item is handed on first, and the server named the oldest first.
        left = list(reversed(items))
        if not self._stopping:
            try:
                self._turns.rotate(channel.take(key, left))
            except Exception as error:  # noqa: BLE001 -- it must not end this reader
                log.warning("wake-ups not handed on", error=type(error).__name__)
            return
        try:
            await self._connection.ask("RPUSH", key, *left)
        except (RedisError, OSError) as error:  # their alarms replace them
            log.warning("messages not put back", count=len(left), error=type(error).__name__)

    async def _pause(self) -> None:
        self._pausing = self._loop.create_future()
        timer = self._loop.call_later(PAUSE, self.look)
        await self._pausing
        timer.cancel()

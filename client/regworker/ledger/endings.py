"""Listens for the ends of jobs in an asyncio loop: one connection for all that wait."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import redis.asyncio

log = logging.getLogger(__name__)

Heard = Callable[[float], Awaitable[None]]
"""Returns when there may be news, at the latest after so many seconds."""

#: Seconds between tries to reconnect.
_PAUSE = 0.5


class Endings:
    """Subscribes to the channels of jobs that are waited for.

    There may be news when a channel's subscription begins, at each message, and whenever the
    connection was lost, since a message may have been lost with it.
    """

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._client = client
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._joining: set[str] = set()
        self._leaving: set[str] = set()
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def of(self, channel: str) -> AsyncIterator[Heard]:
        """Listen on a channel inside the block."""
        news = asyncio.Event()

        async def heard(seconds: float) -> None:
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, seconds)):
                    await news.wait()
            news.clear()

        self._waiting[channel].add(news)
        self._change(channel, self._joining, self._leaving)
        if self._task is None:
            self._task = asyncio.create_task(self._listen())
        try:
            yield heard
        finally:
            self._waiting[channel].discard(news)
            if not self._waiting[channel]:
                del self._waiting[channel]
                self._change(channel, self._leaving, self._joining)

    async def aclose(self) -> None:
        """Close the connection; waiting callers may check once more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        for channel in self._waiting:
            self._tell(channel)

    def _change(self, channel: str, to: set[str], other: set[str]) -> None:
        to.add(channel)
        other.discard(channel)
        self._changed.set()

    async def _listen(self) -> None:
        try:
            while self._waiting:
                try:
                    await self._follow()
                except Exception as error:  # noqa: BLE001 -- redis-py raises anything while it reconnects
                    log.debug("the ends of jobs are listened to again: %s", type(error).__name__)
                    for channel in self._waiting:
                        self._tell(channel)
                    await asyncio.sleep(_PAUSE)
        finally:
            self._task = None

    async def _follow(self) -> None:
        """Subscribe and unsubscribe as callers come and go; from this task alone, so that none is
        missed."""
        listener: Any = self._client.pubsub()
        reading: asyncio.Task[None] | None = None
        self._joining = set(self._waiting)
        try:
            while self._waiting:
                self._changed.clear()
                joining, self._joining = self._joining, set()
                leaving, self._leaving = self._leaving, set()
                if joining:
                    await listener.subscribe(*joining)
                if leaving:
                    await listener.unsubscribe(*leaving)
                reading = reading or asyncio.create_task(self._read(listener))
                changing = asyncio.create_task(self._changed.wait())
                await asyncio.wait([reading, changing], return_when=asyncio.FIRST_COMPLETED)
                changing.cancel()
                if reading.done():
                    reading.result()
        finally:
            if reading is not None:
                reading.cancel()
                await asyncio.wait([reading])
            with suppress(Exception):
                await listener.aclose()

    async def _read(self, listener: Any) -> None:
        while True:
            message = await listener.get_message(timeout=None)
            if message is None:
                # The kernel gave the connection up (ETIMEDOUT). redis-py takes that for the end of
                # a time limit, and would return at once for ever: the loop would never turn again.
                raise ConnectionError("the connection timed out")
            if message["type"] in {"subscribe", "message"}:
                self._tell(message["channel"].decode())

    def _tell(self, channel: str) -> None:
        for news in self._waiting.get(channel, ()):
            news.set()

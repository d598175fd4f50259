"""Lets jobs wake workers although the ledger's clients do not know the broker.

If the ledger's own server is the broker, the script that accepts a job, passes on a place or makes
a delivery also puts its wake-up on the broker: workers announce the lists and the envelopes.
Otherwise the wake-up goes onto a list of the ledger, and a worker passes it on to the broker: an
accepted job's onto `{reg}:wakes` or, if it is a bulk job, `{reg}:wakes:bulk`, which is read while
there is no other; a delivery's and that of a job for which a place is kept onto
`{reg}:wakes:urgent`.

A lost wake-up costs time and nothing else: every unfinished job and every delivery has an alarm.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

import redis.asyncio
import structlog
from redis.exceptions import RedisError

from regworker.domain.errors import LedgerUnavailable
from regworker.ledger import AsyncLedger
from regworker.ledger.admin import announce_wakes
from regworker.ledger.client import CONNECT_TIMEOUT, SOCKET_TIMEOUT
from regworker.ledger.records import Wake, text
from regworker.ledger.servers import async_client
from regworker.ledger.transitions import BULK_WAKES, URGENT_WAKES, WAKES
from worker.broker.wakeups import QUEUES

log = structlog.get_logger(__name__)

#: Seconds between announcements, and for which one is valid: the ledger forgets a broker that no
#: worker uses any more.
ANNOUNCED_EVERY, ANNOUNCED_FOR = 5.0, 60.0

#: Wake-ups passed on at a time: an urgent one waits for one batch at most.
BATCH = 20

#: Seconds that a read waits at the server. Shorter than a socket waits for an answer, so that a
#: hanging server is distinguished from one that has nothing.
BLOCK = SOCKET_TIMEOUT / 2

#: Seconds until the next turn while the server is away.
PAUSE = 1.0


class WakePublisher(Protocol):
    """Publishes wake-ups: `worker.broker.wakeups`."""

    def publish(self, wakes: Sequence[Wake]) -> list[Wake]:
        """Publish; those that were not published."""
        ...

    def heard(self) -> bool:
        """Whether the broker accepts messages now."""
        ...


class WakeRelay:
    """A reader of the ledger's list of wake-ups. Call `relay_once` in a loop."""

    def __init__(
        self,
        ledger: AsyncLedger,
        wake: WakePublisher,
        url: str,
        envelopes: Callable[[], Mapping[str, tuple[str, str]]],
    ) -> None:
        """`envelopes`: those for `announce_wakes`."""
        self._ledger = ledger
        self._wake = wake
        self._turn = False
        self._heard = True
        """Whether the broker accepted the last wake-ups, or a message since."""
        self._envelopes = envelopes
        # A connection of its own, since it blocks.
        self._redis: redis.asyncio.Redis = async_client(
            url,
            max_connections=1,
            socket_timeout=SOCKET_TIMEOUT,
            socket_connect_timeout=CONNECT_TIMEOUT,
        )
        self._announced_at = -ANNOUNCED_EVERY
        self._away = False

    async def relay_once(self) -> float:
        """Pass on the queued wake-ups, or wait for some; return the seconds until the next turn."""
        try:
            if (now := time.monotonic()) >= self._announced_at + ANNOUNCED_EVERY:
                await self._ledger(announce_wakes(self._envelopes(), ANNOUNCED_FOR), patience=0)
                self._announced_at = now
            # Another worker may reach the broker: it must find them.
            if not self._heard and not await asyncio.to_thread(self._wake.heard):
                return PAUSE
            self._heard = True
            # Urgent ones first, but every other turn belongs to the others if they wait.
            self._turn = not self._turn
            keys = (URGENT_WAKES, WAKES) if self._turn else (WAKES, URGENT_WAKES)
            found: Any = await self._redis.blmpop(
                BLOCK, 3, *keys, BULK_WAKES, direction="RIGHT", count=BATCH
            )
            if found:
                await self._pass_on(found[0], found[1])
        except (RedisError, LedgerUnavailable) as error:
            if "WRONGTYPE" in str(error):
                await self._set_aside()
            if not self._away:
                log.warning("no wake-up is relayed now", error=type(error).__name__)
            self._away = True
            self._announced_at = -ANNOUNCED_EVERY
            await self._redis.connection_pool.disconnect()
            return PAUSE
        if self._away:
            log.info("wake-ups are relayed again")
            self._away = False
        return 0.0 if self._heard else PAUSE

    async def _pass_on(self, key: bytes, items: list[bytes]) -> None:
        # kombu publishes synchronously; in a thread, it does not block the loop.
        left = await asyncio.to_thread(self._wake.publish, list(_read(items)))
        while left:
            if not await asyncio.to_thread(self._wake.heard):
                break
            # A connection may have died, or the broker refuses the first of them for ever: that one
            # must not keep the others from their turn. Its alarm replaces it.
            again = await asyncio.to_thread(self._wake.publish, left)
            left = left[1:] if len(again) == len(left) else again
        self._heard = not left
        if left:
            await self._redis.rpush(key, *[f"{wake.lane} {wake.member}" for wake in left[::-1]])

    async def _set_aside(self) -> None:
        """Rename keys that stand in the place of a list, and on which every read fails."""
        with suppress(RedisError):
            for key in (URGENT_WAKES, WAKES, BULK_WAKES):
                kind = text(await self._redis.type(key))
                if kind not in {"list", "none"}:
                    await self._redis.rename(key, f"{key}.set-aside")
                    log.error("a key was no list: renamed", key=key, kind=kind)

    async def aclose(self) -> None:
        """Close the connection."""
        await self._redis.aclose()


def _read(items: Iterable[Any]) -> Iterable[Wake]:
    """Parse wake-ups as the scripts write them: the lane, a space, the member."""
    for item in items:
        try:
            lane, _, member = text(item).partition(" ")
        except UnicodeDecodeError:  # anybody with access to the ledger may write anything
            continue
        if lane in QUEUES and member:
            yield Wake(member, lane)

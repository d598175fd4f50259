"""The alarm clock: one loop in every worker process, no beat, no single point of failure."""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Protocol

import structlog

from worker.ledger import AsyncLedger
from worker.ledger.commands import ring
from worker.ledger.records import Wake

log = structlog.get_logger(__name__)

#: Alarms taken at a time: a script of some milliseconds at the most.
MOST = 100

#: Seconds. The shortest sleep between two looks, so that alarms due one after another are taken
#: together.
SHORTEST = 0.02

#: Periods between looks for the broker while it takes nothing from here. Meanwhile no alarm is
#: rung: one rung in vain is pushed ahead, minutes in the end, and others may well be heard.
UNHEARD = 5


class Waker(Protocol):
    """Publishes wake-ups: `worker.wakeups`."""

    def __call__(self, wakes: Iterable[Wake]) -> int:
        """Publish; the number published."""
        ...

    def crowded(self) -> set[str]:
        """The lanes in which so many wake-ups wait that another would only breed duplicates."""
        ...

    def reachable(self) -> bool:
        """Whether the broker can be connected to now."""
        ...


class AlarmClock:
    """Wakes whoever is due."""

    def __init__(self, ledger: AsyncLedger, wake: Waker, period: float) -> None:
        self._ledger = ledger
        self._wake = wake
        self._period = period
        self._heard = True

    @property
    def heard(self) -> bool:
        """Whether the broker took what was rung last, or could be reached since."""
        return self._heard

    async def ring_once(self) -> float:
        """Take the alarms that are due and wake their owners; seconds until the next look.

        Each alarm is pushed ahead before its wake-up is published, so that one that is lost on
        the way, or in a process that dies here, comes again.
        """
        # kombu connects and publishes synchronously; the loop goes on meanwhile.
        if not self._heard:
            if not await asyncio.to_thread(self._wake.reachable):
                return self._period * UNHEARD
            self._heard = True  # also if there is nothing to be rung
        rung = await self._ledger(ring(MOST))
        if rung.wakes:
            wakes = await asyncio.to_thread(self._needed, rung.wakes)
            sent = await asyncio.to_thread(self._wake, wakes)
            log.debug("alarms", due=len(rung.wakes), woken=sent)
            self._heard = sent == len(wakes)
        if not self._heard:
            return self._period
        if len(rung.wakes) == MOST:
            return 0.0
        if not rung.next_at:
            return self._period
        return min(self._period, max(SHORTEST, (rung.next_at - rung.at) / 1000))

    def _needed(self, wakes: Sequence[Wake]) -> list[Wake]:
        if all(wake.sure for wake in wakes):
            return list(wakes)
        crowded = self._wake.crowded()
        return [wake for wake in wakes if wake.sure or wake.lane not in crowded]

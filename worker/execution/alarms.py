"""The alarm clock: one loop in every worker process, no beat, no single point of failure."""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Protocol

import structlog

from regworker.ledger import AsyncLedger
from regworker.ledger.records import Wake
from regworker.ledger.transitions import ring
from worker.telemetry import alert

log = structlog.get_logger(__name__)

#: The most alarms taken at a time: a script of some milliseconds.
MOST = 100

#: Seconds. The shortest sleep between two turns, so that alarms due in quick succession are taken
#: together.
SHORTEST = 0.02

#: Turns between checks whether the broker accepts messages again. Meanwhile no alarm is rung:
#: ringing without effect postpones it, by minutes in the end, and another worker may reach the
#: broker.
UNHEARD = 5


class Waker(Protocol):
    """Publishes wake-ups: `worker.broker.wakeups`."""

    def __call__(self, wakes: Iterable[Wake]) -> int:
        """Publish; the number published."""
        ...

    def crowded(self) -> set[str]:
        """The lanes with so many queued wake-ups that another would only be a duplicate."""
        ...

    def heard(self) -> bool:
        """Whether the broker accepts messages now."""
        ...


class AlarmClock:
    """Wakes jobs and deliveries whose alarm is due."""

    def __init__(self, ledger: AsyncLedger, wake: Waker, period: float) -> None:
        self._ledger = ledger
        self._wake = wake
        self._period = period
        self._heard = True

    @property
    def heard(self) -> bool:
        """Whether the broker accepted the last wake-ups, or a message since."""
        return self._heard

    async def ring_once(self) -> float:
        """Take the alarms that are due and wake their owners; return the seconds until the next
        turn.

        Each alarm is put off before its wake-up is published: if the wake-up is lost, or this
        process dies here, the alarm rings again.
        """
        # kombu connects and publishes synchronously; in a thread, it does not block the loop.
        if not self._heard:
            if not await asyncio.to_thread(self._wake.heard):
                return self._period * UNHEARD
            self._heard = True  # also if no alarm is due
        rung = await self._ledger(ring(MOST))
        if rung.unreadable:
            alert(
                "records cannot be read",
                kind="record",
                count=len(rung.unreadable),
                first=rung.unreadable[0][:100],
            )
        if rung.wakes:
            wakes = await asyncio.to_thread(self._needed, rung.wakes)
            sent = await asyncio.to_thread(self._wake, wakes)
            log.debug("alarms", due=rung.due, published=sent)
            self._heard = sent == len(wakes)
        if not self._heard:
            return self._period
        if rung.due == MOST:
            return SHORTEST  # others use the ledger too
        if not rung.next_at:
            return self._period
        return min(self._period, max(SHORTEST, (rung.next_at - rung.at) / 1000))

    def _needed(self, wakes: Sequence[Wake]) -> list[Wake]:
        if all(wake.sure for wake in wakes):
            return list(wakes)
        crowded = self._wake.crowded()
        return [wake for wake in wakes if wake.sure or wake.lane not in crowded]

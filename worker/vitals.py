"""What of this process works and what is silent: told by each part as it goes, judged by age.

A process that is there, and answers, may still do nothing: its main thread hangs, its connection
to the broker is dead, its loop is blocked. So each part leaves a mark when it has done its work,
and nobody else does it for it: Celery's loop while it consumes, the alarm clock when alarms could
be rung, the renewal of leases, and each task when it begins and ends.
"""

import mmap
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from itertools import count

from worker.clock import steady

#: Seconds between signs of life in the ledger; more often where patience is short.
BEAT = 5.0

#: Seconds between ticks of the loop that takes messages from the broker.
TICK = 1.0

#: Seconds a worker is remembered after its last word, if it took no leave: long enough for the
#: person who is called to see which it was.
REMEMBERED = 600.0

#: Tasks may wait for the ledger for so long, each time they need it, and need it so often.
_LEDGER_WAITS = 4 * 60.0

#: Calls of one task at the most: one or two to register, and as many questions, twice over.
_CALLS = 8

Parts = Mapping[str, tuple[float, float]]
"""Seconds since each part last did its work, and how long that may be."""

SILENT = {
    "consumer": "takes nothing from the broker: its main thread hangs, or has no connection",
    "clock": "rings no alarm: the ledger or the broker can't be reached",
    "leases": "renews no lease: the ledger can't be reached",
    "loop": "does no I/O: its loop is blocked",
    "tasks": "has a task that does not end",
}
"""What it means when a part is silent; with the worker as its subject."""


#: Of a pulse in memory: when, and whether it ever happened.
_FORM = struct.Struct("d?")


class Pulse:
    """When something last happened, seen by this process and by those forked from it later."""

    def __init__(self, now: Callable[[], float] = steady) -> None:
        self._now = now
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        self._memory[: _FORM.size] = _FORM.pack(now(), 0)

    def tick(self) -> None:
        """It happens now."""
        self._memory[: _FORM.size] = _FORM.pack(self._now(), 1)

    def age(self) -> float:
        """Seconds since it happened, or since it was first waited for."""
        return max(0.0, self._now() - float(self._read()[0]))

    def happened(self) -> bool:
        """Whether it ever did."""
        return bool(self._read()[1])

    def _read(self) -> tuple[float, int]:
        at, ticked = _FORM.unpack(self._memory[: _FORM.size])
        return at, ticked


@cache
def consumer() -> Pulse:
    """The pulse of Celery's loop. A pool of processes must find it made before it forks."""
    return Pulse()


class Vitals:
    """The marks of one process. `patience`: seconds a part may be silent."""

    def __init__(
        self,
        patience: float,
        call_budget: float,
        consuming: Pulse,
        now: Callable[[], float] = steady,
    ) -> None:
        self._now = now
        self._patience = patience
        self._task_limit = _CALLS * call_budget + _LEDGER_WAITS + patience
        self._consuming = consuming
        self._numbers = count()
        self._tasks: dict[int, float] = {}
        self._born = now()
        self._marks = {"clock": self._born, "leases": self._born, "loop": self._born}

    def mark(self, part: str) -> None:
        """A part has done its work: `clock`, `leases`, `loop`."""
        self._marks[part] = self._now()

    @contextmanager
    def task(self) -> Iterator[None]:
        """A task is running, in whatever thread."""
        number = next(self._numbers)
        self._tasks[number] = self._now()
        try:
            yield
        finally:
            del self._tasks[number]

    @property
    def period(self) -> float:
        """Seconds between signs of life."""
        return min(BEAT, self._patience / 3)

    @property
    def ready(self) -> bool:
        """Whether it has begun to take messages from the broker."""
        return self._consuming.happened()

    @property
    def running(self) -> int:
        """How many tasks are running."""
        return len(self._tasks)

    @property
    def up(self) -> float:
        """Seconds since this process started."""
        return self._now() - self._born

    def parts(self) -> Parts:
        """How each part does."""
        now = self._now()
        found = {part: (now - at, self._patience) for part, at in self._marks.items()}
        oldest = min(list(self._tasks.values()), default=now)
        found["tasks"] = (now - oldest, self._task_limit)
        found["consumer"] = (self._consuming.age(), self._patience)
        return found


def silent(parts: Parts, since: float = 0.0) -> dict[str, float]:
    """The parts that have been silent for too long, `since` seconds ago; each one's seconds."""
    return {part: age + since for part, (age, limit) in parts.items() if age + since > limit}

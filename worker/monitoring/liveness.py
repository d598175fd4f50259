"""Which parts of this process work and which are silent: each part records when it last worked.

A process that exists, and answers, may still do nothing: its main thread hangs, its connection to
the broker is dead, its loop is blocked. So each part itself records that it has worked: Celery's
loop while it consumes, the alarm clock when alarms could be rung, the renewal of leases, and each
task when it begins and ends.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from itertools import count

from regworker.clock import steady
from regworker.domain.liveness import Parts
from worker.monitoring.metrics import Labels, Reading

#: Seconds between heartbeats in the ledger; more often if the configured patience is short.
BEAT = 5.0

#: Seconds between ticks of the loop that consumes messages from the broker.
TICK = 1.0

#: Seconds for which a worker is listed after its last heartbeat if it did not sign off: long enough
#: for a person on call to see which one it was.
REMEMBERED = 600.0

#: Seconds: how long tasks may wait for the ledger each time, and how many times.
_LEDGER_WAITS = 4 * 60.0

#: The most calls of one task: one or two to register, and as many lookups, twice.
_CALLS = 8


SILENT = {
    "consumer": "takes no messages from the broker: its main thread hangs or has no connection",
    "clock": "processes no alarms: it cannot reach the ledger or the broker",
    "leases": "renews no lease: it cannot reach the ledger",
    "loop": "does no I/O: its loop is blocked",
    "tasks": "has a task that does not end",
}
"""Texts for a silent part; the worker is the subject of the sentence."""


class Pulse:
    """When something happened last."""

    def __init__(self, now: Callable[[], float] = steady) -> None:
        self._now = now
        self._at = now()
        self._happened = False

    def tick(self) -> None:
        """Record that it happens now."""
        self._at, self._happened = self._now(), True

    def age(self) -> float:
        """Seconds since it happened, or since it is expected."""
        return max(0.0, self._now() - self._at)

    def happened(self) -> bool:
        """Whether it ever did."""
        return self._happened


@cache
def consumer() -> Pulse:
    """The pulse of Celery's loop."""
    return Pulse()


class Liveness:
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
        """Record that a part has worked: `clock`, `leases`, `loop`."""
        self._marks[part] = self._now()

    @contextmanager
    def task(self) -> Iterator[None]:
        """A running task, in any thread."""
        number = next(self._numbers)
        self._tasks[number] = self._now()
        try:
            yield
        finally:
            del self._tasks[number]

    @property
    def period(self) -> float:
        """Seconds between heartbeats."""
        return min(BEAT, self._patience / 3)

    @property
    def ready(self) -> bool:
        """Whether it has started to consume messages from the broker."""
        return self._consuming.happened()

    @property
    def running(self) -> int:
        """How many tasks are running."""
        return len(self._tasks)

    @property
    def task_limit(self) -> float:
        """Seconds after which a task counts as one that does not end."""
        return self._task_limit

    @property
    def up(self) -> float:
        """Seconds since this process started."""
        return self._now() - self._born

    def parts(self) -> Parts:
        """The condition of each part."""
        now = self._now()
        found = {part: (now - at, self._patience) for part, at in self._marks.items()}
        oldest = min(list(self._tasks.values()), default=now)
        found["tasks"] = (now - oldest, self._task_limit)
        found["consumer"] = (self._consuming.age(), self._patience)
        return found


def readings(liveness: Liveness, calls: Mapping[Labels, int]) -> tuple[Reading, ...]:
    """The condition of a process, as metrics. `calls`: its leases, by provider and account."""
    return (
        Reading(
            "regworker_calls_in_flight",
            "Attempts under way in this process.",
            ("provider", "account"),
            lambda: dict(calls),
        ),
        Reading(
            "regworker_leases_held",
            "Leases that this process holds.",
            (),
            lambda: {(): sum(calls.values())},
        ),
        Reading(
            "regworker_tasks_running",
            "Tasks that are running.",
            (),
            lambda: {(): liveness.running},
        ),
        Reading(
            "regworker_part_age_seconds",
            "How long ago each part last did its work; of tasks, the age of the oldest.",
            ("part",),
            lambda: {(part,): age for part, (age, _) in liveness.parts().items()},
        ),
        Reading(
            "regworker_part_limit_seconds",
            "How long that may be.",
            ("part",),
            lambda: {(part,): limit for part, (_, limit) in liveness.parts().items()},
        ),
    )

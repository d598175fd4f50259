"""The data of the overview's charts: a snapshot every few seconds, kept for an hour by each
process."""

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from regworker.domain.states import FINAL, State
from regworker.ledger.listing import JobRow
from regworker.settings import Settings
from worker.monitoring.overview import Observer, Overview
from worker.operations.jobs import JobFilter, JobList

log = logging.getLogger(__name__)

#: Seconds between snapshots, and how many are kept: an hour.
PERIOD, KEPT = 10.0, 360

#: Seconds for which a snapshot is fresh enough for a page.
FRESH = 2.0

#: The number of finished jobs from which latency is computed.
RECENT = 200


@dataclass(frozen=True, slots=True)
class Point:
    """One snapshot. `outcomes`: counters by account and state; `latency`: seconds, by account."""

    at: int
    outcomes: Mapping[str, Mapping[str, int]]
    latency: Mapping[str, float]
    waiting: Mapping[str, int]


class History:
    """Takes snapshots in a thread of its own, and on request."""

    def __init__(self, settings: Settings, period: float = PERIOD) -> None:
        self._settings, self._period = settings, period
        self._points: deque[Point] = deque(maxlen=KEPT)
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._last: tuple[float, Overview] | None = None
        self._observer: Observer | None = None
        self._thread: threading.Thread | None = None

    def look(self) -> Overview:
        """The present state. Raises `LedgerUnavailable`."""
        with self._lock:
            at, found = self._last or (-FRESH, None)
            if found is None or time.monotonic() - at > FRESH:
                found = self._look()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="history", daemon=True)
                self._thread.start()
            return found

    def forget(self) -> None:
        """Take a new snapshot for the next page: a person has changed something."""
        with self._lock:
            self._last = None

    @property
    def points(self) -> Sequence[Point]:
        """The snapshots of the last hour, the oldest first."""
        with self._lock:
            return list(self._points)

    def close(self) -> None:
        """End the thread, and close the connections."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(5)
        if self._observer is not None:
            self._observer.close()

    def _run(self) -> None:
        while not self._ended.wait(self._period):
            with self._lock:
                try:
                    self._look()
                except Exception as error:  # noqa: BLE001 -- the next look may go well
                    log.warning("no look at the installation (%s)", type(error).__name__)

    def _look(self) -> Overview:
        if self._observer is None:
            self._observer = Observer(self._settings)
        found = self._observer.look()
        rows = (
            JobList(self._observer.ledger).page(JobFilter(states=tuple(FINAL)), None, RECENT).rows
        )
        self._last = time.monotonic(), found
        # Snapshots for pages do not enter the history: they would displace the last hour.
        at = found.snapshot.at
        if not self._points or at - self._points[-1].at >= self._period * 900:
            self._points.append(_point(found, rows))
        return found


def _point(found: Overview, rows: Sequence[JobRow]) -> Point:
    g = found.snapshot
    outcomes: dict[str, dict[str, int]] = {}
    for name, count in g.stats.items():
        state, _, rest = name.partition(":")
        if rest and state in set(map(str, FINAL)):
            outcomes.setdefault(rest.replace(":", "/"), {})[state] = count
    took: dict[str, list[float]] = {}
    for row in rows:
        if row.state is State.REGISTERED and row.finished_at > g.at - 600_000:
            name = f"{row.provider}/{row.account}"
            took.setdefault(name, []).append((row.finished_at - row.accepted_at) / 1000)
    latency = {name: sorted(values)[len(values) // 2] for name, values in took.items()}
    waiting = {f"{one.provider}/{one.account}": one.waiting for one in g.accounts}
    return Point(g.at, outcomes, latency, waiting)

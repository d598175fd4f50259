"""The data of the overview's charts: a snapshot every few seconds, kept for an hour by each
process."""

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from regworker.domain.states import FINAL, State
from regworker.ledger import SyncLedger
from regworker.ledger.listing import WantedJobs, ended_indexes, find
from regworker.settings import Settings
from worker.monitoring.overview import Observer, Overview

log = logging.getLogger(__name__)

#: Seconds between snapshots, and how many are kept: an hour.
PERIOD, KEPT = 10.0, 360

#: Seconds for which a snapshot is fresh enough for a page.
FRESH = 2.0

#: Accounts that have charts: the busiest ones.
CHARTED = 20

#: The number of jobs from which an account's latency is computed, and their age in milliseconds.
RECENT, RECENTLY = 50, 600_000


@dataclass(frozen=True, slots=True)
class Point:
    """One snapshot, by account; an account is left out where it has none, since there may be
    thousands. `ended`: jobs that ended since the snapshot before; `latency`: seconds."""

    at: int
    ended: Mapping[str, int]
    latency: Mapping[str, float]
    waiting: Mapping[str, int]


class History:
    """Takes snapshots in a thread of its own, and on request."""

    def __init__(self, settings: Settings, period: float = PERIOD) -> None:
        self._settings, self._period = settings, period
        self._points: deque[Point] = deque(maxlen=KEPT)
        self._ended_before: Mapping[str, int] | None = None
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
        self._last = time.monotonic(), found
        # Snapshots for pages do not enter the history: they would displace the last hour.
        at = found.snapshot.at
        if not self._points or at - self._points[-1].at >= self._period * 900:
            self._points.append(self._point(found, self._observer.ledger))
        return found

    def _point(self, found: Overview, ledger: SyncLedger) -> Point:
        g = found.snapshot
        names = [f"{one.provider}/{one.account}" for one in g.accounts]
        ended = _ended(g.stats)
        before = ended if self._ended_before is None else self._ended_before
        self._ended_before = ended
        new = {name: max(0, count - before.get(name, 0)) for name, count in ended.items()}
        return Point(
            g.at,
            {name: count for name, count in new.items() if count},
            _latency(ledger, busiest(names, new), g.at),
            {name: one.waiting for name, one in zip(names, g.accounts, strict=True) if one.waiting},
        )


def busiest(names: Sequence[str], ended: Mapping[str, int]) -> list[str]:
    """The accounts to chart, in the given order: those of which most jobs ended."""
    chosen = set(sorted(names, key=lambda name: -ended.get(name, 0))[:CHARTED])
    return [name for name in names if name in chosen]


def _ended(stats: Mapping[str, int]) -> dict[str, int]:
    """How many jobs of each account have ended, by the counters."""
    found: dict[str, int] = {}
    for name, count in stats.items():
        state, _, account = name.partition(":")
        if account and state in FINAL:
            account = account.replace(":", "/")
            found[account] = found.get(account, 0) + count
    return found


def _latency(ledger: SyncLedger, names: Sequence[str], now: int) -> dict[str, float]:
    """The median seconds from acceptance to `registered`, of accounts that had any lately."""
    accounts = (name.partition("/") for name in names)
    indexes = ended_indexes([(State.REGISTERED, one, other) for one, _, other in accounts])
    wanted = WantedJobs(since=now - RECENTLY)
    found = ledger.many(find(one, wanted, "", RECENT, RECENT) for one in indexes)
    took = {
        name: sorted((row.finished_at - row.accepted_at) / 1000 for _, _, row in slice_.rows)
        for name, slice_ in zip(names, found, strict=True)
    }
    return {name: values[len(values) // 2] for name, values in took.items() if values}

"""How long to wait for a run to come to rest: while jobs still end, within a limit."""

import time
from collections.abc import Callable

#: Seconds without progress after which the run is given up: several settle delays, and the longest
#: pause between two alarms of one job.
QUIET = 90.0

#: Seconds in total, and further seconds for each second of the run: a run whose backlog takes
#: longer was overloaded, and would prove nothing about one that is not.
LONGEST, LONGEST_RATIO = 120.0, 1.0


class Patience:
    """Ends when the number of remaining jobs has not decreased for a while, or after too long."""

    def __init__(
        self,
        duration: float,
        quiet: float = QUIET,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._now = now
        self._quiet = quiet
        self._began = self._moved = now()
        self._longest = LONGEST + LONGEST_RATIO * duration
        self._least: int | None = None

    def see(self, left: int) -> None:
        """Record how many remain. Only a new minimum is progress."""
        if self._least is None or left < self._least:
            self._least, self._moved = left, self._now()

    @property
    def out(self) -> str:
        """Why waiting is over; empty while it is not."""
        now = self._now()
        if now - self._moved > self._quiet:
            return f"nothing has moved for {self._quiet:g} s after all was well again"
        if now - self._began > self._longest:
            return f"not at rest {self._longest:g} s after all was well again"
        return ""

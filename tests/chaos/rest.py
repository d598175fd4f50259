"""How long a run is waited for to come to rest: as long as something moves, within reason."""

import time
from collections.abc import Callable

#: Seconds in which nothing may move before a run is given up: several settle delays, and the
#: longest pause between two alarms of one job.
QUIET = 90.0

#: Seconds in all, and as many more for each second of the run: a run whose backlog takes longer
#: than this to work off was overloaded, and would say nothing of one that is not.
LONGEST, LONGEST_RATIO = 120.0, 1.0


class Patience:
    """Runs out when what is left has not become less for a while, or has taken too long."""

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
        """Note how much is left. Only less than ever before is progress: more is none."""
        if self._least is None or left < self._least:
            self._least, self._moved = left, self._now()

    @property
    def out(self) -> str:
        """Why there is nothing more to wait for; empty while there is."""
        now = self._now()
        if now - self._moved > self._quiet:
            return f"nothing has moved for {self._quiet:g} s after all was well again"
        if now - self._began > self._longest:
            return f"not at rest {self._longest:g} s after all was well again"
        return ""

"""Detects code that blocks the loop in which all jobs of a process run, and logs where it is.

A provider that calls `time.sleep` or `requests.post` stops every job of its process, and all their
leases expire. The loop itself cannot report that, since it does not turn.
"""

import asyncio
import sys
import threading
import traceback
from collections.abc import Iterable
from types import FrameType

import structlog

log = structlog.get_logger(__name__)

#: Seconds between checks.
PERIOD = 0.4

#: Checks without a turn of the loop after which it counts as blocked. Counted in checks, not by a
#: clock: a process that was stopped for a while was not blocked.
LOOKS = 5

#: Frames of the blocking code that are logged, the innermost last.
FRAMES = 6


class LoopWatch:
    """A thread that checks whether a loop turns."""

    def __init__(self, loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
        self._loop = loop
        self._watched = thread
        self._turns = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="loop-watch", daemon=True)

    def start(self) -> None:
        """Start checking."""
        self._loop.call_soon_threadsafe(self._turn)
        self._thread.start()

    def stop(self) -> None:
        """Stop checking."""
        self._over.set()
        self._thread.join()

    def _turn(self) -> None:
        self._turns += 1
        if not self._over.is_set():
            self._loop.call_later(PERIOD / 2, self._turn)

    def _look(self) -> None:
        seen, still = self._turns, 0
        while not self._over.wait(PERIOD):
            if self._turns != seen:
                if still >= LOOKS:
                    log.warning("the loop turns again", after=round(still * PERIOD, 1))
                seen, still = self._turns, 0
                continue
            still += 1
            if still == LOOKS:
                frame = sys._current_frames().get(self._watched.ident or 0)
                log.error(
                    "the loop is blocked",
                    alert="blocked",
                    seconds=round(still * PERIOD, 1),
                    where=named(frame),
                )


def named(frame: FrameType | None, limit: int = FRAMES) -> list[str]:
    """File, line and function of the running code, the innermost last; no values, since they may be
    a customer's."""
    return [] if frame is None else places(traceback.walk_stack(frame), limit)


def places(walked: Iterable[tuple[FrameType, int]], limit: int) -> list[str]:
    """The same for frames that are given, the innermost first."""
    found = traceback.StackSummary.extract(iter(walked), limit=limit, lookup_lines=False)
    return [f"{one.filename}:{one.lineno} {one.name}" for one in reversed(found)]

"""Ends a process that was asked to stop and does not, and logs where it hangs.

A worker that hangs while it stops takes no jobs and holds no leases. But whoever waits for its end
waits for ever, unless it kills; and a killed process leaves no trace of what it waited for.
"""

import asyncio
import faulthandler
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import FrameType
from typing import Any

import structlog

from worker.monitoring.liveness import Liveness
from worker.monitoring.loop_watch import named, places
from worker.telemetry import flush_sentry

log = structlog.get_logger(__name__)

#: Seconds between two looks. The limits below are counted in looks, not by a clock: a process that
#: was stopped for a while did not hang.
PERIOD = 1.0

#: Seconds, beyond two calls, after which the log says once where a stopping worker is: before a
#: supervisor with the documented grace kills it.
LATE = 5.0

#: Seconds without a running task after which the process is ended. All that is left then is to
#: close connections, which has a limit of half of that (`CLOSED` in `runtime.py`). A task in a loop
#: that does not turn counts as none: it makes no progress and renews no lease.
IDLE = 40.0

#: Seconds for that log line. Its lock, or whoever reads it, may be what hangs.
REPORT = 5.0

#: The most different places of tasks in a line.
PLACES = 20

#: The innermost frames of each thread and task in it. Libraries take half of them.
FRAMES = 14


class StopWatch:
    """Call `begin` when the process is asked to stop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        liveness: Liveness,
        late: float,
        end: Callable[[int], object] = os._exit,
    ) -> None:
        """`late`: seconds after which the log says where it is."""
        self._loop = loop
        self._liveness = liveness
        self._late = late
        self._end = end
        self._lock = threading.Lock()
        self._begun = False
        self._turned = True
        self._took = self._idle = 0.0

    def begin(self) -> None:
        """Watch the process from now on; once."""
        with self._lock:
            if self._begun:
                return
            self._begun = True
        # A daemon: it does not keep the process, and looks on until the very end.
        threading.Thread(target=self._look, name="stop-watch", daemon=True).start()

    def look_once(self) -> bool:
        """Log where the process is, if it is late; end it if it hangs. Whether it was ended."""
        was_late = self._took > self._late
        self._took += PERIOD
        works = self._turns() and self._liveness.running
        self._idle = 0.0 if works else self._idle + PERIOD
        if self._idle > IDLE or self._took > self._liveness.task_limit:
            try:
                self._say(self._last_words)
            finally:
                self._end(1)
            return True
        if self._took > self._late and not was_late:
            self._say(lambda: log.warning("worker does not stop", **self._where()))
        return False

    def _turns(self) -> bool:
        """Whether the loop has turned since the last look."""
        turned, self._turned = self._turned, False
        with suppress(RuntimeError):  # it is closed
            self._loop.call_soon_threadsafe(self._turn)
        return turned

    def _turn(self) -> None:
        self._turned = True

    def _look(self) -> None:
        time.sleep(PERIOD)
        while not self.look_once():
            time.sleep(PERIOD)

    def _say(self, report: Callable[[], None]) -> None:
        # In a thread: what hangs may be the log itself.
        saying = threading.Thread(target=report, name="stop-report", daemon=True)
        try:
            saying.start()
        except RuntimeError:
            # The interpreter is ending (Python 3.12 then starts no thread), or there are too many.
            with suppress(Exception):
                faulthandler.dump_traceback(sys.__stderr__ or 2)
            return
        saying.join(REPORT)

    def _last_words(self) -> None:
        log.critical("worker ended by force", alert="hung", **self._where())
        flush_sentry()

    def _where(self) -> dict[str, Any]:
        """What each thread and each task of the loop is doing."""
        names = {one.ident: one.name for one in threading.enumerate()}
        threads = [
            {"name": names.get(ident, ""), "where": named(frame, FRAMES)}
            for ident, frame in sys._current_frames().items()
            if ident != threading.get_ident()
        ]
        waits = Counter(tuple(_waits(task.get_coro())) for task in asyncio.all_tasks(self._loop))
        tasks = [{"count": n, "where": list(where)} for where, n in waits.most_common(PLACES)]
        return {
            "seconds": round(self._took),
            "running": self._liveness.running,
            "threads": threads,
            "tasks": tasks,
        }


def _waits(work: Any) -> list[str]:
    """The places in a coroutine and in what it awaits, the innermost last."""
    return places(reversed(list(_chain(work))), FRAMES)


def _chain(work: Any) -> Iterator[tuple[FrameType, int]]:
    while work is not None:
        for kind in ("cr", "gi", "ag"):
            frame = getattr(work, f"{kind}_frame", None)
            if frame is not None:
                yield frame, frame.f_lineno
                break
        else:
            return  # a future
        inner = "gi_yieldfrom" if kind == "gi" else f"{kind}_await"
        work = getattr(work, inner, None)

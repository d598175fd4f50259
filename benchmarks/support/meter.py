"""The CPU time and memory of a process with all its children."""

import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

import psutil

#: Seconds between two reads of the memory: a peak lasts longer.
PERIOD = 0.25


def tree(pid: int) -> list[psutil.Process]:
    """A process and its live descendants."""
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


def cpu(pid: int) -> float:
    """Seconds of CPU, user and system, of a process and all its children, including ended ones.

    An ended child's time counts with its parent, once the parent has waited for it.
    """
    total = 0.0
    for process in tree(pid):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def memory(pid: int) -> float:
    """MB in use. Pages that forks share count by the share of each (PSS)."""
    total = 0
    for process in tree(pid):
        with suppress(psutil.NoSuchProcess):
            total += process.memory_full_info().pss
    return total / 1e6


class PeakMemory:
    """The most memory in use inside the block: `with PeakMemory(pid) as peak: ...;
    peak.megabytes`."""

    def __init__(self, pid: int) -> None:
        self.megabytes = 0.0
        self._pid = pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        over = False
        while not over:
            over = self._over.wait(PERIOD)
            with suppress(psutil.NoSuchProcess):
                self.megabytes = max(self.megabytes, memory(self._pid))

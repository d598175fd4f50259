"""Gives processes a fixed share of a core: a server's limit, on a machine with too few cores."""

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

#: Seconds between two looks at a process. What it uses beyond its share, it gets less after that.
TICK = 0.002

#: Seconds. A process that had to wait for a core may use its share of so long a time later.
SAVED = 0.5


def cpu(pid: int) -> float:
    """Seconds of CPU that a process, with all its threads, has used; clock_getcpuclockid(3)."""
    return time.clock_gettime((~pid << 3) | 2)


@contextmanager
def limited(pids: Sequence[int], share: float) -> Iterator[None]:
    """Let each process use this share of one core inside the block, and no more.

    A process is stopped as soon as its share is used up. Unlike a cgroup, this needs no rights.
    """
    over = threading.Event()
    thread = threading.Thread(target=_limit, args=(pids, share, over))
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _limit(pids: Sequence[int], share: float, over: threading.Event) -> None:
    looked = time.monotonic()
    used = {pid: cpu(pid) for pid in pids}
    left = dict.fromkeys(pids, 0.0)
    try:
        while not over.wait(TICK):
            now = time.monotonic()
            for pid in pids:
                since, used[pid] = used[pid], cpu(pid)
                gained = min(left[pid] + share * (now - looked), share * SAVED)
                left[pid] = gained - (used[pid] - since)
                os.kill(pid, signal.SIGCONT if left[pid] > 0 else signal.SIGSTOP)
            looked = now
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)

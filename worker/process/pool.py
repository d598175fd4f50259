"""The pool: tasks run in the process's I/O loop, as many at a time as there are slots.

Messages are queued here by lane: wake-ups of a Redis broker by the loop's own thread
(`wake_reader.py`), all others by Celery's. The loop's thread does everything else. So the two
threads do not compete for the interpreter at each step of a job.
"""

import asyncio
import heapq
import threading
from collections.abc import Callable
from itertools import count
from typing import Any

import structlog
from celery.concurrency.base import BasePool, apply_target
from celery.worker import state

from worker.process import greenlets
from worker.process.priorities import BULK, REQUEST, Turnstile, rank
from worker.process.runtime import runtime

log = structlog.get_logger(__name__)


class TaskPool(BasePool):  # type: ignore[misc]
    """The only pool: `REGWORKER_POOL=loop`."""

    signal_safe = False
    body_can_be_buffer = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.full = False
        """Whether the hub waits for a slot: the next one that is free must wake it."""
        self._woken = False
        self.on_free: Callable[[], None] = lambda: None
        """Called in the loop's thread when a slot is free."""
        self._line: list[tuple[int, int, tuple[Any, ...]]] = []
        self._lock = threading.Lock()
        self._asked = False
        self._numbers = count()
        self._running: set[asyncio.Task[None]] = set()
        self._idle = threading.Event()
        self._hub: Any = None

    @property
    def busy(self) -> bool:
        """Whether a task runs."""
        return bool(self._running)

    def on_start(self) -> None:
        """Called once the runtime has started."""
        self._loop = runtime(self.app).loop
        self._in_loop = runtime(self.app).in_loop
        self._turnstile: Turnstile = runtime(self.app).turnstile
        self._turnstile.on_free = self._start

    def register_with_event_loop(self, loop: Any) -> None:
        """Called by Celery with each connection: the loop that takes messages."""
        self._hub = loop

    def hub_waits(self) -> None:
        """Called by the consumer if it found no free slot: the next one must wake the hub."""
        self._woken = False
        self.full = True

    def on_apply(
        self,
        target: Any,
        args: tuple[Any, ...] | None = None,
        kwargs: dict[str, Any] | None = None,
        callback: Any = None,
        accept_callback: Any = None,
        **_: Any,
    ) -> None:
        """Queue a request; the loop is woken once for all that arrive together."""
        work = (target, args, kwargs, callback, accept_callback)
        with self._lock:
            heapq.heappush(self._line, (rank(args or ()), next(self._numbers), work))
            asked = self._asked
            self._asked = True
        if self._in_loop():
            self._start()
        elif not asked:
            self._loop.call_soon_threadsafe(self._start)

    def flush(self) -> None:
        """Called when a connection has ended: what waits here comes again from the broker, or by
        its alarm, and Celery no longer counts it."""
        with self._lock:
            self._line.clear()

    def on_stop(self) -> None:
        """Return requests that have not started, then wait for the others."""
        with self._lock:
            left, self._line = self._line, []
        for _, _, (*_, accept_callback) in left:
            _hand_back(accept_callback.__self__)
        self._loop.call_soon_threadsafe(self._tell_when_idle)
        self._idle.wait()
        super().on_stop()

    def terminate_job(self, pid: int, signal: Any = None) -> None:
        """Called by Celery to cut off a task: it goes on, and the worker waits for it.

        A call that is cut off may have made a customer. Only SIGKILL ends the process at once
        (`stop_signals.py`).
        """

    def _start(self) -> None:
        """Start queued requests while there are free slots."""
        self._asked = False
        while (first := self._first()) is not None:
            lane, _, work = first
            task = self._loop.create_task(greenlets.carry(_apply, *work))
            self._running.add(task)
            if lane >= BULK:
                self._turnstile.enter(task)
            task.add_done_callback(self._done)

    def _first(self) -> tuple[int, int, tuple[Any, ...]] | None:
        with self._lock:
            if not self._line:
                return None
            # A request takes milliseconds, and its client waits: one may run beside full slots.
            if len(self._running) >= self.limit + (self._line[0][0] == REQUEST):
                return None
            if self._line[0][0] >= BULK and self._turnstile.full:
                return None
            return heapq.heappop(self._line)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._start()
        if self.full and not self._woken and self._hub is not None:
            # On Redis, the hub may take a request now. It resets `full` when it has looked.
            self._woken = True
            self._hub.call_soon(_look_again)
        self.on_free()

    def _tell_when_idle(self) -> None:
        if self._running:
            next(iter(self._running)).add_done_callback(lambda _: self._tell_when_idle())
        else:
            self._idle.set()

    def _get_info(self) -> dict[str, Any]:
        return {**super()._get_info(), "running": len(self._running), "in line": len(self._line)}


def _apply(*work: Any) -> None:
    try:
        apply_target(*work)
    except BaseException:
        # Whatever it is (even `SystemExit`), it must end neither the loop nor the slot.
        *_, callback, _accept = work
        state.task_ready(callback.__self__)
        log.exception("a task ended on a fault of its pool")


def _look_again() -> None:
    pass  # waking the hub is enough


def _hand_back(request: Any) -> None:
    # The pool gets only the request's methods as callbacks.
    try:
        request.message.requeue()
    except Exception as error:  # noqa: BLE001 -- its connection is gone: it is back already
        log.debug("a wake-up was not handed back", error=type(error).__name__)

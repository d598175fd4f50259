"""The pool: tasks run in the process's I/O loop, as many at a time as there are slots.

Celery's thread takes messages and puts them in line here, by lane; the loop's thread does all
else. So a job is handed over once, together with whatever else has come, and no two threads fight
for the interpreter over each of its steps.
"""

import asyncio
import heapq
import threading
from itertools import count
from typing import Any

import structlog
from celery.concurrency.base import BasePool, apply_target
from celery.worker import state

from worker import bridge
from worker.lanes import BULK, Turnstile, rank
from worker.runtime import runtime

log = structlog.get_logger(__name__)


class TaskPool(BasePool):  # type: ignore[misc]
    """Celery's pool for `REGWORKER_POOL=loop`."""

    signal_safe = False
    body_can_be_buffer = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.full = False
        """Set by who found no slot free: the hub is to be woken by the next one that is."""
        self._line: list[tuple[int, int, tuple[Any, ...]]] = []
        self._lock = threading.Lock()
        self._told = False
        self._numbers = count()
        self._running: set[asyncio.Task[None]] = set()
        self._idle = threading.Event()
        self._hub: Any = None

    def on_start(self) -> None:
        """Called once the runtime has started."""
        self._loop = runtime(self.app).loop
        self._turnstile: Turnstile = runtime(self.app).turnstile
        self._turnstile.told = self._start

    def register_with_event_loop(self, hub: Any) -> None:
        """Called by Celery with each connection: the loop that takes messages."""
        self._hub = hub

    def on_apply(
        self,
        target: Any,
        args: tuple[Any, ...] | None = None,
        kwargs: dict[str, Any] | None = None,
        callback: Any = None,
        accept_callback: Any = None,
        **_: Any,
    ) -> None:
        """Stand a request in line; the loop is told once of all that come together."""
        work = (target, args, kwargs, callback, accept_callback)
        with self._lock:
            heapq.heappush(self._line, (rank(args or ()), next(self._numbers), work))
            told, self._told = self._told, True
        if not told:
            self._loop.call_soon_threadsafe(self._start)

    def on_stop(self) -> None:
        """Hand back what has not started, then wait for what has."""
        with self._lock:
            left, self._line = self._line, []
        for _, _, (*_, accept_callback) in left:
            _hand_back(accept_callback.__self__)
        self._loop.call_soon_threadsafe(self._tell_when_idle)
        self._idle.wait()
        super().on_stop()

    def _start(self) -> None:
        """Start what stands in line, as far as there is room."""
        self._told = False
        while (first := self._first()) is not None:
            lane, _, work = first
            task = self._loop.create_task(bridge.carry(_apply, *work))
            self._running.add(task)
            if lane >= BULK:
                self._turnstile.enter(task)
            task.add_done_callback(self._done)

    def _first(self) -> tuple[int, int, tuple[Any, ...]] | None:
        with self._lock:
            if not self._line or len(self._running) >= self.limit:
                return None
            if self._line[0][0] >= BULK and self._turnstile.full:
                return None
            return heapq.heappop(self._line)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._start()
        if self.full and self._hub is not None:
            # On Redis, the hub may take more now. Told by whoever comes first after it was full.
            self.full = False
            self._hub.call_soon(_look_again)

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
        # Whatever it is (`SystemExit` too), it must end neither the loop nor the slot.
        log.exception("a task ended on a fault of its pool")
        *_, callback, _accept = work
        state.task_ready(callback.__self__)


def _look_again() -> None:
    pass  # that the hub woke up is all


def _hand_back(request: Any) -> None:
    # The pool is given the request's methods as callbacks, and nothing else of it.
    try:
        request.message.requeue()
    except Exception as error:  # noqa: BLE001 -- its connection is gone: it is back already
        log.debug("a wake-up was not handed back", error=type(error).__name__)

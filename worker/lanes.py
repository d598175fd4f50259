"""The order in which work starts: `live` before `bulk`, and a turn each for live and deliveries.

From Redis a process takes a wake-up only for a free slot (`worker_disable_prefetch`), the first of
the lanes' lists first (`Turns`). RabbitMQ sends some ahead, for each queue its share: these stand
in one line here, ordered by lane (`TaskPool`). So a live job starts at the next slot that comes
free, and results go out however many live jobs wait. When the worker stops, what still stands in
line goes back to the broker at once, for others to start.
"""

import heapq
import logging
import threading
from itertools import count
from typing import Any

from celery.concurrency.base import apply_target
from celery.concurrency.thread import ApplyResult
from celery.concurrency.thread import TaskPool as Threads
from kombu.utils.scheduling import priority_cycle

from worker.wakeups import DOOR, QUEUES

log = logging.getLogger(__name__)

#: Accepting a job is quick, and its producer is told when it is done. What came first goes first
#: among live jobs and deliveries: a result that nobody hears of helps nobody.
_RANK = {DOOR: 0, QUEUES["live"]: 1, QUEUES["delivery"]: 1, QUEUES["bulk"]: 2}

#: The queues that take turns.
_TURNS = frozenset({QUEUES["live"], QUEUES["delivery"]})


class Turns(priority_cycle):  # type: ignore[misc]
    """The Redis lists in their order; of live jobs and deliveries, those that waited go next."""

    def rotate(self, last_used: str) -> None:
        """Called by kombu with the list that a message was just taken from."""
        if last_used not in _TURNS:
            return
        places = [place for place, item in enumerate(self.items) if item in _TURNS]
        turns = sorted((self.items[place] for place in places), key=last_used.__eq__)
        for place, item in zip(places, turns, strict=True):
            self.items[place] = item


class TaskPool(Threads):  # type: ignore[misc]
    """Celery's thread pool with a line that is ordered by lane."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._line: list[tuple[int, int, tuple[Any, ...]]] = []
        self._lock = threading.Lock()
        self._numbers = count()
        self._hub: Any = None

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
    ) -> ApplyResult:
        """Stand a request in line; as many turns are submitted as requests stand in it."""
        work = (target, args, kwargs, callback, accept_callback)
        with self._lock:
            heapq.heappush(self._line, (_rank(args or ()), next(self._numbers), work))
        return ApplyResult(self.executor.submit(self._turn))

    def on_stop(self) -> None:
        """Hand back what has not started, then wait for what has."""
        self.executor.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            left, self._line = self._line, []
        for _, _, (*_, accept_callback) in left:
            _hand_back(accept_callback.__self__)
        super().on_stop()

    def _turn(self) -> None:
        with self._lock:
            _, _, work = heapq.heappop(self._line)
        try:
            apply_target(*work)
        finally:
            if self._hub is not None:
                # A slot is free: on Redis, the loop may take the next wake-up now.
                self._hub.call_soon(_look_again)


def _look_again() -> None:
    pass  # that the loop woke up is all


def _hand_back(request: Any) -> None:
    # The pool is given the request's methods as callbacks, and nothing else of it.
    try:
        request.message.requeue()
    except Exception as error:  # noqa: BLE001 -- its connection is gone: it is back already
        log.debug("a wake-up was not handed back (%s)", type(error).__name__)


def _rank(args: tuple[Any, ...]) -> int:
    # `Request.execute_using_pool`: name, id, the request's headers with where it came from, ...
    try:
        queue = args[2]["delivery_info"]["routing_key"]
    except (IndexError, KeyError, TypeError):
        return len(_RANK)
    return _RANK.get(queue, len(_RANK))

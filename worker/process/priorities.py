"""The order in which work starts: `live` before `bulk`, and live jobs and deliveries in turns.

From Redis a process takes wake-ups only for free slots, from the first list in the order of lanes
(`Turns`). RabbitMQ delivers some in advance from each queue: these wait in one queue, ordered by
lane (`rank`; `worker.process.pool`). So a live job starts at the next free slot, and results are
sent however many live jobs wait. When the worker stops, queued wake-ups go back to the broker at
once, for other workers.

Only a few bulk jobs at a time wait for their claims (`Turnstile`): live jobs that start beside them
share the turns of the loop with them, and a turn with much work is long.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from kombu.utils.scheduling import priority_cycle

from worker.broker.wakeups import QUEUES, REQUESTS

#: Accepting a job is quick, and its producer waits for the answer. Live jobs and deliveries are
#: started in order of arrival, so that results are not delayed by live jobs.
_RANK = {REQUESTS: 0, QUEUES["live"]: 1, QUEUES["delivery"]: 1, QUEUES["bulk"]: 2}
REQUEST = _RANK[REQUESTS]
"""The rank of requests."""

BULK = _RANK[QUEUES["bulk"]]
"""The rank from which work must pass the turnstile."""

#: The most bulk jobs that wait for their claims. With more, a live job beside an import starts
#: later; with fewer, fewer commands share a round trip to the ledger, and the import takes longer:
#: `python -m benchmarks.imports`.
PLACES = 8

#: The queues that take turns.
_TURNS = frozenset({QUEUES["live"], QUEUES["delivery"]})


class Turns(priority_cycle):  # type: ignore[misc]
    """The Redis lists in their order; of live jobs and deliveries, the one not used last is
    next."""

    def rotate(self, last_used: str) -> None:
        """Called with the list that messages were just taken from."""
        if last_used not in _TURNS:
            return
        places = [place for place, item in enumerate(self.items) if item in _TURNS]
        turns = sorted((self.items[place] for place in places), key=last_used.__eq__)
        for place, item in zip(places, turns, strict=True):
            self.items[place] = item


class Turnstile:
    """Limits bulk jobs: each counts from its start until its claim is answered.

    Used by one loop.
    """

    def __init__(self, places: int = PLACES) -> None:
        self._places = places
        self._inside: set[asyncio.Task[None]] = set()
        self.on_free: Callable[[], None] = lambda: None
        """Called when a place becomes free."""

    @property
    def full(self) -> bool:
        """Whether no job may enter now."""
        return len(self._inside) >= self._places

    def enter(self, task: asyncio.Task[None]) -> None:
        """A job's task starts."""
        self._inside.add(task)
        # If it ends before `passed`.
        task.add_done_callback(self._leave)

    def passed(self) -> None:
        """The current task's claim was answered."""
        task = asyncio.current_task()
        if task is not None:
            self._leave(task)

    def _leave(self, task: asyncio.Task[None]) -> None:
        if task in self._inside:
            self._inside.remove(task)
            self.on_free()


def rank(args: tuple[Any, ...]) -> int:
    """The rank of a request that is given to a pool."""
    # A wake-up's request, or what `Request.execute_using_pool` gives: name, id, headers with the
    # origin, ...
    try:
        info = args[0].message.delivery_info if len(args) == 1 else args[2]["delivery_info"]
        queue = info["routing_key"]
    except (IndexError, KeyError, TypeError):
        return len(_RANK)
    return _RANK.get(queue, len(_RANK))

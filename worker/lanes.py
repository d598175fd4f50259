"""The order in which work starts: `live` before `bulk`, and a turn each for live and deliveries.

From Redis a process takes wake-ups only for free slots, of the first of the lanes' lists first
(`Turns`). RabbitMQ sends some ahead, for each queue its share: these stand in one line, ordered by
lane (`rank`; `worker.pool`). So a live job starts at the next slot that comes free, and results go
out however many live jobs wait. When the worker stops, what still stands in line goes back to the
broker at once, for others to start.

Of bulk jobs, few at a time are on their way from the line to the provider (`Turnstile`): whoever
starts beside them takes turns with them in the loop, and where there is much to do a turn is long.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from kombu.utils.scheduling import priority_cycle

from worker.wakeups import DOOR, QUEUES

#: Accepting a job is quick, and its producer is told when it is done. What came first goes first
#: among live jobs and deliveries: a result that nobody hears of helps nobody.
_RANK = {DOOR: 0, QUEUES["live"]: 1, QUEUES["delivery"]: 1, QUEUES["bulk"]: 2}
BULK = _RANK[QUEUES["bulk"]]
"""The rank from which on work passes the turnstile."""

#: Bulk jobs that wait for their claims at a time. With more, a live job beside an import starts
#: later; with fewer, the ledger is asked for less at a time, and the import takes longer:
#: `python -m benchmarks.imports`.
PLACES = 8

#: The queues that take turns.
_TURNS = frozenset({QUEUES["live"], QUEUES["delivery"]})


class Turns(priority_cycle):  # type: ignore[misc]
    """The Redis lists in their order; of live jobs and deliveries, those that waited go next."""

    def rotate(self, last_used: str) -> None:
        """Called with the list that messages were just taken from."""
        if last_used not in _TURNS:
            return
        places = [place for place, item in enumerate(self.items) if item in _TURNS]
        turns = sorted((self.items[place] for place in places), key=last_used.__eq__)
        for place, item in zip(places, turns, strict=True):
            self.items[place] = item


class Turnstile:
    """What bulk jobs pass one by one: each is in it from its start until its claim is answered.

    Used by one loop.
    """

    def __init__(self, places: int = PLACES) -> None:
        self._places = places
        self._inside: set[asyncio.Task[None]] = set()
        self.told: Callable[[], None] = lambda: None
        """Called when a place has come free."""

    @property
    def full(self) -> bool:
        """Whether no job may go in now."""
        return len(self._inside) >= self._places

    def enter(self, task: asyncio.Task[None]) -> None:
        """A job's task starts."""
        self._inside.add(task)
        # Should it end before it has passed.
        task.add_done_callback(self._leave)

    def passed(self) -> None:
        """The current task's claim is answered."""
        task = asyncio.current_task()
        if task is not None:
            self._leave(task)

    def _leave(self, task: asyncio.Task[None]) -> None:
        if task in self._inside:
            self._inside.remove(task)
            self.told()


def rank(args: tuple[Any, ...]) -> int:
    """The place in line of what a pool is given to apply."""
    # `Request.execute_using_pool`: name, id, the request's headers with where it came from, ...
    try:
        queue = args[2]["delivery_info"]["routing_key"]
    except (IndexError, KeyError, TypeError):
        return len(_RANK)
    return _RANK.get(queue, len(_RANK))

"""The order in which the Redis lists are read."""

import pytest

from worker.broker.wakeups import QUEUES, REQUESTS
from worker.process.priorities import Turns

LIVE, DELIVERIES, BULK = QUEUES["live"], QUEUES["delivery"], QUEUES["bulk"]


def drained(waiting: dict[str, int], turns: int) -> list[str]:
    """The list from which BRPOP takes each of this number of messages."""
    waiting = dict(waiting)
    order = Turns([REQUESTS, *QUEUES.values()])
    taken = []
    for _ in range(turns):
        queues = order.consume(4)
        first = next(queue for queue in queues if waiting.get(queue))
        waiting[first] -= 1
        order.rotate(first)
        taken.append(first)
    return taken


def test_live_jobs_and_deliveries_take_turns() -> None:
    """Deliveries continue, however many live jobs wait."""
    assert drained({LIVE: 9, DELIVERIES: 9}, 4) == [LIVE, DELIVERIES, LIVE, DELIVERIES]


def test_bulk_comes_last() -> None:
    """A bulk job is taken when no live job and no delivery waits."""
    waiting = {BULK: 9, LIVE: 1, DELIVERIES: 2}
    assert drained(waiting, 5) == [LIVE, DELIVERIES, DELIVERIES, BULK, BULK]


@pytest.mark.parametrize("queue", [LIVE, DELIVERIES, BULK])
def test_the_entry_point_is_always_first(queue: str) -> None:
    """Accepting a job is quick, and its producer waits for it."""
    assert drained({REQUESTS: 2, queue: 9}, 3) == [REQUESTS, REQUESTS, queue]

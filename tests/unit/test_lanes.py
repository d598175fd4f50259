"""The order in which Redis lists are looked at."""

import pytest

from worker.lanes import Turns
from worker.wakeups import DOOR, QUEUES

LIVE, DELIVERIES, BULK = QUEUES["live"], QUEUES["delivery"], QUEUES["bulk"]


def drained(waiting: dict[str, int], turns: int) -> list[str]:
    """Which list each of so many messages is taken from, as BRPOP takes them."""
    waiting = dict(waiting)
    order = Turns([DOOR, *QUEUES.values()])
    taken = []
    for _ in range(turns):
        queues = order.consume(4)
        first = next(queue for queue in queues if waiting.get(queue))
        waiting[first] -= 1
        order.rotate(first)
        taken.append(first)
    return taken


def test_live_jobs_and_deliveries_take_turns() -> None:
    """However many live jobs wait, results go out."""
    assert drained({LIVE: 9, DELIVERIES: 9}, 4) == [LIVE, DELIVERIES, LIVE, DELIVERIES]


def test_bulk_comes_last() -> None:
    """It is taken when no live job and no delivery waits."""
    waiting = {BULK: 9, LIVE: 1, DELIVERIES: 2}
    assert drained(waiting, 5) == [LIVE, DELIVERIES, DELIVERIES, BULK, BULK]


@pytest.mark.parametrize("queue", [LIVE, DELIVERIES, BULK])
def test_the_door_is_always_first(queue: str) -> None:
    """To accept a job is quick, and its producer waits for it."""
    assert drained({DOOR: 2, queue: 9}, 3) == [DOOR, DOOR, queue]

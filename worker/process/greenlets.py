"""Connects blocking code to the event loop: a function runs in a greenlet, and switches while it
waits.

Celery's tracer is such code: it calls a task and does more when the task returns. In a greenlet of
the I/O loop's own thread it can stay unchanged, a hundred at a time, without threads.
"""

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from greenlet import getcurrent, greenlet

T = TypeVar("T")


class _Carried(greenlet):  # type: ignore[misc]
    """Runs a function; the loop's greenlet awaits in its place."""


async def carry(function: Callable[..., T], *args: Any) -> T:
    """Run a function, which may call `wait`, as part of the current task."""
    carried = _Carried(function)
    # One context for both, so that each sees what the other sets (a trace, a log's fields).
    carried.gr_context = getcurrent().gr_context
    came: Any = carried.switch(*args)
    while not carried.dead:
        try:
            answer = await came
        except BaseException as error:  # noqa: BLE001 -- raised where it is waited for
            came = carried.throw(error)
        else:
            came = carried.switch(answer)
    found: T = came
    return found


def carried() -> bool:
    """Whether this code runs in `carry`, and so must not block."""
    return isinstance(getcurrent(), _Carried)


def wait(work: Coroutine[Any, Any, T]) -> T:
    """For a function that runs in `carry`: the result of `work`, while the loop does other
    things."""
    parent = getcurrent().parent
    assert parent is not None  # noqa: S101 -- only a thread's first greenlet has none
    found: T = parent.switch(work)
    return found

"""From code that blocks to the loop: a function runs in a greenlet, and gives way while it waits.

Celery's tracer is such code: it calls a task and does more when that returns. In a greenlet of the
I/O loop's own thread it stays as it is, a hundred at a time, with no thread to hand a job to.
"""

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from greenlet import getcurrent, greenlet

T = TypeVar("T")


class _Carried(greenlet):  # type: ignore[misc]
    """Runs a function; what it waits for, the loop's greenlet awaits in its place."""


async def carry(function: Callable[..., T], *args: Any) -> T:
    """Run a function, which may call `wait`, as part of the current task."""
    carried = _Carried(function)
    # One context for both, so that what either sets (a trace, a log's fields) both see.
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
    """In a function that is carried: what `work` comes to, while the loop does other things."""
    parent = getcurrent().parent
    assert parent is not None  # noqa: S101 -- only a thread's first greenlet has none
    found: T = parent.switch(work)
    return found

"""The steps of a stopping worker's end: none keeps the others from theirs."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
from structlog.testing import capture_logs

from worker.process.runtime import _in_time


async def _ends() -> None:
    pass


async def _fails() -> None:
    raise OSError


async def _hangs() -> None:
    await asyncio.Event().wait()


async def _loses_its_cancellation() -> None:
    with suppress(asyncio.CancelledError):
        await asyncio.Event().wait()
    await asyncio.Event().wait()


async def _is_cancelled() -> None:
    raise asyncio.CancelledError


@pytest.mark.parametrize(
    ("step", "fault"),
    [
        (_ends, None),
        (_fails, "OSError"),
        (_hangs, "TimeoutError"),
        (_loses_its_cancellation, "TimeoutError"),
        (_is_cancelled, "CancelledError"),
    ],
)
def test_a_step_that_does_not_end_in_order_is_named(
    step: Callable[[], Awaitable[None]], fault: str | None
) -> None:
    """And the next one follows."""

    async def main() -> None:
        await _in_time(asyncio.get_running_loop().time() + 0.05, "a step", step())

    with capture_logs() as logs:
        asyncio.run(asyncio.wait_for(main(), 100))
    assert [(one["what"], one["error"]) for one in logs] == ([("a step", fault)] if fault else [])


def test_the_last_step_has_time_when_the_others_took_all() -> None:
    """Closing takes milliseconds as a rule."""
    closed: list[bool] = []

    async def close() -> None:
        await asyncio.sleep(0)
        closed.append(True)

    with capture_logs() as logs:
        asyncio.run(_in_time(0, "ledger", close()))
    assert closed == [True]
    assert logs == []

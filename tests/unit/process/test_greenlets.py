"""Functions that wait inside greenlets, all on one loop in one thread."""

import asyncio
import threading
from contextvars import ContextVar
from typing import Any

import pytest

from worker.process import greenlets

NOTE: ContextVar[str] = ContextVar("note", default="")


async def answer(value: Any) -> Any:
    """Return a value after one turn of the loop."""
    await asyncio.sleep(0)
    return value


def test_a_function_gets_what_it_waits_for_and_its_caller_what_it_gives() -> None:
    """To the function each wait looks like a blocking call."""

    def added(first: int, second: int) -> int:
        return int(greenlets.wait(answer(first))) + int(greenlets.wait(answer(second)))

    assert asyncio.run(greenlets.carry(added, 3, 4)) == 7


def test_an_error_is_raised_where_it_is_waited_for() -> None:
    """The function may catch it there."""

    async def fails() -> None:
        await asyncio.sleep(0)
        raise KeyError("not there")

    def caught() -> str:
        with pytest.raises(KeyError):
            greenlets.wait(fails())
        return "caught"

    assert asyncio.run(greenlets.carry(caught)) == "caught"
    with pytest.raises(KeyError):
        asyncio.run(greenlets.carry(greenlets.wait, fails()))


def test_while_one_waits_others_go_on() -> None:
    """A hundred functions that wait for each other, in one thread."""
    threads = set()

    async def everybody() -> list[int]:
        met = asyncio.Barrier(100)

        def met_all(number: int) -> int:
            greenlets.wait(met.wait())
            threads.add(threading.get_ident())
            return number

        return await asyncio.gather(*(greenlets.carry(met_all, number) for number in range(100)))

    assert asyncio.run(everybody()) == list(range(100))
    assert len(threads) == 1


def test_a_function_and_what_it_waits_for_share_their_context() -> None:
    """A call continues the trace of the task that waits for it, and of no other task."""

    async def noted() -> str:
        return NOTE.get()

    def noting(text: str) -> Any:
        NOTE.set(text)
        return greenlets.wait(noted())

    async def both() -> list[Any]:
        return await asyncio.gather(greenlets.carry(noting, "a"), greenlets.carry(noting, "b"))

    assert asyncio.run(both()) == ["a", "b"]


def test_a_task_that_is_given_up_ends_its_function() -> None:
    """It is cancelled at its wait, so that it can clean up."""
    ended = []

    def waits() -> None:
        try:
            greenlets.wait(asyncio.sleep(3600))
        finally:
            ended.append(True)

    async def given_up() -> None:
        task = asyncio.ensure_future(greenlets.carry(waits))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(given_up())
    assert ended == [True]


def test_who_is_not_carried_knows() -> None:
    """It returns false there, so that a thread of another pool blocks instead."""
    assert not greenlets.carried()
    assert asyncio.run(greenlets.carry(greenlets.carried))

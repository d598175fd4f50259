"""Functions that wait, carried by one loop in one thread."""

import asyncio
import threading
from contextvars import ContextVar
from typing import Any

import pytest

from worker import bridge

NOTE: ContextVar[str] = ContextVar("note", default="")


async def answer(value: Any) -> Any:
    """Something that takes a turn of the loop."""
    await asyncio.sleep(0)
    return value


def test_a_function_gets_what_it_waits_for_and_its_caller_what_it_gives() -> None:
    """As if each wait were a call that blocks."""

    def added(first: int, second: int) -> int:
        return int(bridge.wait(answer(first))) + int(bridge.wait(answer(second)))

    assert asyncio.run(bridge.carry(added, 3, 4)) == 7


def test_an_error_is_raised_where_it_is_waited_for() -> None:
    """And may be caught there."""

    async def fails() -> None:
        await asyncio.sleep(0)
        raise KeyError("not there")

    def caught() -> str:
        with pytest.raises(KeyError):
            bridge.wait(fails())
        return "caught"

    assert asyncio.run(bridge.carry(caught)) == "caught"
    with pytest.raises(KeyError):
        asyncio.run(bridge.carry(bridge.wait, fails()))


def test_while_one_waits_others_go_on() -> None:
    """A hundred that wait for each other, in one thread."""
    threads = set()

    async def everybody() -> list[int]:
        met = asyncio.Barrier(100)

        def met_all(number: int) -> int:
            bridge.wait(met.wait())
            threads.add(threading.get_ident())
            return number

        return await asyncio.gather(*(bridge.carry(met_all, number) for number in range(100)))

    assert asyncio.run(everybody()) == list(range(100))
    assert len(threads) == 1


def test_a_function_and_what_it_waits_for_share_their_context() -> None:
    """A trace that a task begins is continued by the call that it waits for; by nobody else's."""

    async def noted() -> str:
        return NOTE.get()

    def noting(text: str) -> Any:
        NOTE.set(text)
        return bridge.wait(noted())

    async def both() -> list[Any]:
        return await asyncio.gather(bridge.carry(noting, "a"), bridge.carry(noting, "b"))

    assert asyncio.run(both()) == ["a", "b"]


def test_a_task_that_is_given_up_ends_its_function() -> None:
    """Cancelled where it waits, so that it can put things in order."""
    ended = []

    def waits() -> None:
        try:
            bridge.wait(asyncio.sleep(3600))
        finally:
            ended.append(True)

    async def given_up() -> None:
        task = asyncio.ensure_future(bridge.carry(waits))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(given_up())
    assert ended == [True]


def test_who_is_not_carried_knows() -> None:
    """A thread of another pool blocks instead."""
    assert not bridge.carried()
    assert asyncio.run(bridge.carry(bridge.carried))

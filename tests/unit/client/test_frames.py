"""Errors that leave the client: their frames are emptied, and nobody else's."""

import asyncio
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

from regworker.frames import emptied, guarded


def test_a_frame_that_goes_on_is_not_emptied() -> None:
    """A task that has caught an error and tries again keeps its variables, and goes on."""
    caught: list[ValueError] = []

    def fails() -> None:
        secret = "of nobody any more"
        raise ValueError(len(secret))

    async def tries(goes_on: asyncio.Event) -> str:
        secret = "open sesame"
        try:
            fails()
        except ValueError as error:
            caught.append(error)
        await goes_on.wait()
        return secret

    async def go() -> None:
        goes_on = asyncio.Event()
        task = asyncio.create_task(tries(goes_on))
        await asyncio.sleep(0)
        emptied(caught[0])
        frames = [one for one, _ in traceback.walk_tb(caught[0].__traceback__)]
        assert [dict(one.f_locals).get("secret") for one in frames] == ["open sesame", None]
        goes_on.set()
        assert await task == "open sesame"

    asyncio.run(asyncio.wait_for(go(), 10))


def test_a_value_that_is_computed_once_locks_nothing() -> None:
    """Before Python 3.12 a `cached_property` has one lock for all objects of a class."""
    begun, goes_on = threading.Event(), threading.Event()

    @guarded
    class Slow:
        def __init__(self, *, waits: bool) -> None:
            self.waits = waits

        @cached_property
        def value(self) -> object:
            if self.waits:
                begun.set()
                assert goes_on.wait(60)
            return object()

    with ThreadPoolExecutor(2) as threads:
        slow = threads.submit(lambda: Slow(waits=True).value)
        assert begun.wait(60)
        quick = Slow(waits=False)
        try:
            assert threads.submit(lambda: quick.value).result(10) is quick.value
        finally:
            goes_on.set()
        slow.result(60)

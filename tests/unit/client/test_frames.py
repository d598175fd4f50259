"""Errors that leave the client: their frames are emptied, and nobody else's."""

import asyncio
import traceback

from regworker.frames import emptied


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

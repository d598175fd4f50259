"""End everything in a test's event loop, so that none of its sockets is left open."""

import asyncio
from collections.abc import MutableMapping
from typing import Any


async def end_all() -> None:
    """Cancel every other task of this loop, and close every connection.

    A task that is cancelled before its first step never runs the `finally` that would close its
    connection, and `close()` never closes a connection whose peer doesn't read. So the loop's
    own table of connections shows what is left."""
    for _ in range(10):  # connections that were just accepted get their tasks in these turns
        await asyncio.sleep(0)
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    transports: MutableMapping[int, Any] = asyncio.get_running_loop()._transports  # type: ignore[attr-defined]
    for transport in list(transports.values()):
        transport.abort()
    for _ in range(2):  # an aborted connection is closed in the next turn
        await asyncio.sleep(0)

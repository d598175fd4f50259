"""End everything in a test's event loop, so that none of its sockets is left open."""

import asyncio
from collections.abc import MutableMapping
from typing import Any


async def stop_accepting(*servers: asyncio.Server) -> None:
    """Close servers, once the connections that they have just accepted have their tasks.

    `close()` alone would lose the socket of a connection that was accepted in the same turn."""
    loop = asyncio.get_running_loop()
    for server in servers:
        for listener in server.sockets:
            loop.remove_reader(listener.fileno())
    await _settle()
    for server in servers:
        server.close()


async def _settle() -> None:
    for _ in range(10):  # connections that were just accepted get their tasks in these turns
        await asyncio.sleep(0)


async def end_all(*servers: asyncio.Server) -> None:
    """Close these servers, cancel every other task of this loop, and close every connection.

    A task that is cancelled before its first step never runs the `finally` that would close its
    connection, and `close()` never closes a connection whose peer doesn't read. So the loop's
    own table of connections shows what is left."""
    await stop_accepting(*servers)
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    transports: MutableMapping[int, Any] = asyncio.get_running_loop()._transports  # type: ignore[attr-defined]
    for transport in list(transports.values()):
        transport.abort()
    for _ in range(2):  # an aborted connection is closed in the next turn
        await asyncio.sleep(0)

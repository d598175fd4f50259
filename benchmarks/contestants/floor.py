"""The floor: an asyncio loop that makes the calls and nothing else: no queue, no result store.

Reads a number of calls per line from stdin, makes them with the same concurrency as all others, and
reports when it is done.
"""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable

import aiohttp

from benchmarks.contestants import SLOTS, calling
from benchmarks.contestants.calling import Body
from benchmarks.support.jobs import body

Call = Callable[[Body], Awaitable[Body]]


async def with_aiohttp(session: aiohttp.ClientSession, given: Body) -> Body:
    """The same call with aiohttp alone."""
    async with session.post(calling.url(), json=given) as response:
        response.raise_for_status()
        [record] = await response.json()
    return {"customer_box_id": record["customer_box_id"], "customer_key": record["customer_key"]}


async def run(make: Call, count: int) -> None:
    """Make so many calls."""
    numbers = iter(range(count))

    async def slot() -> None:
        for number in numbers:
            await make(body(number))

    await asyncio.gather(*(slot() for _ in range(SLOTS)))


async def serve() -> None:
    """Make as many calls as each line says, until the end of input."""
    if os.environ.get("BENCH_CALL") == "aiohttp":
        session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

        async def make(given: Body) -> Body:
            return await with_aiohttp(session, given)

    else:
        client = calling.async_client()

        async def make(given: Body) -> Body:
            return await calling.call(client, given)

    while line := await asyncio.to_thread(sys.stdin.readline):
        await run(make, int(line))
        print("done", flush=True)
    os._exit(0)


def main() -> None:
    """Run until stdin ends."""
    asyncio.run(serve())

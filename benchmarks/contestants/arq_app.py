"""arq, with the client made when the worker starts (its documentation's first example)."""

import asyncio
from collections.abc import Sequence
from typing import Any, ClassVar

from arq import create_pool
from arq.connections import RedisSettings

from benchmarks.contestants import SLOTS, calling
from benchmarks.contestants.calling import Body

#: Jobs enqueued at a time: enough to spread the cost of the round trip.
BATCH = 100


async def startup(ctx: dict[str, Any]) -> None:
    """Open what tasks share."""
    ctx["client"] = calling.async_client()


async def register(ctx: dict[str, Any], body: Body) -> Body:
    """Register a customer."""
    return await calling.call(ctx["client"], body)


class WorkerSettings:
    """What `arq` reads."""

    functions: ClassVar = [register]
    on_startup = startup
    redis_settings = RedisSettings.from_dsn(calling.redis_url())
    max_jobs = SLOTS


class Client:
    """Enqueues."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._pool = self._loop.run_until_complete(create_pool(WorkerSettings.redis_settings))

    def enqueue(self, bodies: Sequence[Body]) -> list[str]:
        """With `enqueue_job`, many at a time; returns the keys of the results."""
        return self._loop.run_until_complete(self._enqueue(bodies))

    async def _enqueue(self, bodies: Sequence[Body]) -> list[str]:
        keys = []
        for start in range(0, len(bodies), BATCH):
            batch = bodies[start : start + BATCH]
            jobs = await asyncio.gather(
                *(self._pool.enqueue_job("register", body) for body in batch)
            )
            keys += [f"arq:result:{job.job_id}" for job in jobs if job is not None]
        return keys


def client() -> Client:
    """A client in this process."""
    return Client()

"""taskiq, with the stream broker and the result backend of taskiq-redis (its README)."""

import asyncio
from collections.abc import Sequence

import httpx
from taskiq import TaskiqEvents, TaskiqState
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from benchmarks.contestants import calling
from benchmarks.contestants.calling import Body

#: Jobs enqueued at a time: enough to spread the cost of the round trip.
BATCH = 100

results: RedisAsyncResultBackend[Body] = RedisAsyncResultBackend(
    redis_url=calling.redis_url(), prefix_str="result"
)
broker = RedisStreamBroker(url=calling.redis_url()).with_result_backend(results)

_client: httpx.AsyncClient


@broker.on_event(TaskiqEvents.WORKER_STARTUP)
async def _start(_: TaskiqState) -> None:
    global _client
    _client = calling.async_client()


@broker.task
async def register(body: Body) -> Body:
    """Register a customer."""
    return await calling.call(_client, body)


class Client:
    """Enqueues."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(broker.startup())

    def enqueue(self, bodies: Sequence[Body]) -> list[str]:
        """With `kiq`, many at a time; returns the keys of the results."""
        return self._loop.run_until_complete(self._enqueue(bodies))

    async def _enqueue(self, bodies: Sequence[Body]) -> list[str]:
        keys = []
        for start in range(0, len(bodies), BATCH):
            tasks = await asyncio.gather(*map(register.kiq, bodies[start : start + BATCH]))
            keys += [f"result:{task.task_id}" for task in tasks]
        return keys


def client() -> Client:
    """A client in this process."""
    return Client()

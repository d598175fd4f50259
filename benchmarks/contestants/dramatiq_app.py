"""dramatiq, with Redis as broker and result backend ("User Guide": Results; Asyncio)."""

from collections.abc import Iterable

import dramatiq
import httpx
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware.asyncio import AsyncIO
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from benchmarks.contestants import calling
from benchmarks.contestants.calling import Body

broker = RedisBroker(url=calling.redis_url())
results = RedisBackend(url=calling.redis_url())
broker.add_middleware(Results(backend=results))
if calling.tuned():
    broker.add_middleware(AsyncIO())
dramatiq.set_broker(broker)

if calling.tuned():
    _client: httpx.AsyncClient | None = None

    @dramatiq.actor(store_results=True)
    async def register(body: Body) -> Body:
        """Register a customer, in dramatiq's own event loop."""
        global _client
        _client = _client or calling.async_client()
        return await calling.call(_client, body)

else:
    call = calling.caller()

    @dramatiq.actor(store_results=True)
    def register(body: Body) -> Body:
        """Register a customer."""
        return call(body)


class Client:
    """Enqueues."""

    def enqueue(self, bodies: Iterable[Body]) -> list[str]:
        """With `send`; returns the keys of the results."""
        return [str(results.build_message_key(register.send(body))) for body in bodies]


def client() -> Client:
    """A client in this process."""
    return Client()

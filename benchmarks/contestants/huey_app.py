"""huey, with results in Redis that expire, like all others' ("Huey object": RedisExpireHuey)."""

from collections.abc import Iterable

from huey import RedisExpireHuey

from benchmarks.contestants.calling import Body, caller, redis_url

huey = RedisExpireHuey("bench", url=redis_url())
call = caller()


@huey.task()  # type: ignore[untyped-decorator]
def register(body: Body) -> Body:
    """Register a customer."""
    return call(body)


class Client:
    """Enqueues."""

    def enqueue(self, bodies: Iterable[Body]) -> list[str]:
        """By calling the task; returns the keys of the results."""
        return [f"huey.r.bench.{register(body).id}" for body in bodies]


def client() -> Client:
    """A client in this process."""
    return Client()

"""RQ: a pool of workers, each of which forks for every job ("Workers": Performance Notes).

Modules are imported before the fork, as its documentation advises. Tuned: its `SimpleWorker`, which
does not fork; its documentation keeps that for very short jobs.
"""

from collections.abc import Sequence

from redis import Redis
from rq import Queue, SimpleWorker, Worker
from rq.worker_pool import WorkerPool

from benchmarks.contestants import PREFORKED
from benchmarks.contestants.calling import Body, caller, redis_url, tuned

#: Jobs enqueued at a time: enough to spread the cost of the round trip.
BATCH = 100

call = caller()


def register(body: Body) -> Body:
    """Register a customer."""
    return call(body)


def main() -> None:
    """Run the workers."""
    kind = SimpleWorker if tuned() else Worker
    redis = Redis.from_url(redis_url())
    WorkerPool(["bench"], connection=redis, num_workers=PREFORKED, worker_class=kind).start()


class Client:
    """Enqueues."""

    def __init__(self) -> None:
        self._queue = Queue("bench", connection=Redis.from_url(redis_url()))

    def enqueue(self, bodies: Sequence[Body]) -> list[str]:
        """With `enqueue_many`; returns the keys of the results."""
        keys = []
        for start in range(0, len(bodies), BATCH):
            jobs = self._queue.enqueue_many(
                [Queue.prepare_data(register, (body,)) for body in bodies[start : start + BATCH]]
            )
            keys += [f"rq:results:{job.id}" for job in jobs]
        return keys


def client() -> Client:
    """A client in this process."""
    return Client()

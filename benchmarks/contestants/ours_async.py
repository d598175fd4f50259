"""Ours from asyncio: `AsyncProducer.enqueue_many`."""

import asyncio
from collections.abc import Sequence

from benchmarks.contestants.calling import Body
from benchmarks.support.jobs import job, number_of
from regworker.producer import AsyncProducer, Receipt


class Client:
    """Enqueues, in a loop of its own."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._producer = AsyncProducer()

    def enqueue(self, bodies: Sequence[Body]) -> list[str]:
        """With `enqueue_many`; returns the jobs' ids."""
        return self._runner.run(self._enqueue(bodies))

    async def _enqueue(self, bodies: Sequence[Body]) -> list[str]:
        jobs = [job(number_of(one)) for one in bodies]
        receipts = [one async for one in self._producer.enqueue_many(jobs)]
        return [one.job_id for one in receipts if isinstance(one, Receipt)]


def client() -> Client:
    """A client in this process."""
    return Client()

"""Ours: `Producer.enqueue_many`, and the worker with its production command.

Ledger, leases, sealing, idempotency, results stream, and a webhook for one job in ten.
"""

from collections.abc import Sequence

from benchmarks.contestants.calling import Body
from benchmarks.support.jobs import job, number_of
from regworker.producer import Producer, Receipt


class Client:
    """Enqueues. Our jobs contain no credentials: each is made from its number."""

    def __init__(self) -> None:
        self._producer = Producer()

    def enqueue(self, bodies: Sequence[Body]) -> list[str]:
        """With `enqueue_many`; returns the jobs' ids."""
        jobs = [job(number_of(one)) for one in bodies]
        receipts = list(self._producer.enqueue_many(jobs))
        return [one.job_id for one in receipts if isinstance(one, Receipt)]


def client() -> Client:
    """A client in this process."""
    return Client()

"""Ours: `Producer.enqueue_many`, and the worker as it is started in production.

Ledger, leases, sealing, idempotency, results stream, and a webhook for one job in ten.
"""

from collections.abc import Sequence

from benchmarks.contestants.calling import Body
from benchmarks.jobs import job, number_of
from worker.producer import Producer, Receipt


class Client:
    """Enqueues. A job of ours holds no credentials: it is made anew, by its number."""

    def __init__(self) -> None:
        self._producer = Producer()

    def enqueue(self, bodies: Sequence[Body]) -> list[str]:
        """By `enqueue_many`; the jobs' ids."""
        jobs = [job(number_of(one)) for one in bodies]
        receipts = list(self._producer.enqueue_many(jobs))
        return [one.job_id for one in receipts if isinstance(one, Receipt)]


def client() -> Client:
    """A client in this process."""
    return Client()

"""Door 1: enqueue registration jobs from Python, and ask what became of them.

    from worker.producer import Producer

    producer = Producer()                        # settings from REGWORKER_*
    receipt = producer.enqueue({"provider": "skypostal", "idempotency_key": "crm-8841",
                                "registration": {...}})
    event = producer.wait(receipt.job_id, timeout=30)

A producer needs `REGWORKER_REDIS_URL` and `REGWORKER_SEALING_KEYS`, and no provider credentials.
Synchronous, and safe to share between threads.

What it is made of (`front_door.py`: models, Redis, Celery) takes a third of a second to import.
That is done with the first `Producer`, and not for everybody who imports the name.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self

from worker.receipt import Receipt, Refused, Status

if TYPE_CHECKING:
    from worker.job import Job
    from worker.settings import Settings

__all__ = ["Producer", "Receipt", "Refused", "Status"]


class Producer:
    """Enqueues jobs. Close it, or use it as a context manager."""

    def __init__(self, settings: "Settings | None" = None) -> None:
        """Connect lazily. `SettingsError` where the settings can't be used."""
        from worker.front_door import FrontDoor

        self._door = FrontDoor(settings)

    @property
    def settings(self) -> "Settings":
        """What it goes by."""
        return self._door.settings

    def enqueue(self, job: "Job | Mapping[str, Any]") -> Receipt:
        """Accept one job. When this returns, the job is in the ledger and will have an outcome.

        Raises `InvalidJob` (every problem at once), `IdempotencyConflict`, `LedgerUnavailable`
        (nothing is known then: enqueue the same job again, its key makes that safe).
        """
        [result] = self.enqueue_many([job])
        if isinstance(result, Refused):
            raise result.error
        return result

    def enqueue_many(
        self, jobs: "Iterable[Job | Mapping[str, Any]]"
    ) -> Iterator[Receipt | Refused]:
        """Accept many jobs, in pipelines of 500; one result each, in order.

        A job that is refused holds up none of the others. Lazy: iterate to enqueue.
        """
        return self._door.enqueue_many(jobs)

    def status(
        self,
        id_: str | None = None,
        *,
        key: str | None = None,
        provider: str = "",
        account: str = "default",
    ) -> Status:
        """Where a job stands, by its id or by (provider, account, key). Raises `UnknownJob`."""
        return self._door.status(id_, key, provider, account)

    def wait(self, id_: str, timeout: float = 60.0) -> dict[str, Any]:
        """Wait for a job's end; its event. Raises `TimeoutError`, `UnknownJob`.

        A job in `review` waits for a person: so does this, until the timeout.
        """
        return self._door.wait(id_, timeout)

    def cancel(self, id_: str) -> Status:
        """Take a job back before anything of it leaves. `JobNotCancellable`, `UnknownJob`."""
        return self._door.cancel(id_)

    def close(self) -> None:
        """Close all connections."""
        self._door.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

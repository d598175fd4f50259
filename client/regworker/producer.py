"""Enqueue registration jobs from Python, and read their status.

    from regworker.producer import Producer         # in asyncio: AsyncProducer, the same awaited

    producer = Producer()                        # settings from REGWORKER_*
    receipt = producer.enqueue({"provider": "skypostal", "idempotency_key": "crm-8841",
                                "registration": {...}})
    event = producer.wait(receipt.job_id, timeout=30)

A producer needs `REGWORKER_REDIS_URL` and `REGWORKER_SEALING_KEYS`, and no provider credentials.

Its modules (models, Redis) take a third of a second to import. The first `Producer` imports them,
not the import of the name.
"""

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self

from regworker.arguments import OfOneProcess, of_kind, seconds, seconds_or_usual, several
from regworker.domain.receipt import Receipt, Refused, Status
from regworker.frames import Lazy, guarded

if TYPE_CHECKING:
    from regworker import Job
    from regworker.settings import Settings
    from regworker.several_ledgers.producer_shells import Away, Result

__all__ = ["AsyncProducer", "Producer", "Receipt", "Refused", "Status"]

#: The default number of seconds that a call may take while the ledger does not answer.
TIMEOUT = 10.0

#: Python warns of a coroutine in the same way: jobs would be lost without a word.
NOT_ITERATED = (
    "enqueue_many was not iterated, so none of its jobs is enqueued: use its results, or "
    "list(producer.enqueue_many(jobs))"
)


@guarded
class Producer(OfOneProcess):
    """Enqueues jobs. Close it, or use it as a context manager. Thread-safe."""

    def __init__(
        self,
        settings: "Settings | None" = None,
        *,
        redis_url: str | None = None,
        sealing_keys: str | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        """Connect lazily. `SettingsError` where the settings can't be used.

        Give `settings`, or values of them: omitted ones are read from `REGWORKER_*`, and a
        `redis_url` given here is the only ledger, whatever `REGWORKER_LEDGERS` says. `timeout`:
        seconds that a call may take while the ledger does not answer; each call can have its own,
        too.
        """
        from regworker.several_ledgers.producer_shells import sync_shell

        patience = seconds(timeout)
        self._shell = sync_shell(_settings(settings, redis_url, sealing_keys), patience)

    @property
    def settings(self) -> "Settings":
        """The settings in use."""
        return self._shell.core.settings

    def enqueue(self, job: "Job | Mapping[str, Any]", *, timeout: float | None = None) -> Receipt:
        """Accept one job. When this returns, the job is in the ledger and will have an outcome.

        Raises `InvalidJob` (every problem at once), `IdempotencyConflict`, `UnreadableRecord`,
        `LedgerUnavailable` (it is unknown whether the job was accepted; enqueue it again, its key
        makes that safe).
        """
        [result] = self._many([job], seconds_or_usual(timeout))
        if isinstance(result, Refused):
            raise result.error
        return result

    def enqueue_many(
        self, jobs: "Iterable[Job | Mapping[str, Any]]", *, timeout: float | None = None
    ) -> Iterator[Receipt | Refused]:
        """Accept many jobs, in pipelines of 500; one result each, in order.

        A refused job does not stop the others. Lazy: iterate to enqueue. `timeout` applies to each
        pipeline.

        If one of several ledgers is away, the others accept their jobs, up to the last. Then its
        error is raised, and results were returned only up to the first job without one. Repeat all
        jobs: those that were accepted are recognized by their keys.
        """
        several(jobs)
        return Lazy(self._many(jobs, seconds_or_usual(timeout)), NOT_ITERATED)

    def _many(
        self, jobs: "Iterable[Job | Mapping[str, Any]]", timeout: float | None
    ) -> Iterator[Receipt | Refused]:
        return self._shell.enqueue_many(jobs, timeout)

    def _each(self, jobs: "Iterable[Job | Mapping[str, Any]]", away: "Away") -> "Iterator[Result]":
        """As `enqueue_many`, for the outbox's relay: the error of one of several ledgers is the
        result of each of its jobs. Ledgers in `away` are not asked again."""
        return self._shell.enqueue_each(jobs, None, away)

    def status(
        self,
        id_: str | None = None,
        *,
        key: str | None = None,
        provider: str = "",
        account: str = "default",
        timeout: float | None = None,
    ) -> Status:
        """The status of a job, by its id or by (provider, account, key).

        Raises `UnknownJob`, `UnreadableRecord`, and `InvalidJob` for an argument that is no text.
        """
        from regworker.core import named

        id_, limit = named(id_, key, provider, account), seconds_or_usual(timeout)
        return self._shell.about(id_, self._shell.core.status(id_), limit)

    def wait(self, id_: str, timeout: float = 60.0) -> dict[str, Any]:
        """Wait for a job's end; return its event. Raises `TimeoutError`, `UnknownJob`.

        A job in `review` waits for a person, and so does this call, until the timeout.
        """
        from regworker.core import identified

        return self._shell.wait(identified(id_), seconds(timeout))

    def cancel(self, id_: str, *, timeout: float | None = None) -> Status:
        """Cancel a job before any request is sent. Raises `JobNotCancellable`, `UnknownJob`."""
        from regworker.core import identified

        id_, limit = identified(id_), seconds_or_usual(timeout)
        return self._shell.about(id_, self._shell.core.cancel(id_), limit)

    def close(self) -> None:
        """Close all connections for good: later calls raise `LedgerUnavailable`."""
        self._shell.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@guarded
class AsyncProducer(OfOneProcess):
    """The same for asyncio: close it by `aclose`, or use it as an async context manager.

    It belongs to the event loop in which it is first used. All its commands share a connection,
    and all calls of `wait` another. A call that is cancelled may have been carried out or not; the
    repeat of an `enqueue` by the same key is safe.
    """

    def __init__(
        self,
        settings: "Settings | None" = None,
        *,
        redis_url: str | None = None,
        sealing_keys: str | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        """As `Producer`."""
        from regworker.several_ledgers.producer_shells import async_shell

        patience = seconds(timeout)
        self._shell = async_shell(_settings(settings, redis_url, sealing_keys), patience)

    @property
    def settings(self) -> "Settings":
        """The settings in use."""
        return self._shell.core.settings

    async def enqueue(
        self,
        job: "Job | Mapping[str, Any]",
        *,
        timeout: float | None = None,  # noqa: ASYNC109 -- as the sync one
    ) -> Receipt:
        """As `Producer.enqueue`."""
        [result] = [one async for one in self._many([job], seconds_or_usual(timeout))]
        if isinstance(result, Refused):
            raise result.error
        return result

    def enqueue_many(
        self, jobs: "Iterable[Job | Mapping[str, Any]]", *, timeout: float | None = None
    ) -> AsyncIterator[Receipt | Refused]:
        """As `Producer.enqueue_many`: `async for`."""
        several(jobs)
        return Lazy(self._many(jobs, seconds_or_usual(timeout)), NOT_ITERATED)

    def _many(
        self, jobs: "Iterable[Job | Mapping[str, Any]]", timeout: float | None
    ) -> AsyncIterator[Receipt | Refused]:
        return self._shell.enqueue_many(jobs, timeout)

    async def status(
        self,
        id_: str | None = None,
        *,
        key: str | None = None,
        provider: str = "",
        account: str = "default",
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> Status:
        """As `Producer.status`."""
        from regworker.core import named

        id_, limit = named(id_, key, provider, account), seconds_or_usual(timeout)
        return await self._shell.about(id_, self._shell.core.status(id_), limit)

    async def wait(self, id_: str, timeout: float = 60.0) -> dict[str, Any]:  # noqa: ASYNC109
        """As `Producer.wait`. Ten thousand may wait at once."""
        from regworker.core import identified

        return await self._shell.wait(identified(id_), seconds(timeout))

    async def cancel(self, id_: str, *, timeout: float | None = None) -> Status:  # noqa: ASYNC109
        """As `Producer.cancel`."""
        from regworker.core import identified

        id_, limit = identified(id_), seconds_or_usual(timeout)
        return await self._shell.about(id_, self._shell.core.cancel(id_), limit)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._shell.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def _settings(
    settings: "Settings | None", redis_url: str | None, sealing_keys: str | None
) -> "Settings":
    from regworker.settings import Settings

    pairs = {"redis_url": redis_url, "sealing_keys": sealing_keys}
    given = {name: value for name, value in pairs.items() if value is not None}
    if settings is None:
        return Settings.load_for_client(**given)
    of_kind("settings", settings, Settings, "Settings (or give redis_url= and sealing_keys=)")
    if given:
        raise TypeError(f"settings holds {' and '.join(given)}, too: give one of them")
    return settings

"""A producer in memory: the real checks and errors, and outcomes as a test plans them."""

import secrets
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from regworker.acceptance import Intake
from regworker.core import identified, late, named, seconds, seconds_or_usual
from regworker.domain.errors import (
    IdempotencyConflict,
    InvalidJob,
    JobNotCancellable,
    LedgerUnavailable,
    Problem,
    UnknownJob,
)
from regworker.domain.event import EventType
from regworker.domain.job import Job
from regworker.domain.receipt import Receipt, Refused, Status
from regworker.domain.states import State
from regworker.forms.registry import Forms
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from regworker.testing.events import Ending, cancelled, event, registered

#: Seconds, the default of the setting.
_DEADLINE = 86400.0


@dataclass
class _Held:
    """A job that the fake accepted."""

    job: Job
    content: bytes = field(repr=False)
    at: datetime
    state: State = State.QUEUED
    event: dict[str, Any] | None = field(default=None, repr=False)
    finished_at: datetime | None = None


class FakeProducer:
    """A replacement for `Producer` in tests; nothing runs, and nothing is awaited.

    It checks jobs as the real one does, knows repeats and conflicts, and ends a job when `wait` is
    called or `finish` says so: as planned for its key, else as `ending` says.
    """

    def __init__(
        self,
        *,
        ending: Ending | None = registered(),  # noqa: B008 -- it is frozen
        accounts: Iterable[str] | None = None,
        endpoints: Iterable[str] | None = None,
    ) -> None:
        """`ending`: of jobs without a plan; None: they stay queued.

        `accounts` (`open2b/default`) and `endpoints` (`results`): what workers serve; a job for
        another one is refused. Default: all are served.
        """
        providers: list[str] = Settings.model_fields["providers"].default
        self._intake = Intake(Forms(providers), Keyring.parse(Keyring.new("fake")), _DEADLINE)
        self._salt = secrets.token_bytes(16)
        self._ending = ending
        self._plans: dict[str, Ending] = {}
        self._accounts = None if accounts is None else frozenset(accounts)
        self._endpoints = None if endpoints is None else frozenset(endpoints)
        self._held: dict[str, _Held] = {}
        self.unavailable = False
        """Set it, and every call raises `LedgerUnavailable`, as while the ledger is away."""

    # -- for the test --------------------------------------------------------------------------

    @property
    def jobs(self) -> list[Job]:
        """The accepted jobs in order, without repeats."""
        return [held.job for held in self._held.values()]

    @property
    def events(self) -> list[dict[str, Any]]:
        """What was published of them so far."""
        return [held.event for held in self._held.values() if held.event is not None]

    def plan(self, key: str, ending: Ending) -> None:
        """Say how the job with this idempotency key will end."""
        self._plans[key] = ending

    def finish(self, key: str, ending: Ending | None = None) -> dict[str, Any]:
        """End the job with this idempotency key now; its event."""
        for held in self._held.values():
            if held.job.idempotency_key == key:
                chosen = ending or self._plans.get(key) or self._ending
                if chosen is None:
                    raise ValueError(f"no ending is planned for the job with key {key!r}")
                return self._end(held, chosen)
        raise UnknownJob(f"no job with key {key!r}")

    # -- for the code under test ---------------------------------------------------------------

    def enqueue(self, job: Job | Mapping[str, Any], *, timeout: float | None = None) -> Receipt:
        """As `Producer.enqueue`."""
        seconds_or_usual(timeout)
        [result] = self.enqueue_many([job])
        if isinstance(result, Refused):
            raise result.error
        return result

    def enqueue_many(
        self, jobs: Iterable[Job | Mapping[str, Any]], *, timeout: float | None = None
    ) -> Iterator[Receipt | Refused]:
        """As `Producer.enqueue_many`."""
        seconds_or_usual(timeout)
        for number, given in enumerate(jobs):
            try:
                yield self._accept(given)
            except (InvalidJob, IdempotencyConflict) as error:
                yield Refused(number, error)

    def _each(
        self, jobs: Iterable[Job | Mapping[str, Any]], _away: object
    ) -> Iterator[Receipt | Refused]:
        return self.enqueue_many(jobs)

    def status(
        self,
        id_: str | None = None,
        *,
        key: str | None = None,
        provider: str = "",
        account: str = "default",
        timeout: float | None = None,
    ) -> Status:
        """As `Producer.status`."""
        seconds_or_usual(timeout)
        return self._status(self._find(named(id_, key, provider, account)))

    def wait(self, id_: str, timeout: float = 60.0) -> dict[str, Any]:
        """As `Producer.wait`; a job that nothing would end raises `TimeoutError` at once."""
        seconds(timeout)
        held = self._find(id_)
        if held.event is None:
            planned = self._plans.get(held.job.idempotency_key) or self._ending
            if planned is not None:
                self._end(held, planned)
        if held.event is None or held.finished_at is None:
            raise late(self._status(held), timeout)
        return deepcopy(held.event)

    def cancel(self, id_: str, *, timeout: float | None = None) -> Status:
        """As `Producer.cancel`."""
        seconds_or_usual(timeout)
        held = self._find(id_)
        if held.state is State.CANCELLED:
            return self._status(held)
        if held.state is not State.QUEUED:
            raise JobNotCancellable(
                f"job {id_} is {held.state}: a request may have been sent already"
            )
        self._end(held, cancelled())
        return self._status(held)

    def close(self) -> None:
        """As `Producer.close`; what the fake saw stays."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- internal ------------------------------------------------------------------------------

    def _accept(self, given: Job | Mapping[str, Any]) -> Receipt:
        job, registration = self._intake.check(given)
        self._reachable()
        self._served(job)
        content = job.content(registration)
        held = self._held.get(job.id)
        repeat = held is not None
        if held is None:
            held = self._held[job.id] = _Held(job, content, datetime.now(UTC))
        elif held.content != content:
            raise IdempotencyConflict(job.id, job.idempotency_key)
        return Receipt(job.id, job.idempotency_key, held.state, held.at, repeat)

    def _served(self, job: Job) -> None:
        problems = []
        if self._accounts is not None and f"{job.provider}/{job.account}" not in self._accounts:
            what = f"{job.account!r} of {job.provider} is not configured at any worker"
            problems.append(Problem("invalid", "account", what))
        if self._endpoints is not None:
            problems += [
                Problem("invalid", "reply_to", f"{name!r} is not configured at any worker")
                for name in job.reply_to
                if name not in self._endpoints
            ]
        if problems:
            raise InvalidJob(problems)

    def _reachable(self) -> None:
        if self.unavailable:
            raise LedgerUnavailable("the ledger did not answer (as this test wants it)")

    def _find(self, id_: str) -> _Held:
        id_ = identified(id_)
        self._reachable()
        found = self._held.get(id_)
        if found is None:
            raise UnknownJob(f"no job {id_}: never accepted here, or past its retention")
        return found

    def _end(self, held: _Held, ending: Ending) -> dict[str, Any]:
        job = held.job
        made = event(
            ending,
            provider=job.provider,
            account=job.account,
            idempotency_key=job.idempotency_key,
            metadata=job.metadata,
            accepted_at=held.at,
        )
        if ending.type is EventType.CORRECTED:
            held.state = State.REJECTED if ending.errors else State.REGISTERED
        else:
            held.state = State(ending.type.word)
        held.event = made.model_dump(mode="json", exclude_none=True)
        held.finished_at = None if held.state is State.REVIEW else made.time
        return held.event

    def _status(self, held: _Held) -> Status:
        job = held.job
        return Status(
            job_id=job.id,
            idempotency_key=job.idempotency_key,
            provider=job.provider,
            account=job.account,
            state=held.state,
            attempts=0 if held.event is None else held.event["data"]["attempts"],
            accepted_at=held.at,
            deadline=job.deadline or held.at + timedelta(seconds=_DEADLINE),
            due=held.at if held.state is State.QUEUED else None,
            finished_at=held.finished_at,
            why="",
            timeline=((held.at, "accepted"),),
            event=deepcopy(held.event),
        )


class AsyncFakeProducer:
    """The same for asyncio: stands in for an `AsyncProducer`. `fake` is what a test looks at."""

    def __init__(self, fake: FakeProducer | None = None) -> None:
        self.fake = fake or FakeProducer()

    async def enqueue(
        self,
        job: Job | Mapping[str, Any],
        *,
        timeout: float | None = None,  # noqa: ASYNC109 -- as the real one
    ) -> Receipt:
        """As `FakeProducer.enqueue`."""
        return self.fake.enqueue(job, timeout=timeout)

    async def enqueue_many(
        self,
        jobs: Iterable[Job | Mapping[str, Any]],
        *,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> AsyncIterator[Receipt | Refused]:
        """As `FakeProducer.enqueue_many`."""
        for result in self.fake.enqueue_many(jobs, timeout=timeout):
            yield result

    async def status(
        self,
        id_: str | None = None,
        *,
        key: str | None = None,
        provider: str = "",
        account: str = "default",
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> Status:
        """As `FakeProducer.status`."""
        return self.fake.status(id_, key=key, provider=provider, account=account, timeout=timeout)

    async def wait(self, id_: str, timeout: float = 60.0) -> dict[str, Any]:  # noqa: ASYNC109
        """As `FakeProducer.wait`."""
        return self.fake.wait(id_, timeout)

    async def cancel(self, id_: str, *, timeout: float | None = None) -> Status:  # noqa: ASYNC109
        """As `FakeProducer.cancel`."""
        return self.fake.cancel(id_, timeout=timeout)

    async def aclose(self) -> None:
        """As `FakeProducer.close`."""
        self.fake.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

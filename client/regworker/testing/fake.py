"""A producer in memory: the real checks and errors, and outcomes as a test plans them."""

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import SecretStr

from regworker.acceptance import Intake
from regworker.arguments import of_kind, seconds, seconds_or_usual
from regworker.core import batches, identified, late, named
from regworker.domain.errors import (
    IdempotencyConflict,
    InvalidJob,
    JobNotCancellable,
    LedgerUnavailable,
    Problem,
    UnknownJob,
)
from regworker.domain.event import EventType
from regworker.domain.job import Job, one_form
from regworker.domain.receipt import Receipt, Refused, Status
from regworker.domain.states import State
from regworker.forms.registry import Forms
from regworker.producer import AsyncProducer, Producer
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from regworker.testing.events import Ending, cancelled, event, registered


@dataclass
class _Held:
    """A job that the fake accepted."""

    job: Job
    content: bytes = field(repr=False)
    at: datetime
    state: State = State.QUEUED
    event: dict[str, Any] | None = field(default=None, repr=False)
    finished_at: datetime | None = None


class FakeProducer(Producer):
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
        settings: Settings | None = None,
    ) -> None:
        """`ending`: of jobs without a plan; None: they stay queued.

        `accounts` (`open2b/default`) and `endpoints` (`results`): what workers serve; a job for
        another one is refused. Default: all are served. `settings`: with the keys that your code
        seals jobs with, for an outbox; default: settings with a key of its own.
        """
        if settings is not None:
            of_kind("settings", settings, Settings, "Settings")
        self._settings = settings or _settings()
        keys = self._settings.sealing_keys.get_secret_value()
        self._intake = Intake(
            Forms(self._settings.providers), Keyring.parse(keys), self._settings.deadline
        )
        self._ending = ending
        self._plans: dict[str, Ending] = {}
        self._accounts = None if accounts is None else frozenset(accounts)
        self._endpoints = None if endpoints is None else frozenset(endpoints)
        self._held: dict[str, _Held] = {}
        self._closed = ""
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
        self._plans[one_form(key)] = ending

    def finish(self, key: str, ending: Ending | None = None) -> dict[str, Any]:
        """End the job with this idempotency key now; its event."""
        for held in self._held.values():
            if held.job.idempotency_key == one_form(key):
                chosen = ending or self._plans.get(one_form(key)) or self._ending
                if chosen is None:
                    raise ValueError(f"no ending is planned for the job with key {key!r}")
                return self._end(held, chosen)
        raise UnknownJob(f"no job with key {key!r}")

    # -- for the code under test ---------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        """As `Producer.settings`: for `Outbox(producer.settings)`, for instance."""
        return self._settings

    def _each(
        self, jobs: Iterable[Job | Mapping[str, Any]], _away: object
    ) -> Iterator[Receipt | Refused]:
        return self._many(jobs, None)

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
        id_, limit = named(id_, key, provider, account), seconds_or_usual(timeout)
        return self._status(self._find(id_, limit))

    def wait(self, id_: str, timeout: float = 60.0) -> dict[str, Any]:
        """As `Producer.wait`; a job that nothing would end raises `TimeoutError` at once."""
        id_, limit = identified(id_), seconds(timeout)
        held = self._find(id_)
        if held.event is None:
            planned = self._plans.get(held.job.idempotency_key) or self._ending
            if planned is not None:
                self._end(held, planned)
        if held.event is None or held.finished_at is None:
            raise late(self._status(held), limit)
        return deepcopy(held.event)

    def cancel(self, id_: str, *, timeout: float | None = None) -> Status:
        """As `Producer.cancel`."""
        id_, limit = identified(id_), seconds_or_usual(timeout)
        held = self._find(id_, limit)
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
        self._closed = "this Producer is closed"

    # -- internal ------------------------------------------------------------------------------

    def _many(
        self, jobs: Iterable[Job | Mapping[str, Any]], timeout: float | None
    ) -> Iterator[Receipt | Refused]:
        for batch in batches(jobs):
            self._open(timeout)
            # All of a batch before its first result, as the real one does.
            yield from [self._result(*one) for one in batch]

    def _result(self, number: int, given: Job | Mapping[str, Any]) -> Receipt | Refused:
        try:
            return self._accept(given)
        except (InvalidJob, IdempotencyConflict) as error:
            return Refused(number, error)

    def _accept(self, given: Job | Mapping[str, Any]) -> Receipt:
        job, registration = self._intake.check(given)
        self._answers()
        self._served(job)
        new = _Held(job, job.content(registration), datetime.now(UTC))
        held = self._held.setdefault(job.id, new)
        if held.content != new.content:
            raise IdempotencyConflict(job.id, job.idempotency_key)
        return Receipt(job.id, job.idempotency_key, held.state, held.at, held is not new)

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

    def _open(self, limit: float | None = None) -> None:
        if self._closed:
            raise LedgerUnavailable(self._closed)
        if limit is not None and limit <= 0:
            raise LedgerUnavailable(f"the ledger did not answer within {limit:g} s")

    def _answers(self) -> None:
        if self.unavailable:
            raise LedgerUnavailable("the ledger did not answer (as this test wants it)")

    def _find(self, id_: str, limit: float | None = None) -> _Held:
        self._open(limit)
        self._answers()
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
            deadline=job.deadline or held.at + timedelta(seconds=self._settings.deadline),
            due=held.at if held.state is State.QUEUED else None,
            finished_at=held.finished_at,
            why="",
            timeline=((held.at, "accepted"),),
            event=deepcopy(held.event),
        )


class AsyncFakeProducer(AsyncProducer):
    """The same for asyncio: stands in for an `AsyncProducer`. `fake` is what a test looks at."""

    def __init__(self, fake: FakeProducer | None = None) -> None:
        self.fake = fake or FakeProducer()
        self._given = fake is not None

    @property
    def settings(self) -> Settings:
        """As `FakeProducer.settings`."""
        return self.fake.settings

    async def _many(
        self,
        jobs: Iterable[Job | Mapping[str, Any]],
        timeout: float | None,  # noqa: ASYNC109 -- as the real one
    ) -> AsyncIterator[Receipt | Refused]:
        for result in self.fake._many(jobs, timeout):
            yield result

    async def status(
        self,
        id_: str | None = None,
        *,
        key: str | None = None,
        provider: str = "",
        account: str = "default",
        timeout: float | None = None,  # noqa: ASYNC109 -- as the real one
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
        """As `AsyncProducer.aclose`; what the fake saw stays. A fake that was given stays open."""
        if not self._given:
            self.fake._closed = "this AsyncProducer is closed"


def _settings() -> Settings:
    """Settings that read no environment: a host's tests need none. No server has this address."""
    return Settings.model_construct(
        redis_url="redis://fake.invalid:6379/0", sealing_keys=SecretStr(Keyring.new("fake"))
    )

"""The asynchronous entry points: requests from a Celery task or from the job stream.

A valid job goes into the ledger. Any other request is reported in an event of its own, `rejected`,
since its sender no longer waits; if another job has its key, that job is not changed.
"""

import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, assert_never

import structlog
from pydantic import ValidationError
from redis.exceptions import ResponseError

from regworker.acceptance import Intake, admitted, facts_of
from regworker.core import fault_of
from regworker.domain.actor import Actor
from regworker.domain.errors import (
    IdempotencyConflict,
    InvalidJob,
    JobForgotten,
    LedgerUnavailable,
    Problem,
    SettingsError,
    UnreadableRecord,
    problems_of,
)
from regworker.domain.event import EventType
from regworker.domain.job import Cancel, Job
from regworker.domain.outcome import Code, Fault
from regworker.domain.request import Entry
from regworker.domain.states import State
from regworker.event_builder import EventBuilder
from regworker.ledger import AsyncLedger, Command
from regworker.ledger.admin import handled, refuse
from regworker.ledger.answers import answer
from regworker.ledger.client import lone
from regworker.ledger.records import (
    UNREADABLE,
    Accepted,
    Conflict,
    Settled,
    Stale,
    Unconfigured,
)
from regworker.ledger.steps import carry_async
from regworker.ledger.streams import edge
from regworker.ledger.transitions import JOBS, LOOKS, cancel, look
from regworker.tracing import enqueuing, own
from worker.telemetry.sampling import Sampled

log = structlog.get_logger(__name__)

#: Seconds during which a message that a broker delivers again is reported only once. Brokers
#: redeliver much sooner.
PUBLISHED_ONCE = 86400.0

#: Reasons in one event, and characters of each: a job may have thousands of unknown fields.
MOST_REASONS = 50
LONGEST_REASON = 500

#: Characters of all reasons in one event.
REASONS = 8192


@dataclass(frozen=True, slots=True)
class Good:
    """A job that can be accepted."""

    job: Job
    command: Command[Accepted | Conflict | Unconfigured] = field(repr=False)
    sealed: bool
    """Whether its sender sealed it."""


@dataclass(frozen=True, slots=True)
class Aim:
    """A job to cancel."""

    job_id: str


@dataclass(frozen=True, slots=True)
class Bad:
    """The problems of a request."""

    problems: tuple[Problem, ...]


Checked = Good | Aim | Bad


@dataclass(frozen=True, slots=True)
class Taken:
    """A request that was processed. `what`: the result in a few words, without its content."""

    what: str


@dataclass(frozen=True, slots=True)
class Early:
    """A cancel whose job may still be in the job stream: earlier requests are not processed yet.

    It keeps its place in the job stream and is tried again.
    """


@dataclass(frozen=True, slots=True)
class RequestRules:
    """The rules of all requests. `retention`: seconds for which a cancelled job's record is
    kept."""

    retention: float
    sealed_only: bool
    """Refuse a job whose registration is not sealed."""


async def _nothing() -> None:
    pass


class AsyncRequests:
    """Processes requests: first `check`, which only computes, then `take`, which uses the
    ledger."""

    def __init__(
        self,
        ledger: AsyncLedger,
        intake: Intake,
        event_builder: EventBuilder,
        rules: RequestRules,
        announce: Callable[[], Awaitable[None]] = _nothing,
        on_plain: Callable[[], Awaitable[None]] = _nothing,
    ) -> None:
        """`announce`: writes to the ledger what this worker serves.

        `on_plain`: called before the end of a request that is not sealed.
        """
        self._ledger = ledger
        self._intake = intake
        self._event_builder = event_builder
        self._rules = rules
        self._announce = announce
        self._warn = Sampled(log.warning)
        self._on_plain = on_plain

    def check(self, entry: Entry) -> Checked:
        """Check a request. Thread-safe."""
        match entry.request:
            case "register":
                return self._check_job(entry)
            case "cancel":
                try:
                    return Aim(Cancel.model_validate(entry.given).target)
                except ValidationError as error:
                    return Bad(problems_of(error))
            case _:
                assert_never(entry.request)

    async def take(self, entry: Entry, checked: Checked, *, wait: bool = True) -> Taken | Early:
        """Carry out a request, or report why not. Safe to repeat.

        The entry of the job stream is then processed, unless the result is `Early`, which needs
        `wait`. Raises `LedgerUnavailable` if the result is unknown: the request must be kept.
        """
        if not isinstance(checked, Aim) and not (isinstance(checked, Good) and checked.sealed):
            await self._on_plain()
        match checked:
            case Good(job, command):
                try:
                    accepted = admitted(job.idempotency_key, await self._accept(command))
                except IdempotencyConflict as error:
                    if entry.origin.answer:
                        forgotten = isinstance(error, JobForgotten)
                        return await self._answer(entry, {"taken": error.job_id, "gone": forgotten})
                    code = Code.IDEMPOTENCY_CONFLICT
                    problem = Problem(code, "idempotency_key", str(error).partition(": ")[2])
                    return await self._refuse(entry, (problem,))
                except InvalidJob as error:
                    return await self._refuse(entry, error.problems)
                except SettingsError as error:
                    # The ledger has again lost what was announced a moment ago.
                    raise LedgerUnavailable(str(error)) from None
                except (ResponseError, *UNREADABLE) as error:
                    of_all = isinstance(error, ResponseError) and not lone(error)
                    if of_all or not entry.origin.answer:
                        raise
                    return await self._unreadable(entry, job.id, error)
                taken = self._accepted(entry, job, accepted)
                if entry.origin.answer:
                    return await self._answer(entry, asdict(accepted), taken)
                return taken
            case Aim(job_id):
                return await self._cancel(entry, job_id, wait)
            case Bad(problems):
                return await self._refuse(entry, problems)
            case _:
                assert_never(checked)

    async def _unreadable(self, entry: Entry, job_id: str, error: Exception) -> Taken:
        """Answer that a job's record cannot be read. Raises an error that is not due to it."""
        fault = await carry_async(fault_of(job_id, error), self._ledger.carry)
        if not isinstance(fault, UnreadableRecord):
            raise fault
        problem = _shown(Fault(Code.INVALID, "", str(fault)))
        # Services of the last version only know `errors`.
        return await self._answer(entry, {"unreadable": job_id, "errors": [problem]})

    async def _accept(
        self, command: Command[Accepted | Conflict | Unconfigured]
    ) -> Accepted | Conflict | Unconfigured:
        answer = await self._ledger(command)
        if isinstance(answer, Unconfigured):
            # A ledger that lost its data knows no names until a worker's next heartbeat.
            await self._announce()
            answer = await self._ledger(command)
        return answer

    def _check_job(self, entry: Entry) -> Good | Bad:
        try:
            job, registration = self._intake.check(entry.given, sealed_only=self._rules.sealed_only)
        except InvalidJob as error:
            return Bad(error.problems)
        with own():
            step = enqueuing(job.traceparent, entry.origin.traceparent, **facts_of(job))
        command = self._intake.command(
            job, registration, entry.origin.stream_entry, entry.origin.by, step.trace
        )
        step.end()
        return Good(job, command, isinstance(entry.given.get("registration"), str))

    def _accepted(self, entry: Entry, job: Job, accepted: Accepted) -> Taken:
        log.info(
            "accepted",
            job=accepted.job_id,
            entry_point=entry.origin.entry_point,
            provider=job.provider,
            account=job.account,
            repeat=accepted.repeat,
            state=accepted.state,
        )
        if accepted.repeat:
            # Its outcome is published once, then or later.
            return Taken(f"a repeat: {accepted.state}")
        return Taken("accepted")

    async def _cancel(self, entry: Entry, job_id: str, wait: bool) -> Taken | Early:
        # Read before the job: requests that were processed by then are in the ledger.
        ahead = wait and await self._others_ahead(entry)
        actor = Actor(entry.origin.by, where="api") if entry.origin.by else None
        state: str = State.QUEUED
        for _ in range(LOOKS):
            record = await self._ledger(look(job_id))
            if record is None:
                if ahead:
                    return Early()
                what = f"there is no job {job_id}: never accepted here, or past its retention"
                name = "job_id" if entry.echo.job_id else "idempotency_key"
                return await self._refuse(entry, (Problem(Code.NOT_FOUND, name, what),))
            publication = self._event_builder.failed(
                EventType.CANCELLED, record, await self._ledger.now(), ()
            )
            done = await self._ledger(cancel(record, self._rules.retention, publication, actor))
            if isinstance(done, Settled):
                return await self._end(entry, job_id, Taken("cancelled"))
            assert isinstance(done, Stale)  # noqa: S101 -- for the type checker
            state = done.state
            if state != State.QUEUED:
                break
        # Nothing more is published: the job's own outcome reports its end.
        return await self._end(entry, job_id, Taken(f"too late to cancel: {state}"))

    async def _end(self, entry: Entry, job_id: str, taken: Taken) -> Taken:
        if entry.origin.answer:
            await self._answer(entry, {})
        elif entry.origin.stream_entry:
            await self._ledger(handled(entry.origin.stream_entry))
        log.info("cancel", job=job_id, entry_point=entry.origin.entry_point, outcome=taken.what)
        return taken

    async def _others_ahead(self, entry: Entry) -> bool:
        """Whether the job stream has unprocessed requests from before this one."""
        own = entry.origin.stream_entry
        if not own:
            return False
        return await self._ledger(edge(JOBS)) not in {"", own}

    async def _refuse(self, entry: Entry, problems: Sequence[Problem]) -> Taken:
        faults = _faults(problems)
        if entry.origin.answer:
            return await self._answer(entry, {"errors": list(map(_shown, faults))})
        subject = self._subject(entry)
        publication = self._event_builder.refused(subject, await self._ledger.now(), entry, faults)
        published = await self._ledger(
            refuse(subject, publication, PUBLISHED_ONCE, entry.origin.stream_entry)
        )
        codes = ", ".join(sorted({fault.code for fault in faults}))
        self._warn(
            "refused",
            request=entry.request,
            event_id=publication.event_id,
            job=entry.echo.target,
            entry_point=entry.origin.entry_point,
            codes=codes,
            fields=", ".join(fault.field for fault in faults[:8]),
            published=published,
        )
        return Taken(f"refused: {codes}")

    async def _answer(
        self, entry: Entry, said: Mapping[str, Any], taken: Taken | None = None
    ) -> Taken:
        """Answer the sender of a request, who waits; then no event is published."""
        origin = entry.origin
        await self._ledger(answer(origin.answer, origin.stream_entry, said))
        return taken or Taken("refused: its sender has the answer")

    def _subject(self, entry: Entry) -> str:
        # Keyed: with a plain hash of a form, anybody could test guesses of its content.
        print_ = self._intake.keyring.fingerprints(entry.content)[0]
        text = f"{entry.origin.entry_point}\x1f{entry.origin.id}\x1f{entry.request}\x1f{print_}"
        return f"refused-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def _shown(fault: Fault) -> dict[str, str]:
    return {"code": fault.code, "field": fault.field, "message": fault.message}


def _faults(problems: Sequence[Problem]) -> tuple[Fault, ...]:
    """The reasons for an event, limited in number and length."""
    found: list[Fault] = []
    left = REASONS
    for problem in problems[:MOST_REASONS]:
        field, message = problem.field[:LONGEST_REASON], problem.message[:LONGEST_REASON]
        left -= len(field) + len(message)
        if found and left < 0:
            break
        found.append(Fault(Code(problem.code), field, message))
    return tuple(found)

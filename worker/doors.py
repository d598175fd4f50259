"""The asynchronous doors: requests that came by a Celery task, or by the job stream.

A good job goes into the ledger. Anything else is told in an event of its own, `rejected`, since
whoever sent it is not there any more; the job that holds its key, if there is one, is not touched.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, assert_never

import structlog
from pydantic import ValidationError

from worker.announcer import Announcer
from worker.entry import Entry
from worker.errors import IdempotencyConflict, InvalidJob, Problem, problems_of
from worker.event import EventType
from worker.intake import Intake, admitted
from worker.job import Cancel, Job
from worker.ledger import AsyncLedger, Command
from worker.ledger.commands import JOBS, LOOKS, cancel, look
from worker.ledger.operations import handled, refuse
from worker.ledger.records import Accepted, Conflict, Settled, Stale, Unconfigured, Wake
from worker.lifecycle import State
from worker.outcome import Code, Fault
from worker.sealing import Keyring
from worker.tracing import own

log = structlog.get_logger(__name__)

#: Seconds in which a message that a broker delivers again is told about once. Longer than any
#: broker takes for that.
TOLD_ONCE = 86400.0

#: Reasons in one event, and characters of each: a job may have thousands of fields that are none.
MOST_REASONS = 50
LONGEST_REASON = 500


@dataclass(frozen=True, slots=True)
class Good:
    """A job that can be accepted."""

    job: Job
    command: Command[Accepted | Conflict | Unconfigured] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Aim:
    """A job to cancel."""

    job_id: str


@dataclass(frozen=True, slots=True)
class Bad:
    """What is wrong with a request."""

    problems: tuple[Problem, ...]


Checked = Good | Aim | Bad


@dataclass(frozen=True, slots=True)
class Taken:
    """A request that is done with. `what`: in a few words, without its content."""

    what: str
    wakes: tuple[Wake, ...] = ()


@dataclass(frozen=True, slots=True)
class Early:
    """A cancel whose job may still be on its way: requests that came before it are not done with.

    It keeps its place in the job stream, and is to be tried again.
    """


class Doors:
    """Takes requests. First `check`, which computes, then `take`, which waits for the ledger."""

    def __init__(
        self,
        ledger: AsyncLedger,
        intake: Intake,
        announcer: Announcer,
        keyring: Keyring,
        retention: float,
        sealed_only: bool,
    ) -> None:
        self._ledger = ledger
        self._intake = intake
        self._announcer = announcer
        self._keyring = keyring
        self._retention = retention
        self._sealed_only = sealed_only

    def check(self, entry: Entry) -> Checked:
        """Whether it is a good request. From any thread."""
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
        """Do what is asked for, or tell why not. Safe to repeat.

        With that an entry of the job stream is done with, unless it is `Early`; without `wait` it
        never is. `LedgerUnavailable` where nothing is known, so that the request must be kept.
        """
        match checked:
            case Good(job, command):
                try:
                    accepted = admitted(job, await self._ledger(command))
                except IdempotencyConflict as error:
                    code = Code.IDEMPOTENCY_CONFLICT
                    problem = Problem(code, "idempotency_key", str(error).partition(": ")[2])
                    return await self._refuse(entry, (problem,))
                except InvalidJob as error:
                    return await self._refuse(entry, error.problems)
                return self._accepted(entry, job, accepted)
            case Aim(job_id):
                return await self._cancel(entry, job_id, wait)
            case Bad(problems):
                return await self._refuse(entry, problems)
            case _:
                assert_never(checked)

    def _check_job(self, entry: Entry) -> Good | Bad:
        try:
            job, registration = self._intake.check(entry.given, sealed_only=self._sealed_only)
        except InvalidJob as error:
            return Bad(error.problems)
        with own():
            command = self._intake.command(job, registration, entry.origin.stream_entry)
        return Good(job, command)

    def _accepted(self, entry: Entry, job: Job, accepted: Accepted) -> Taken:
        log.info(
            "accepted",
            job=accepted.job_id,
            door=entry.origin.door,
            provider=job.provider,
            account=job.account,
            repeat=accepted.repeat,
            state=accepted.state,
        )
        if accepted.repeat:
            # Its outcome is told once: it has been, or it will be.
            return Taken(f"a repeat: {accepted.state}")
        return Taken("accepted", (Wake(accepted.job_id, job.lane),))

    async def _cancel(self, entry: Entry, job_id: str, wait: bool) -> Taken | Early:
        # Asked before the job is looked for: what was done with by then is in the ledger.
        ahead = wait and await self._others_ahead(entry)
        state: str = State.QUEUED
        for _ in range(LOOKS):
            record = await self._ledger(look(job_id))
            if record is None:
                if ahead:
                    return Early()
                what = f"there is no job {job_id}: never accepted here, or past its retention"
                name = "job_id" if entry.echo.job_id else "idempotency_key"
                return await self._refuse(entry, (Problem(Code.NOT_FOUND, name, what),))
            publication = self._announcer.failed(EventType.CANCELLED, record, await self._now(), ())
            done = await self._ledger(cancel(record, self._retention, publication))
            if isinstance(done, Settled):
                return await self._end(entry, job_id, Taken("cancelled", done.wakes))
            assert isinstance(done, Stale)  # noqa: S101 -- for the type checker
            state = done.state
            if state != State.QUEUED:
                break
        # Nothing more is told: the job's own outcome says how it ended, or will.
        return await self._end(entry, job_id, Taken(f"too late to cancel: {state}"))

    async def _end(self, entry: Entry, job_id: str, taken: Taken) -> Taken:
        if entry.origin.stream_entry:
            await self._ledger(handled(entry.origin.stream_entry))
        log.info("cancel", job=job_id, door=entry.origin.door, outcome=taken.what)
        return taken

    async def _others_ahead(self, entry: Entry) -> bool:
        """Whether the job stream holds requests that came before this one."""
        own = entry.origin.stream_entry
        if not own:
            return False
        first: Any = await self._ledger.patiently(lambda: self._ledger.redis.xrange(JOBS, count=1))
        return bool(first) and first[0][0].decode() != own

    async def _refuse(self, entry: Entry, problems: Sequence[Problem]) -> Taken:
        subject = self._subject(entry)
        faults = tuple(_fault(problem) for problem in problems[:MOST_REASONS])
        publication = self._announcer.refused(subject, await self._now(), entry, faults)
        told, wakes = await self._ledger(
            refuse(subject, publication, TOLD_ONCE, entry.origin.stream_entry)
        )
        codes = ", ".join(sorted({fault.code for fault in faults}))
        log.warning(
            "refused",
            request=entry.request,
            event_id=publication.event_id,
            job=entry.echo.target,
            door=entry.origin.door,
            codes=codes,
            fields=", ".join(fault.field for fault in faults[:8]),
            told=told,
        )
        return Taken(f"refused: {codes}", wakes)

    def _subject(self, entry: Entry) -> str:
        # Keyed: a plain hash of a form would let anybody try what was in it.
        print_ = self._keyring.fingerprints(entry.content)[0]
        text = f"{entry.origin.door}\x1f{entry.origin.id}\x1f{entry.request}\x1f{print_}"
        return f"refused-{hashlib.sha256(text.encode()).hexdigest()[:32]}"

    async def _now(self) -> float:
        """The server's time, in milliseconds."""
        seconds, micros = await self._ledger.patiently(self._ledger.redis.time)
        return float(seconds) * 1000 + micros // 1000


def _fault(problem: Problem) -> Fault:
    return Fault(
        Code(problem.code), problem.field[:LONGEST_REASON], problem.message[:LONGEST_REASON]
    )

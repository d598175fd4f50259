"""What a producer does, step by step; the steps may be carried out by blocking or by awaiting.

The rules exist once, in `ProducerCore`. Each of its methods is a generator: it yields a request to
the ledger, gets the answer, and returns its result. `carriers.py` carries out the steps, in a
thread or in an asyncio loop.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Annotated, Any
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, TypeAdapter, ValidationError
from redis.exceptions import ResponseError

from regworker.acceptance import Intake, admitted, facts_of
from regworker.announced import check_key
from regworker.domain.actor import Actor
from regworker.domain.errors import (
    FieldError,
    IdempotencyConflict,
    InvalidJob,
    JobNotCancellable,
    Problem,
    UnknownJob,
    UnreadableRecord,
    problems_of,
)
from regworker.domain.event import EventType, moment
from regworker.domain.job import Job, job_id, known_characters
from regworker.domain.portable import flaw
from regworker.domain.receipt import Receipt, Refused, Status
from regworker.domain.states import State
from regworker.event_builder import EventBuilder
from regworker.forms.registry import Forms
from regworker.ledger.records import (
    UNREADABLE,
    Accepted,
    Conflict,
    Record,
    Settled,
    Unconfigured,
    text,
)
from regworker.ledger.rights import denied
from regworker.ledger.steps import Ask, Each, Steps
from regworker.ledger.transitions import CONFIGURED, LOOKS, Command, cancel, look
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from regworker.tracing import Enqueuing, enqueuing

Given = Job | Mapping[str, Any]
"""A job as a host passes it."""

Accepting = Iterator[Command[Accepted | Conflict | Unconfigured]]

#: Jobs in one pipeline of `enqueue_many`: enough to spread the round trip.
BATCH = 500


class ProducerCore:
    """The rules of enqueuing, reading and cancelling, without any input or output."""

    def __init__(self, settings: Settings, keyring: Keyring | None = None) -> None:
        """`keyring`: instead of that of the settings; without keys, no event can be shown."""
        self.settings = settings
        self._keyring = keyring or Keyring.parse(settings.sealing_keys.get_secret_value())
        self.opens = bool(self._keyring.kids)
        self._event_builder = EventBuilder(settings, self._keyring)
        self._intake = Intake(Forms(settings.providers), self._keyring, settings.deadline)

    def accept(
        self,
        batch: list[tuple[int, Given]],
        by: str = "",
        traceparent: str = "",
        *,
        from_json: bool = False,
    ) -> Steps[list[Receipt | Refused]]:
        """Accept numbered jobs; return one result for each, in order.

        `by`: the name of their HTTP token; `traceparent`: that of their request. `from_json`: all
        were read from JSON.
        """
        results: dict[int, Receipt | Refused] = {}
        # Their ids and keys, and not the jobs: these hold secrets, and each has a dozen objects
        # that Python's garbage collector would follow again and again until the answers come.
        checked: list[tuple[int, str, str, Enqueuing]] = []

        def commands() -> Accepting:
            # Lazily, so that the server processes the first ones while the last are checked.
            for number, given in batch:
                try:
                    job, registration = self._intake.check(given, from_json=from_json)
                except InvalidJob as error:
                    results[number] = Refused(number, error)
                    continue
                step = enqueuing(job.traceparent, traceparent, **facts_of(job))
                checked.append((number, job.id, job.idempotency_key, step))
                yield self._intake.command(job, registration, by=by, trace=step.trace)

        answers = yield Each(commands())
        for (number, id_, key, step), answer in zip(checked, answers, strict=True):
            try:
                if isinstance(answer, Exception):
                    raise (yield from fault_of(id_, answer))
                accepted = admitted(key, answer)
            except (InvalidJob, IdempotencyConflict, UnreadableRecord) as error:
                step.end(error=type(error).__name__)
                results[number] = Refused(number, error)
                continue
            step.end(state=str(accepted.state), repeat=accepted.repeat)
            results[number] = Receipt(
                accepted.job_id,
                key,
                accepted.state,
                moment(accepted.accepted_at),
                accepted.repeat,
            )
        return [results[number] for number, _ in batch]

    def status(self, id_: str, by: str | None = None) -> Steps[Status]:
        """The status of a job. `by`: only if the job came with a token of that name; else
        `UnknownJob`."""
        return self._status((yield from self._record(id_, by)))

    def cancel(self, id_: str, by: str | None = None, actor: Actor | None = None) -> Steps[Status]:
        """Cancel a job before any request is sent; for its producer, or for a person.

        `by` as in `status`.
        """
        mark = self._keyring.marks[0]
        [known] = yield Ask(lambda redis: redis.smismember(CONFIGURED, [f"key:{mark}"]))
        if not known:
            names = yield Ask(lambda redis: redis.smembers(CONFIGURED))
            check_key(mark, list(map(text, names)))
        state: str = State.QUEUED
        for _ in range(LOOKS):
            record = yield from self._record(id_, by)
            seconds, micros = yield Ask(lambda redis: redis.time())
            now = seconds * 1000 + micros // 1000
            publication = self._event_builder.failed(EventType.CANCELLED, record, now, ())
            command = cancel(record, self.settings.retention, publication, actor)
            [done] = yield Each([command])
            if isinstance(done, Exception):
                raise (yield from fault_of(id_, done))
            if isinstance(done, Settled):
                return self._status((yield from self._record(id_)))
            state = done.state
            if state != State.QUEUED:
                break
        raise JobNotCancellable(f"job {id_} is {state}: a request may have been sent already")

    def _record(self, id_: str, by: str | None = None) -> Steps[Record]:
        record = yield from known_record(id_, by)
        if record.forgotten_at:
            raise UnknownJob(f"job {id_} is forgotten: its data was erased on request")
        return record

    def _status(self, record: Record) -> Status:
        with _readable(record.id):
            return Status(
                job_id=record.id,
                idempotency_key=record.idempotency_key,
                provider=record.provider,
                account=record.account,
                state=record.state,
                attempts=record.attempts,
                accepted_at=moment(record.accepted_at),
                deadline=moment(record.deadline_at),
                due=moment(record.due_at) if record.due_at and not record.final else None,
                finished_at=moment(record.finished_at) if record.finished_at else None,
                why=record.why,
                timeline=tuple((moment(at), what) for at, what in record.timeline),
                event=self._event_builder.last(record) if self.opens else None,
                corrected=record.corrected,
            )


def record_of(id_: str) -> Steps[Record | None]:
    """A job's record; None if there is none. Raises `UnreadableRecord`."""
    record: Record | None
    with _readable(id_):
        [record] = yield [look(id_)]
    return record


def known_record(id_: str, by: str | None = None) -> Steps[Record]:
    """A job's record; `by` as in `ProducerCore.status`. Raises `UnknownJob`, `UnreadableRecord`."""
    record = yield from record_of(id_)
    if record is None or by not in {None, record.by}:
        raise UnknownJob(f"no job {id_}: never accepted here, or past its retention")
    return record


@contextmanager
def _readable(id_: str) -> Iterator[None]:
    """Raise `UnreadableRecord` for a key that holds no record, or not one of ours."""
    try:
        yield
    except ResponseError as error:
        if not str(error).startswith(("WRONGTYPE", "TOOLARGE")):
            raise
        raise UnreadableRecord(id_, _code(error)) from None
    except UNREADABLE:
        raise UnreadableRecord(id_) from None


def fault_of(id_: str, error: Exception) -> Steps[Exception]:
    """What to raise for the error of a job's command. Without a record, or if the record is a hash
    and another key is not what it should be, the error is that of other jobs, too; and so is that
    of a script which an operator stopped, or of a right that is missing."""
    try:
        record = yield from record_of(id_)
    except UnreadableRecord as unreadable:
        return unreadable
    said = str(error)
    of_others = said.startswith("WRONGTYPE") or "Script killed" in said
    of_others = of_others or (isinstance(error, ResponseError) and denied(error))
    return error if record is None or of_others else UnreadableRecord(id_, _code(error))


def _code(error: Exception) -> str:
    """The first word of a server's error, such as WRONGTYPE; the rest may quote what it read."""
    code = str(error).partition(" ")[0]
    return code if isinstance(error, ResponseError) and code.isalpha() and code.isupper() else ""


def _valid(value: str) -> str:
    if what := flaw(value):
        raise FieldError(what)
    return value


#: As in a job, other forms of text are text, too: what `enqueue` accepts is found.
_Text = Annotated[str, AfterValidator(_valid)]
_TEXT: TypeAdapter[str] = TypeAdapter(_Text)


class _Named(BaseModel):
    """How a caller names a job without its id."""

    model_config = ConfigDict(hide_input_in_errors=True)

    provider: _Text
    account: _Text
    key: Annotated[_Text, AfterValidator(known_characters)]


def named(id_: str | None, key: str | None, provider: str, account: str) -> str:
    """The id of the job that a caller of `status` names. `InvalidJob` names the wrong arguments."""
    if id_ is not None:
        return identified(id_)
    if key is None:
        what = "is required, or key=, provider= and account="
        raise InvalidJob([Problem("missing", "job_id", what)])
    try:
        found = _Named.model_validate({"provider": provider, "account": account, "key": key})
    except ValidationError as error:
        raise InvalidJob(problems_of(error)) from None
    return job_id(found.provider, found.account, found.key)


def identified(id_: str) -> str:
    """A job's id as text: databases return a `UUID`. `InvalidJob` if it is no text."""
    try:
        return str(id_) if isinstance(id_, UUID) else _TEXT.validate_python(id_)
    except ValidationError as error:
        raise InvalidJob(problems_of(error, prefix="job_id")) from None


def batches(jobs: Iterable[Given]) -> Iterator[list[tuple[int, Given]]]:
    """Jobs with their numbers, in batches."""
    numbered = iter(enumerate(jobs))
    while batch := list(islice(numbered, BATCH)):
        yield batch


def late(status: Status, timeout: float) -> TimeoutError:
    """The error of a `wait` whose job did not end in time."""
    return TimeoutError(f"job {status.job_id} is {status.state} after {timeout:g} s")

"""From a request to an accepted job: all entry points lead here."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError, from_json

from regworker.announced import refusal
from regworker.domain.errors import (
    IdempotencyConflict,
    InvalidJob,
    JobForgotten,
    Problem,
    SealingError,
    problems_of,
)
from regworker.domain.job import MAX_JOB_BYTES, Job
from regworker.domain.notation import plain
from regworker.domain.portable import flaw
from regworker.forms.registry import Forms
from regworker.ledger.records import Accepted, Conflict, Unconfigured
from regworker.ledger.transitions import Command, accept
from regworker.sealing import seals
from regworker.sealing.keyring import Keyring
from regworker.settings import variable
from regworker.tracing import here

#: Python's JSON reader takes half of a surrogate pair for text; it cannot be written.
_UNWRITABLE = Problem("invalid", "", "the job holds text that is not valid Unicode")

_PLAIN = Problem(
    "invalid",
    "registration",
    f"is not sealed, and {variable('require_sealed')} is set: send it as JWE, sealed with a key "
    f"of {variable('sealing_keys')}",
)
_TOO_DEEP = Problem("invalid", "registration", "is nested too deeply")
_NO_JSON = Problem("invalid", "registration", "the sealed content is not JSON")


class Intake:
    """Checks a whole job, seals its registration, and makes the command that accepts it."""

    def __init__(self, registry: Forms, keyring: Keyring, deadline: float) -> None:
        self._registry = registry
        self.keyring = keyring
        self._deadline = deadline

    def check(
        self,
        given: Job | Mapping[str, Any],
        *,
        sealed_only: bool = False,
        from_json: bool = False,
    ) -> tuple[Job, bytes]:
        """The job, and its registration as canonical JSON; `InvalidJob` names all problems.

        The registration may be sealed by its sender, under a key of the keyring; with `sealed_only`
        it must be. `from_json`: it was read from JSON, and so contains only dicts, lists and plain
        values.
        """
        try:
            return self._checked(given, sealed_only, from_json)
        except RecursionError:  # at any step: each walks through the same values
            raise InvalidJob([_TOO_DEEP]) from None

    def _checked(
        self, given: Job | Mapping[str, Any], sealed_only: bool, from_json: bool
    ) -> tuple[Job, bytes]:
        problems: list[Problem] = []
        given = given if from_json and type(given) is dict else _written_out(given)
        unsealed = isinstance(_mapping(given).get("registration"), Mapping)
        if isinstance(given, Mapping) and not unsealed:
            given = self._opened(given, problems)
        shut = bool(problems)
        if sealed_only and unsealed:
            problems.append(_PLAIN)
        job = _job(given, problems)
        registration = b""
        source = job.registration if job else _mapping(given).get("registration")
        provider = job.provider if job else _mapping(given).get("provider")
        if isinstance(provider, str) and isinstance(source, Mapping) and not shut:
            # Even if the rest of the job is wrong: the producer should see all problems at once.
            try:
                registration = self._registry.validate(provider, dict(source))
            except InvalidJob as error:
                problems.extend(error.problems)
            except (PydanticSerializationError, UnicodeEncodeError):
                what = flaw(dict(source))
                problems.append(Problem("invalid", "registration", what) if what else _UNWRITABLE)
        if job and not problems:
            problems.extend(_size(job, registration))
        if job is None or problems:
            raise InvalidJob(problems)
        return job, registration

    def sealed(self, given: Job | Mapping[str, Any]) -> dict[str, Any]:
        """A checked job as JSON with its registration as JWE, to be stored and enqueued later."""
        job, registration = self.check(given)
        rest = job.model_dump(mode="json", exclude={"registration"}, exclude_none=True)
        if "traceparent" not in rest and (found := here()):
            rest["traceparent"] = found
        sealed = self.keyring.seal(registration, seals.registration(rest))
        return {**rest, "registration": sealed}

    def command(
        self, job: Job, registration: bytes, entry: str = "", by: str = "", trace: str = ""
    ) -> Command[Accepted | Conflict | Unconfigured]:
        """The command that accepts a checked job, with its registration sealed.

        `entry`: of the job stream, if the job came from there; `by`: the name of its HTTP token;
        `trace`: that of `regworker.tracing.enqueuing`.
        """
        payload = self.keyring.seal(registration, seals.payload(job))
        prints = self.fingerprints(job, registration)
        mark = self.keyring.marks[0]
        return accept(job, payload, prints, self._deadline, entry, trace, mark, by)

    def fingerprints(self, job: Job, registration: bytes) -> list[str]:
        """Distinguishes a repeat from another job with the same key. `registration`: canonical."""
        return self.keyring.fingerprints(job.content(registration))

    def _opened(self, given: Mapping[str, Any], problems: list[Problem]) -> Mapping[str, Any]:
        """The job with its registration opened; an empty one if it cannot be opened."""
        sealed = given.get("registration")
        if not isinstance(sealed, str):
            return given
        registration: Any = {}
        try:
            plain = self.keyring.open(sealed, seals.registration(given))
            registration = from_json(plain)
        except SealingError as error:
            problems.append(Problem("invalid", "registration", str(error)))
        except ValueError:
            problems.append(_NO_JSON)
        return {**given, "registration": registration}


def admitted(key: str, answer: Accepted | Conflict | Unconfigured) -> Accepted:
    """The answer of an accepted job; raises the error for a refusal."""
    match answer:
        case Accepted():
            return answer
        case Conflict(job_id, forgotten):
            raise (JobForgotten if forgotten else IdempotencyConflict)(job_id, key)
        case Unconfigured(names, known):
            raise refusal(names, known)


def facts_of(job: Job) -> dict[str, str]:
    """The facts about a job for its producer's trace."""
    return {"job": job.id, "provider": job.provider, "account": job.account}


def _written_out(given: Job | Mapping[str, Any]) -> Mapping[str, Any]:
    """A job as a dict instead of typed objects."""
    if isinstance(given, Job):
        return dict(plain(given))
    match _mapping(given).get("registration"):
        case Mapping() as registration:
            return {**given, "registration": plain(dict(registration))}
        case BaseModel() as registration:
            return {**given, "registration": plain(registration)}
        case _:
            return given


def _job(given: Mapping[str, Any], problems: list[Problem]) -> Job | None:
    try:
        return Job.model_validate(given)
    except ValidationError as error:
        problems.extend(problems_of(error))
        return None


def _mapping(given: Any) -> Mapping[str, Any]:
    return given if isinstance(given, Mapping) else {}


def _size(job: Job, registration: bytes) -> list[Problem]:
    if not job.metadata and len(registration) <= MAX_JOB_BYTES // 2:
        # All other fields together are smaller than the other half, and are valid text.
        return []
    try:
        rest = job.model_dump_json(exclude={"registration"}).encode()
    except PydanticSerializationError:
        return [_UNWRITABLE]
    size = len(rest) + len(',"registration":') + len(registration)
    if size <= MAX_JOB_BYTES:
        return []
    return [Problem("invalid", "", f"the job has {size} bytes; the limit is {MAX_JOB_BYTES}")]

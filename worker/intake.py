"""From what somebody hands in to an accepted job: the one way in, whichever door it came by."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError, from_json

from worker.errors import IdempotencyConflict, InvalidJob, Problem, SealingError, problems_of
from worker.job import MAX_JOB_BYTES, Job
from worker.ledger.commands import Command, accept
from worker.ledger.records import Accepted, Conflict, Unconfigured
from worker.providers.registry import Registry
from worker.sealing import Keyring
from worker.settings import variable
from worker.tracing import current

#: Python's JSON reader takes half of a surrogate pair for text; it cannot be written.
_UNWRITABLE = Problem("invalid", "", "the job holds text that is no Unicode")

_PLAIN = Problem(
    "invalid",
    "registration",
    f"is not sealed, and {variable('require_sealed')} is set: give it as JWE, "
    f"under a key of {variable('sealing_keys')}",
)
_NO_JSON = Problem("invalid", "registration", "what is sealed is not JSON")


class Intake:
    """Checks a job whole, seals its registration, and makes the command that accepts it."""

    def __init__(self, registry: Registry, keyring: Keyring, deadline: float) -> None:
        self._registry = registry
        self._keyring = keyring
        self._deadline = deadline

    def check(
        self, given: Job | Mapping[str, Any], *, sealed_only: bool = False
    ) -> tuple[Job, bytes]:
        """The job, and its registration as canonical JSON; `InvalidJob` names all that is wrong.

        The registration may have been sealed by its sender, under a key of the keyring; with
        `sealed_only` it must have been.
        """
        problems: list[Problem] = []
        plain = isinstance(_mapping(given).get("registration"), Mapping)
        if isinstance(given, Mapping) and not plain:
            given = self._opened(given, problems)
        shut = bool(problems)
        if sealed_only and plain:
            problems.append(_PLAIN)
        job = given if isinstance(given, Job) else _job(given, problems)
        registration = b""
        source = job.registration if job else _mapping(given).get("registration")
        provider = job.provider if job else _mapping(given).get("provider")
        if isinstance(provider, str) and isinstance(source, Mapping) and not shut:
            # Also where the rest of the job is wrong: whoever mends it should mend it once.
            try:
                registration = self._registry.validate(provider, dict(source))
            except InvalidJob as error:
                problems.extend(error.problems)
            except (PydanticSerializationError, UnicodeEncodeError):
                problems.append(_UNWRITABLE)
        if job and not problems:
            problems.extend(_size(job, registration))
        if job is None or problems:
            raise InvalidJob(problems)
        return job, registration

    def command(
        self, job: Job, registration: bytes, entry: str = ""
    ) -> Command[Accepted | Conflict | Unconfigured]:
        """The command that accepts a checked job; its registration travels sealed.

        `entry`: that of the job stream which the job came by.
        """
        payload = self._keyring.seal(registration)
        prints = self.fingerprints(job, registration)
        return accept(job, payload, prints, self._deadline, entry, current())

    def fingerprints(self, job: Job, registration: bytes) -> list[str]:
        """What tells a repeat from another job under the same key. `registration`: canonical."""
        return self._keyring.fingerprints(job.content(registration))

    def _opened(self, given: Mapping[str, Any], problems: list[Problem]) -> Mapping[str, Any]:
        """The job with its registration open, and empty if that is not to be had."""
        sealed = given.get("registration")
        if not isinstance(sealed, str):
            return given
        registration: Any = {}
        try:
            registration = from_json(self._keyring.open(sealed), allow_inf_nan=False)
        except SealingError as error:
            problems.append(Problem("invalid", "registration", str(error)))
        except ValueError:
            problems.append(_NO_JSON)
        return {**given, "registration": registration}


def admitted(job: Job, answer: Accepted | Conflict | Unconfigured) -> Accepted:
    """The ledger's yes, or the error that its no means."""
    match answer:
        case Accepted():
            return answer
        case Conflict(job_id):
            raise IdempotencyConflict(job_id, job.idempotency_key)
        case Unconfigured(names):
            raise InvalidJob(_unconfigured(name) for name in names)


def _unconfigured(name: str) -> Problem:
    kind, _, rest = name.partition(":")
    if kind == "account":
        provider, _, account = rest.partition(":")
        setting = variable("accounts", provider, account, "...")
        what = f"{account!r} of {provider}"
        field = "account"
    else:
        setting, what, field = variable("endpoints", rest, "..."), repr(rest), "reply_to"
    message = (
        f"{what} is not configured at any worker (set {setting} there; "
        "a worker announces what it serves when it starts)"
    )
    return Problem("invalid", field, message)


def _job(given: Mapping[str, Any], problems: list[Problem]) -> Job | None:
    try:
        return Job.model_validate(given)
    except ValidationError as error:
        problems.extend(problems_of(error))
        return None


def _mapping(given: Any) -> Mapping[str, Any]:
    return given if isinstance(given, Mapping) else {}


def _size(job: Job, registration: bytes) -> list[Problem]:
    try:
        rest = job.model_dump_json(exclude={"registration"}).encode()
    except PydanticSerializationError:
        return [_UNWRITABLE]
    size = len(rest) + len(',"registration":') + len(registration)
    if size <= MAX_JOB_BYTES:
        return []
    return [Problem("invalid", "", f"the job has {size} bytes; at most {MAX_JOB_BYTES} are taken")]

"""The errors that reach a user of this package.

    RegistrationWorkerError
    ├── InvalidJob             the job as given cannot be accepted
    ├── IdempotencyConflict    the key is taken by a job with other content
    ├── UnknownJob             no job of that id or key
    ├── JobNotCancellable      the job is past the point where it can be taken back
    ├── NotInReview            the job does not wait for a person
    ├── NotRedrivable          the job was not abandoned
    ├── SettingsError          a setting is missing or wrong
    ├── LedgerUnavailable      Redis/Valkey did not answer in time
    └── SealingError           a sealed text cannot be opened

Messages name the field or the setting, say what to do, and never hold a secret.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any


class RegistrationWorkerError(Exception):
    """Any error of this package; catch it to catch them all."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with one field.

    `field` is spelt as the provider's documentation spells it, with the path to it in dots
    (`customer_phone.0.phone_number`).
    """

    code: str
    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message


class InvalidJob(RegistrationWorkerError):  # noqa: N818 -- an outcome of the caller's input
    """Raised when a job is refused before it got in. Mend what `problems` names, enqueue again."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(map(str, self.problems)))


class IdempotencyConflict(RegistrationWorkerError):  # noqa: N818
    """Raised when the idempotency key is taken by a job with other content.

    The first job is untouched. Use another key for another customer, or ask for the first job's
    outcome with `Producer.status(job_id)`.
    """

    def __init__(self, job_id: str, idempotency_key: str) -> None:
        self.job_id = job_id
        self.idempotency_key = idempotency_key
        super().__init__(
            f"idempotency_key: {idempotency_key!r} is taken by job {job_id} with other content"
        )


class UnknownJob(RegistrationWorkerError):  # noqa: N818
    """Raised when no job has that id or key: never accepted, or past its retention."""


class JobNotCancellable(RegistrationWorkerError):  # noqa: N818
    """Raised when a job cannot be cancelled: a call may be on the wire, or the job is over."""


class NotInReview(RegistrationWorkerError):  # noqa: N818
    """Raised when a job is to be resolved that does not wait for a person (any more)."""


class NotRedrivable(RegistrationWorkerError):  # noqa: N818
    """Raised when a job is to be redriven that was not abandoned: it goes on, or is over."""


class SettingsError(RegistrationWorkerError):
    """Raised when settings cannot be used. `problems` holds (environment variable, what to do)."""

    def __init__(self, problems: Iterable[tuple[str, str]]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(f"{name}: {what}" for name, what in self.problems))


class LedgerUnavailable(RegistrationWorkerError):  # noqa: N818
    """Raised when the ledger did not answer within the time the caller had.

    Nothing is known of the last command then; each ledger command is safe to repeat.
    """


class SealingError(RegistrationWorkerError):
    """Raised when a sealed text cannot be opened: unknown `kid`, broken tag, or no JWE at all."""


@dataclass(frozen=True, slots=True)
class _Words:
    code: str
    text: str


#: What pydantic's error types are in our codes and words. All others are `invalid`, in its words.
_WORDS: Mapping[str, _Words] = {
    "missing": _Words("missing", "is required"),
    "extra_forbidden": _Words("invalid", "is not a field of this request"),
}


def problems_of(error: Any, *, prefix: str = "") -> tuple[Problem, ...]:
    """Turn a pydantic `ValidationError` into problems, without any input value in them."""
    found = []
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        path = ".".join(str(part) for part in item["loc"])
        words = _WORDS.get(item["type"], _Words("invalid", item["msg"]))
        found.append(Problem(words.code, _join(prefix, path), words.text))
    return tuple(found)


def causes(error: BaseException) -> Iterator[BaseException]:
    """The exception's causes and itself, the innermost first."""
    if error.__cause__ is not None:
        yield from causes(error.__cause__)
    yield error


def _join(prefix: str, path: str) -> str:
    return f"{prefix}.{path}" if prefix and path else prefix or path

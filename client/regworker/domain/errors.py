"""The errors that reach a user of this package.

    RegistrationWorkerError
    ├── InvalidJob             the job as given cannot be accepted
    ├── IdempotencyConflict    the key is taken by a job with other content
    │   └── JobForgotten       the key was used by a job whose data was erased on request
    ├── UnknownJob             no job of that id or key
    ├── UnreadableRecord       the ledger's record of the job cannot be read
    ├── JobNotCancellable      a request of the job may have been sent, or the job has ended
    ├── JobNotOver             the data of an unfinished job cannot be erased
    ├── InvalidOutcome         the entered outcome is not one of the provider's
    ├── NotInReview            the job is not in review
    ├── NotCorrectable         no person decided on the job, or it was corrected before
    ├── NotRedrivable          the job was not abandoned
    ├── SettingsError          a setting is missing or wrong, or the ledger refuses the login
    │   └── NoSealingKeys      this needs sealing keys, and the process has none
    ├── LedgerUnavailable      Redis/Valkey did not answer in time
    │   └── NotReplicated      it did, but too few replicas had the write in time
    └── SealingError           a sealed text cannot be opened
        ├── UnknownKey         it is sealed under a key that this process does not have
        └── WrongSeal          its kind or its owner is another one

Messages name the field or the setting, say what to do, and never hold a secret.
"""

from collections.abc import Iterable, Iterator, Mapping
from copyreg import __newobj__  # type: ignore[attr-defined]
from dataclasses import dataclass
from typing import Any

from regworker.domain.portable import shown_name


class RegistrationWorkerError(Exception):
    """Any error of this package; catch it to catch them all.

    It can be pickled and copied, and so comes from a pool's process as it is.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions would be made again by a call with their message, whatever they take.
        return __newobj__, (type(self), *self.args), self.__dict__


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
    """Raised when a job is refused. Correct what `problems` names, and enqueue it again."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(map(str, self.problems)))


class InvalidOutcome(RegistrationWorkerError):  # noqa: N818
    """Raised when a person enters an outcome that the job's provider never returns.

    The job stays in review. Enter every field that the message names.
    """

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


class JobForgotten(IdempotencyConflict):
    """Raised when the idempotency key was used by a job whose data was erased on request.

    Its content cannot be compared any more, and a new job could make a second customer. Use another
    key for another customer.
    """

    def __init__(self, job_id: str, idempotency_key: str) -> None:
        super().__init__(job_id, idempotency_key)
        self.args = (
            f"idempotency_key: {idempotency_key!r} was used by job {job_id}, whose data was erased "
            "on request; use another key for another customer",
        )


class UnknownJob(RegistrationWorkerError):  # noqa: N818
    """Raised when no job has that id or key: never accepted, or past its retention."""


class UnreadableRecord(RegistrationWorkerError):  # noqa: N818
    """Raised when the ledger's record of a job cannot be read: something else was written there.

    Nothing was done. The job may have been accepted before, so another key could make a second
    customer. An operator repairs the record. `code`: the server's (`WRONGTYPE`), or ''.
    """

    def __init__(self, job_id: str, code: str = "") -> None:
        self.job_id, self.code = job_id, code
        why = f" ({code})" if code else ""
        super().__init__(
            f"the ledger's record of job {job_id} cannot be read{why}, and nothing was done; tell "
            "an operator"
        )


class JobNotCancellable(RegistrationWorkerError):  # noqa: N818
    """Raised when a job cannot be cancelled: a request may have been sent, or the job has ended."""


class JobNotOver(RegistrationWorkerError):  # noqa: N818
    """Raised when the data of an unfinished job is to be erased. The message says how to end it."""


class NotInReview(RegistrationWorkerError):  # noqa: N818
    """Raised when a person decides on a job that is not in review (any more)."""


class NotCorrectable(RegistrationWorkerError):  # noqa: N818
    """Raised when there is no decision to correct, or it was corrected before.

    A job's outcome can be corrected once, and only if a person has settled its review.
    """


class NotRedrivable(RegistrationWorkerError):  # noqa: N818
    """Raised when a job cannot be redriven, because it was not abandoned."""


class SettingsError(RegistrationWorkerError):
    """Raised when settings cannot be used. `problems` holds (environment variable, what to do)."""

    def __init__(self, problems: Iterable[tuple[str, str]]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(f"{name}: {what}" for name, what in self.problems))


class NoSealingKeys(SettingsError):  # noqa: N818
    """Raised when an operation needs sealing keys, in a service without any.

    Do it where `REGWORKER_SEALING_KEYS` is set: with the command `regworker`, for instance.
    """


class LedgerUnavailable(RegistrationWorkerError):  # noqa: N818
    """Raised when the ledger did not answer within the time that the caller allowed.

    It is unknown whether the last command took effect; each ledger command is safe to repeat.
    """


class NotReplicated(LedgerUnavailable):
    """Raised when fewer replicas than `REGWORKER_REPLICAS` had a write within the caller's time.

    The primary has it. It may be lost in a failover, so it does not count; repeating is safe.
    """

    def __init__(self, message: str, answer: Any) -> None:
        self.answer = answer
        """The primary's raw answer."""
        super().__init__(message)


class SealingError(RegistrationWorkerError):
    """Raised when a sealed text cannot be opened: unknown `kid`, broken tag, or no JWE at all."""


class UnknownKey(SealingError):  # noqa: N818
    """Raised when a sealed text names a key that `REGWORKER_SEALING_KEYS` does not contain.

    Give this process every key of the workers; then it can be opened.
    """


class WrongSeal(SealingError):  # noqa: N818
    """Raised when a sealed text is authentic, but belongs to another place.

    Somebody who can write to the server moved it there, or changed the record that it is in. It is
    never used; the job goes to review, the delivery is dead.
    """


class FieldError(ValueError):
    """Raised by a validator of this package, with a message that quotes nothing of the value.

    Other validators often quote the value, which may be a password: their messages are not passed
    on (`problems_of`).
    """


@dataclass(frozen=True, slots=True)
class _Words:
    code: str
    text: str


#: The message for an unknown field.
NO_FIELD = "is not a field of this request"

#: The most problems of one object that are listed. Its sender corrects these first.
MOST_PROBLEMS = 100

#: Our codes and texts for pydantic's error types. All others are `invalid`, with pydantic's text.
_WORDS: Mapping[str, _Words] = {
    "missing": _Words("missing", "is required"),
    "extra_forbidden": _Words("invalid", NO_FIELD),
    # Producers send JSON, in any language: avoid Python's terms.
    **dict.fromkeys(("tuple_type", "list_type"), _Words("invalid", "must be a list")),
    **dict.fromkeys(
        ("dict_type", "mapping_type", "model_type", "model_attributes_type"),
        _Words("invalid", "must be an object"),
    ),
    **dict.fromkeys(("string_type", "string_sub_type"), _Words("invalid", "must be text")),
    "string_unicode": _Words("invalid", "must be text that UTF-8 can hold"),
    **dict.fromkeys(
        ("int_type", "int_parsing", "int_from_float"), _Words("invalid", "must be a whole number")
    ),
    **dict.fromkeys(("float_type", "float_parsing"), _Words("invalid", "must be a number")),
    **dict.fromkeys(("bool_type", "bool_parsing"), _Words("invalid", "must be true or false")),
    "none_required": _Words("invalid", "must be null"),
    "invalid-json-value": _Words(
        "invalid", "must be JSON: an object, a list, text, a number, true, false or null"
    ),
    "too_long": _Words("invalid", "has too many items"),
    "too_short": _Words("invalid", "has too few items"),
}


def problems_of(error: Any, *, prefix: str = "") -> tuple[Problem, ...]:
    """Turn a pydantic `ValidationError` into problems, without any input value: the first ones, and
    how many more there are.

    Only our own and pydantic's texts are passed on, and a name only if it looks like a field's: the
    message of a provider's own validator, and the value of a field, may be anything.
    """
    found = []
    items = error.errors(include_url=False, include_input=False)
    for item in items[:MOST_PROBLEMS]:
        path = ".".join(shown_name(part) for part in item["loc"])
        words = _WORDS.get(item["type"]) or _Words("invalid", _words_of(item))
        found.append(Problem(words.code, _join(prefix, path), words.text))
    if more := len(items) - len(found):
        found.append(Problem("invalid", prefix, f"has {more} more problems, not listed here"))
    return tuple(found)


#: Replaces texts that may quote a value.
UNTOLD = "is not valid (the check of the provider's form refused it)"

#: Types whose texts include one of pydantic's fixed messages about times. In other types, `{error}`
#: is an exception's text, and `{tag}` a value.
_OF_TIMES = ("date", "time")


def _words_of(item: Any) -> str:
    context = item.get("ctx") or {}
    if isinstance(own := context.get("error"), FieldError):
        return str(own)
    # Imported here, so that naming the errors works without pydantic.
    from pydantic_core import PydanticKnownError

    try:
        known = PydanticKnownError(item["type"], context or None)
    except (KeyError, TypeError):
        return UNTOLD  # a type of somebody else's
    template = known.message_template
    quotes = "{tag}" in template or (
        "{error}" in template and not item["type"].startswith(_OF_TIMES)
    )
    # Another library's error can use a known type, with its own text.
    same = _in_python(known.message()) == _in_python(item["msg"])
    return str(item["msg"]) if same and not quotes else UNTOLD


def _in_python(words: str) -> str:
    # For JSON input, pydantic's text uses JSON's terms.
    return words.replace("valid array", "valid list").replace("valid object", "valid dictionary")


def causes(error: BaseException) -> Iterator[BaseException]:
    """The exception's causes and itself, the innermost first."""
    if error.__cause__ is not None:
        yield from causes(error.__cause__)
    yield error


def _join(prefix: str, path: str) -> str:
    return f"{prefix}.{path}" if prefix and path else prefix or path

"""Ordinary mistakes in a plugin's code show no secret in messages, log lines or reports."""

import logging
import ssl
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

import pytest
import redis.exceptions
from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Tag, field_validator
from pydantic_core import PydanticCustomError, PydanticKnownError

from regworker.acceptance import Intake
from regworker.domain.errors import UNTOLD, FieldError, InvalidJob, Problem, problems_of
from regworker.domain.portable import UNNAMED
from regworker.sealing.keyring import Keyring
from worker.providers import base
from worker.providers.registry import Registry
from worker.telemetry import third_party_logs
from worker.telemetry.redaction import name_of, scrub, text_of, traceback_of

SECRET = "correct horse battery"


def _value_error(value: str) -> str:
    raise ValueError(f"{value!r} is too weak")


def _assertion(value: str) -> str:
    assert len(value) > 100, f"{value} is too short"
    return value


def _own_type(value: str) -> str:
    raise PydanticCustomError("weak", f"{value} is too weak")


def _known_type(value: str) -> str:
    raise PydanticCustomError("string_type", f"{value} is no text")


def _missing(value: str) -> str:
    raise PydanticCustomError("value_error", "{shown} is too weak", {"shown": value})


def _known_error(value: str) -> str:
    raise PydanticKnownError("value_error", {"error": f"{value} is too weak"})


def _type_error(value: str) -> str:
    raise TypeError(f"{value!r} is no password")


def _key_error(value: str) -> str:
    found: dict[str, str] = {}
    return found[value]


def _other_error(value: str) -> str:
    raise RuntimeError(f"cannot hash {value}")


MISTAKES: list[Callable[[str], str]] = [
    *(_value_error, _assertion, _own_type, _known_type, _missing, _known_error),
    *(_type_error, _key_error, _other_error),
]


class Cat(BaseModel):
    """One kind of pet."""

    kind: Literal["cat"]


class Dog(BaseModel):
    """Another kind of pet."""

    kind: Literal["dog"]


class CarelessRegistration(BaseModel):
    """A registration with mistakes of its author."""

    model_config = ConfigDict(extra="forbid")

    password: str = "x"
    limits: dict[str, int] = {}
    pet: Annotated[
        Annotated[Cat, Tag("cat")] | Annotated[Dog, Tag("dog")],
        Discriminator(lambda value: value.get("kind") if isinstance(value, dict) else None),
    ] = Cat(kind="cat")
    mistake: ClassVar[Callable[[str], str]] = staticmethod(str)

    @field_validator("password")
    @classmethod
    def _check(cls, value: str) -> str:
        return cls.mistake(value)


class Careless:
    """The provider of that registration."""

    name: ClassVar[str] = "careless"
    Registration: ClassVar[type[BaseModel]] = CarelessRegistration
    Account: ClassVar[type[base.Account]] = base.Account


INTAKE = Intake(Registry([f"{__name__}:Careless"]), Keyring.parse(Keyring.new("test")), 60.0)


def refusal(registration: dict[str, Any], **more: Any) -> InvalidJob:
    """The refusal of a job with this registration."""
    job = {"provider": "careless", "idempotency_key": "k", "registration": registration, **more}
    with pytest.raises(InvalidJob) as caught:
        INTAKE.check(job)
    return caught.value


def is_clean(error: InvalidJob) -> bool:
    """Whether nothing that a refusal shows contains a part of the secret."""
    texts = [str(error), repr(error), traceback_of(error), *map(repr, error.problems)]
    return not any(word in text for text in texts for word in SECRET.split())


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_validators_words_are_not_passed_on(
    mistake: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the field, and does not repeat what its validator says of the password."""
    monkeypatch.setattr(CarelessRegistration, "mistake", staticmethod(mistake))
    error = refusal({"password": SECRET})
    assert is_clean(error)
    [problem] = error.problems
    # Only pydantic's own message for that type is shown.
    assert problem.message in {UNTOLD, "must be text"}
    assert problem.field in {"registration.password", "registration"}


@pytest.mark.parametrize(
    "registration",
    [
        {SECRET: 1},
        {"limits": {SECRET: "many"}},
        {"limits": {SECRET: None, f"{SECRET}!": []}},
        {"pet": {"kind": SECRET}},
        {"pet": SECRET},
        {"password": {SECRET: SECRET}},
        {f"p-{SECRET}": {SECRET: SECRET}},
    ],
)
def test_a_secret_in_a_fields_place_is_not_shown(registration: dict[str, Any]) -> None:
    """For example keys and values were swapped, or a line lost its colon."""
    assert is_clean(refusal(registration))


def test_a_misspelt_field_is_shown() -> None:
    """So its author can find it."""
    [problem] = refusal({"pasword": "x"}).problems  # codespell:ignore pasword
    assert problem.field == "registration.pasword"  # codespell:ignore pasword
    [problem] = refusal({SECRET: "x"}).problems
    assert problem.field == f"registration.{UNNAMED}"


@pytest.mark.parametrize("place", ["provider", "account", "lane", "reply_to", "metadata", SECRET])
def test_a_secret_in_any_place_of_a_job_is_not_shown(place: str) -> None:
    """The refusal does not show what the job contains."""
    assert is_clean(refusal({}, **{place: {SECRET: float("nan")}}))
    assert is_clean(refusal({}, **{place: SECRET}))
    assert is_clean(refusal({}, **{place: [SECRET]}))


def test_our_own_words_and_pydantics_are_passed_on() -> None:
    """They contain no values, and say what to do."""

    def refuse(value: str) -> str:
        raise FieldError("must be something else")

    class Model(BaseModel):
        own: Annotated[str, AfterValidator(refuse)]
        number: int
        words: list[str]
        at: Literal["a", "b"]

    with pytest.raises(ValueError, match="own") as caught:
        Model.model_validate({"own": "x", "number": SECRET, "words": 1, "at": "c"})
    assert problems_of(caught.value) == (
        Problem("invalid", "own", "must be something else"),
        Problem("invalid", "number", "must be a whole number"),
        Problem("invalid", "words", "must be a list"),
        Problem("invalid", "at", "Input should be 'a' or 'b'"),
    )


# ── texts of exceptions ───────────────────────────────────────────────────────────────────────


class PluginError(Exception):
    """An error class of a plugin."""


def _chain() -> Exception:
    error = PluginError(f"cannot use {SECRET}")
    error.__cause__ = KeyError(SECRET)
    error.add_note(f"it was {SECRET}")
    return error


ERRORS: list[BaseException] = [
    *(kind(f"cannot use {SECRET}") for kind in (ValueError, KeyError, RuntimeError, PluginError)),
    OSError(5, f"cannot use {SECRET}"),
    OSError(f"cannot use {SECRET}"),
    ConnectionError(f"cannot use {SECRET}"),
    FileNotFoundError(2, SECRET, SECRET),
    SystemExit(SECRET),
    ExceptionGroup(SECRET, [ValueError(SECRET)]),
    UnicodeEncodeError("ascii", SECRET, 0, 1, SECRET),
    _chain(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda one: type(one).__name__)
def test_a_text_that_may_quote_a_secret_is_told_nowhere(error: BaseException) -> None:
    """Whether the exception is the message, an argument or a field of a log line."""
    made = logging.LogRecord
    shown: list[object] = [
        text_of(error),
        name_of(error),
        traceback_of(error),
        scrub({"error": error, "all": [error], "in": {"it": error}}),
        third_party_logs.heard(made("a", 40, "p", 1, error, (), None)),
        third_party_logs.heard(made("a", 40, "p", 1, "failed: %s", (error,), None)),
        third_party_logs.heard(made("a", 40, "p", 1, "failed: %(why)s", ({"why": error},), None)),
        third_party_logs.heard(
            made("worker.broker.wakeups", 40, "p", 1, "the broker did not", (1, 2, error), None)
        ),
    ]
    assert not any(word in str(one) for one in shown for word in SECRET.split())


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (redis.exceptions.ConnectionError("Error 111 connecting"), "Error 111 connecting"),
        (ConnectionRefusedError(111, "anything"), "Connection refused"),
        (ssl.SSLError(1, "wrong version number"), "wrong version number"),
    ],
)
def test_what_speaks_of_connections_is_told(error: Exception, text: str) -> None:
    """An operator needs these texts."""
    assert text in name_of(error)

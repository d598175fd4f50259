"""What comes in by an asynchronous door: a request, as far as it can be read.

Whoever sent it is not there any more to be told what is wrong with it. It is told in an event,
under the key that stands in the request; what holds no key to be read goes to the quarantine.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    JsonValue,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import from_json

from worker.job import MAX_JOB_BYTES, NAME, JobId, Key, Name, job_id

#: A job of the largest size taken, with every sign of it escaped, or sealed. What is longer is not
#: looked into.
MOST_BYTES = 8 * MAX_JOB_BYTES

Request = Literal["register", "cancel"]


class Unreadable(ValueError):  # noqa: N818
    """Raised for what no key can be read from. Says why, without its content."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What makes it one request, however often it is delivered: its door, and its id there."""

    door: Literal["task", "stream"]
    id: str

    @property
    def stream_entry(self) -> str:
        """Its entry in the job stream; empty if it came by another door."""
        return self.id if self.door == "stream" else ""


def _or_nothing(value: Any, read: ValidatorFunctionWrapHandler) -> Any:
    # One field that is wrong must not keep the others from being said again.
    try:
        return read(value)
    except (ValidationError, RecursionError):
        return None


def _names(value: Any) -> Any:
    given = value if isinstance(value, list | tuple) else []
    return [name for name in given if isinstance(name, str) and re.fullmatch(NAME, name)][:8]


def _said_again(value: Any) -> Any:
    # What cannot be written, or would make an event larger than any job's, is left out.
    try:
        size = len(json.dumps(value, ensure_ascii=False).encode())
    except (TypeError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) and size <= MAX_JOB_BYTES else {}


_OrNothing = WrapValidator(_or_nothing)


class Echo(BaseModel):
    """What of a request is said again in an answer to it: each field that can be read."""

    model_config = ConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True)

    job_id: Annotated[JobId | None, _OrNothing] = None
    provider: Annotated[Name | None, _OrNothing] = None
    account: Annotated[Name | None, _OrNothing] = "default"
    idempotency_key: Annotated[Key | None, _OrNothing] = None
    reply_to: Annotated[tuple[str, ...], BeforeValidator(_names)] = ("results",)
    metadata: Annotated[dict[str, JsonValue], BeforeValidator(_said_again)] = {}

    @property
    def target(self) -> str | None:
        """The id of the job that is meant; None where it does not follow from what can be read."""
        if self.job_id:
            return self.job_id
        if self.provider and self.account and self.idempotency_key:
            return job_id(self.provider, self.account, self.idempotency_key)
        return None


@dataclass(frozen=True, slots=True)
class Entry:
    """A request that can be answered; whether it is a good one is not said."""

    request: Request
    origin: Origin
    echo: Echo
    given: Mapping[str, Any] = field(repr=False)
    content: bytes = field(repr=False)
    """All of it, as bytes: what tells it from another."""


def read(request: Request, given: Any, origin: Origin) -> Entry:
    """Read a request from an object, or a JSON text; a cancel also from a bare job id.

    Raises `Unreadable`.
    """
    if isinstance(given, str | bytes):
        content = given if isinstance(given, bytes) else given.encode("utf-8", "surrogatepass")
        if len(content) > MOST_BYTES:
            raise Unreadable(f"it is larger than {MOST_BYTES} bytes")
        bare = request == "cancel" and re.fullmatch(rb"[0-9a-f-]{36}", content)
        given = content.decode() if bare else _parsed(content)
    else:
        # By no means all of it need be JSON: Celery's clients can mark dates and the like.
        try:
            content = json.dumps(given, sort_keys=True, default=repr).encode()
        except RecursionError:
            raise Unreadable("it is nested too deep") from None
    if request == "cancel" and isinstance(given, str):
        given = {"job_id": given}
    if not isinstance(given, Mapping):
        raise Unreadable("it is no JSON object")
    known = given if request == "cancel" else {**given, "job_id": None}
    echo = Echo.model_validate(known)
    if request == "register" and echo.idempotency_key is None:
        raise Unreadable("no idempotency_key can be read from it")
    if request == "cancel" and not (echo.job_id or echo.idempotency_key):
        raise Unreadable("neither a job_id nor an idempotency_key can be read from it")
    return Entry(request, origin, echo, given, content)


def _parsed(content: bytes) -> Any:
    try:
        return from_json(content, allow_inf_nan=False, cache_strings="keys")
    except ValueError:
        raise Unreadable("it is not JSON") from None

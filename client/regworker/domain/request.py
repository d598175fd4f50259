"""What comes in by an asynchronous entry point: a request, as far as it can be read.

The sender no longer waits for an answer. An event reports what is wrong,
under the key in the request; a request without a readable key goes to the quarantine.
"""

import json
import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, time
from typing import Annotated, Any, Literal

from pydantic import (
    AliasPath,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import from_json

from regworker.domain.job import (
    LONGEST_KEY,
    MAX_JOB_BYTES,
    JobId,
    Key,
    Name,
    Traceparent,
    is_name,
    job_id,
    one_form,
)
from regworker.domain.portable import flaw

#: The largest accepted job with every character escaped, or sealed. Longer requests are not parsed.
MOST_BYTES = 8 * MAX_JOB_BYTES

#: Bytes of metadata, as JSON, that a refusal echoes: enough for a producer's own ids. Wrong
#: requests must not make a worker write any amount.
LONGEST_ECHO = 1024

Request = Literal["register", "cancel"]


class Unreadable(ValueError):  # noqa: N818
    """Raised if no key can be read. Says why, without the content."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Identifies one request, however often it is delivered: entry point, and id there."""

    entry_point: Literal["task", "stream"]
    id: str
    traceparent: str = ""
    """Sent with the request, not in it."""
    answer: str = ""
    """The id with which its sender waits for an answer; '': an event reports a refusal."""
    by: str = ""
    """The name of its HTTP token. With a request to cancel: who cancels somebody else's job."""

    @property
    def stream_entry(self) -> str:
        """Its entry in the job stream; empty for another entry point."""
        return self.id if self.entry_point == "stream" else ""


def _or_nothing(value: Any, read: ValidatorFunctionWrapHandler) -> Any:
    # One wrong field must not prevent the echo of the others.
    try:
        return read(value)
    except (ValidationError, RecursionError):
        return None


def _names(value: Any) -> Any:
    given = value if isinstance(value, list | tuple) else []
    return [name for name in given if isinstance(name, str) and is_name(name)][:8]


def _said_again(value: Any) -> Any:
    # A value that cannot be written, or is too large to echo, is omitted.
    try:
        size = len(json.dumps(value, ensure_ascii=False, allow_nan=False).encode())
    except (TypeError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) and size <= LONGEST_ECHO and not flaw(value) else {}


def _legible(value: Any) -> str | None:
    """A key as far as it can be read, valid or not: for its sender to recognize."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value) if abs(value) < 10**LONGEST_KEY else None
    if not isinstance(value, str) or not value:
        return None
    return _ILLEGIBLE.sub("\ufffd", one_form(value[:LONGEST_KEY]))[:LONGEST_KEY]


_ILLEGIBLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


_OrNothing = WrapValidator(_or_nothing)


class Echo(BaseModel):
    """The fields of a request that an answer echoes: each field that can be read."""

    model_config = ConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True)

    job_id: Annotated[JobId | None, _OrNothing] = None
    provider: Annotated[Name | None, _OrNothing] = None
    account: Annotated[Name | None, _OrNothing] = "default"
    idempotency_key: Annotated[str | None, BeforeValidator(_legible)] = None
    """Readable, but not necessarily valid: unprintable characters are replaced."""
    key: Annotated[Key | None, _OrNothing] = Field(
        None, validation_alias=AliasPath("idempotency_key")
    )
    """The same, if it is valid."""
    reply_to: Annotated[tuple[str, ...], BeforeValidator(_names)] = ("results",)
    metadata: Annotated[dict[str, JsonValue], BeforeValidator(_said_again)] = {}
    traceparent: Traceparent = None

    @property
    def target(self) -> str | None:
        """The id of the job that is meant; None if it cannot be derived."""
        if self.job_id:
            return self.job_id
        if self.provider and self.account and self.key:
            return job_id(self.provider, self.account, self.key)
        return None


@dataclass(frozen=True, slots=True)
class Entry:
    """A request that can be answered, valid or not."""

    request: Request
    origin: Origin
    echo: Echo
    given: Mapping[str, Any] = field(repr=False)
    content: bytes = field(repr=False)
    """The whole request as bytes; it distinguishes the request from others."""


def read(request: Request, given: Any, origin: Origin) -> Entry:
    """Read a request from an object, or a JSON text; a cancel also from a bare job id.

    An object is read as the JSON text that it is written as: nothing depends on the form. Raises
    `Unreadable`.
    """
    if isinstance(given, str | bytes):
        content = given if isinstance(given, bytes) else given.encode("utf-8", "surrogatepass")
        if len(content) > MOST_BYTES:
            raise Unreadable(f"it is larger than {MOST_BYTES} bytes")
        bare = request == "cancel" and re.fullmatch(rb"[0-9a-f-]{36}", content)
        given = content.decode() if bare else _parsed(content)
    else:
        try:
            content = json.dumps(given, sort_keys=True, default=_as_text).encode()
        except RecursionError:
            raise Unreadable("it is nested too deep") from None
        given = _parsed(content)
    if request == "cancel" and isinstance(given, str):
        given = {"job_id": given}
    if not isinstance(given, Mapping):
        raise Unreadable("it is not a JSON object")
    known = given if request == "cancel" else {**given, "job_id": None}
    echo = Echo.model_validate(known)
    if request == "register" and echo.idempotency_key is None:
        raise Unreadable("it holds no readable idempotency_key")
    if request == "cancel" and not (echo.job_id or echo.idempotency_key):
        raise Unreadable("it holds neither a readable job_id nor a readable idempotency_key")
    return Entry(request, origin, echo, given, content)


def read_beginning(request: Request, beginning: bytes, origin: Origin) -> Entry:
    """Read the beginning of a request that is too large, as far as an answer needs it.

    Raises `Unreadable` if it contains no key.
    """
    try:
        given = from_json(beginning.decode(errors="ignore"), allow_partial=True)
    except ValueError:
        raise Unreadable("it is not JSON") from None
    if not isinstance(given, Mapping):
        raise Unreadable("it is not a JSON object")
    known = {name: given[name] for name in Echo.model_fields if name in given}
    entry = read(request, {"metadata": {}, **known}, origin)
    return Entry(request, origin, entry.echo, {}, beginning)


def _as_text(value: Any) -> str:
    """A value that is not JSON: Celery's clients can mark dates and decimals, for example. As text
    it is only checked, and never computed with: the decimal `1E+999999999` as an integer would take
    the worker's memory."""
    match value:
        case date() | time():
            return value.isoformat()
        case bytes():
            try:
                return value.decode()
            except UnicodeDecodeError:
                return b64encode(value).decode()
        case _:
            return str(value)


def _parsed(content: bytes) -> Any:
    try:
        # NaN is allowed here: the refusal names its field.
        return from_json(content, cache_strings="keys")
    except ValueError:
        raise Unreadable("it is not JSON") from None

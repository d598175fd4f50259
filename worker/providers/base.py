"""What a provider is, and what may be read from any answer of any provider.

A provider is one class in one file: its registration model, its account's settings, and two
calls. It neither knows Redis nor Celery, nor how requests travel (`transport.py` does).
"""

import html
import json
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Protocol, assert_never

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

from worker.outcome import Outcome, Refused, Retryable, Unknown
from worker.retry import parse_retry_after


@dataclass(frozen=True, slots=True)
class Request:
    """A call to a provider: JSON by POST. `body` and `headers` may hold secrets."""

    url: str
    body: Any = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer: status line, headers (by names in lower case) and the body's bytes."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class NotSent:
    """No byte of the request left this machine: provably without effect.

    `ours`: for a reason of this worker's (its lease is lost), and no fault of the account.
    """

    reason: str
    ours: bool = False


@dataclass(frozen=True, slots=True)
class Lost:
    """The request may have arrived; a whole answer did not come back."""

    reason: str


Send = Callable[[Request], Awaitable[Answer | NotSent | Lost]]
"""Carries one request within the call budget, under the lease. Never raises for the network."""


def _text(value: Any) -> Any:
    # A key of digits may stand unquoted in a settings file. (Not so for `1e5`: which text that
    # was, nobody knows any more, so a float is refused.)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Text = Annotated[str, BeforeValidator(_text), Field(min_length=1)]
SecretText = Annotated[SecretStr, BeforeValidator(_text), Field(min_length=1)]


def _drop_defaults(schema: dict[str, Any]) -> None:
    for described in schema.get("properties", {}).values():
        described.pop("default", None)


class Body(BaseModel):
    """A part of what a provider is sent: exactly what was given, so nothing is coerced.

    A field with a default may be left out, and is left out then: the default is never sent, so
    the JSON Schema doesn't show it.
    """

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        allow_inf_nan=False,  # JSON has none
        hide_input_in_errors=True,
        json_schema_extra=_drop_defaults,
    )


class Account(BaseModel):
    """What every account at a provider can be given; a provider adds its credentials."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, use_attribute_docstrings=True
    )

    base_url: Annotated[str, Field(pattern=r"^https?://[^\s/?#]+[^\s?#]*$")]
    """Scheme and host, and a path where the provider is mounted under one."""

    rate: Annotated[int, Field(ge=0)] = 0
    """Calls in `rate_period` seconds, across all workers; 0: no limit."""

    rate_period: Annotated[float, Field(gt=0)] = 1.0
    """Seconds over which `rate` counts."""

    max_in_flight: Annotated[int, Field(ge=1)] = 50
    """Calls at a time across all workers, so that an account that hangs takes not every slot."""

    def at(self, path: str) -> str:
        """The URL of a path at this account."""
        return f"{self.base_url.rstrip('/')}/{path}"


class Provider(Protocol):
    """One account at one provider. Constructed with its account's settings and a `Send`."""

    name: ClassVar[str]
    Registration: ClassVar[type[BaseModel]]
    """The documented body without credentials, `extra="forbid"`."""
    Account: ClassVar[type[Account]]

    def __init__(self, account: Any, send: Send) -> None: ...

    async def register(self, registration: Any) -> Outcome:
        """Call the provider once. Anything but proof of having had no effect is `Unknown`.

        A refusal as duplicate is `Rejected` with the code `already_exists`; what it means after
        an unknown attempt is not decided here.
        """
        ...

    async def find_out(self, registration: Any) -> Outcome:
        """Ask whether the customer exists, without any effect.

        `Registered(recovered=True)`: our own password opens the account. `Absent`: nobody is
        there. `Unresolvable`: somebody is, and we cannot tell who. `Refused`: our credentials
        are. `Unknown`: could not be asked, for any other reason (not sent, told to wait, ...).
        """
        ...


def unanswered(sent: NotSent | Lost) -> Retryable | Unknown:
    """What a call without an answer means for what was to be done."""
    match sent:
        case NotSent(reason):
            return Retryable(reason)
        case Lost(reason):
            return Unknown(reason)
        case _:
            assert_never(sent)


def unasked(outcome: Outcome) -> Outcome:
    """What a question that got no answer to itself means: that it did no harm proves nothing."""
    if isinstance(outcome, Retryable):
        return Unknown(outcome.reason, outcome.retry_after)
    return outcome


def read_status(answer: Answer) -> Outcome | None:
    """What the status alone says, for any provider; None: read the body.

    5xx and everything odd is `Unknown`: a full request was there to be carried out.
    """
    wait = parse_retry_after(answer.headers.get("retry-after"))
    status = answer.status
    if 200 <= status < 300:
        return None
    if status == 429:
        return Retryable("told to wait (HTTP 429)", retry_after=wait)
    if status in {401, 403, 404, 405} or 300 <= status < 400:
        return Refused(f"the call was refused (HTTP {status}): check the account's settings")
    return Unknown(f"HTTP {status}", retry_after=wait)


def read_json(answer: Answer) -> Any:
    """The body as JSON, or None where it is none (HTML, cut off, empty, not UTF-8)."""
    try:
        return json.loads(answer.body)
    except (ValueError, RecursionError):
        return None


#: A provider's words longer than this are no sentence, but a page or a stack trace.
MAX_WORDS = 500


def shown(words: str, secrets: Iterable[object]) -> str:
    """A provider's words, fit for events and logs: one line, not endless, and no secret in it.

    Providers quote what they were sent. Secrets are found whatever their case, and as they look
    in HTML and in JSON; None and empty ones are passed over.
    """
    spellings = {spelt for secret in secrets if secret is not None for spelt in _spelt(str(secret))}
    if spellings:
        # The longest first, or a secret that begins like another leaves its end behind.
        longest_first = sorted(spellings, key=len, reverse=True)
        words = re.sub("|".join(map(re.escape, longest_first)), "***", words, flags=re.IGNORECASE)
    printable = "".join(sign if sign.isprintable() else " " for sign in words)
    return " ".join(printable.split())[:MAX_WORDS]


def _spelt(secret: str) -> set[str]:
    one_line = " ".join(secret.split())
    return {secret, one_line, html.escape(secret), json.dumps(secret)[1:-1]} - {""}

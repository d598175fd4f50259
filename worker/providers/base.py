"""What a provider is, and how to read answers of any provider.

A provider is one class in one file: its registration model, its account's settings, and two calls.
It knows neither Redis nor Celery, nor how requests are sent (`http.py` sends them).
"""

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from json import JSONDecoder, detect_encoding
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self, assert_never
from unicodedata import combining, normalize
from urllib.parse import urlencode

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    model_validator,
)
from pydantic_core import to_json

from regworker import tls
from regworker.addresses import unquoted
from regworker.domain.errors import FieldError
from regworker.domain.outcome import (
    Code,
    Fault,
    Outcome,
    Refused,
    Rejected,
    Retryable,
    Unknown,
)
from regworker.domain.retry import parse_retry_after
from regworker.settings import HIGHEST, LONGEST
from regworker.way_out import OwnWayOut
from worker.providers import sendable
from worker.providers.quoting import shown as shown

#: Names and values of a query or a form; a name may occur more than once.
Query = Mapping[str, str] | Sequence[tuple[str, str]]

NO_HEADERS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Request:
    """A call to a provider: by default JSON with POST. All but `method` and `url` may hold secrets.

    `content`: the exact bytes of the body, instead of `body` as JSON; `b""`: no body. To sign a
    body, make the bytes first (`to_bytes`), sign them, and pass them as `content`.
    """

    url: str
    body: Any = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    method: Literal["POST", "GET", "PUT", "PATCH", "DELETE"] = "POST"
    content: bytes | None = field(default=None, repr=False)
    content_type: str = "application/json"

    @classmethod
    def get(cls, url: str, query: Query = (), headers: Mapping[str, str] = NO_HEADERS) -> Self:
        """A GET. The query is part of the URL, and so is in the provider's log: put no secrets in
        it."""
        return cls(with_query(url, query), None, headers, "GET", b"")

    @classmethod
    def form(cls, url: str, fields: Query, headers: Mapping[str, str] = NO_HEADERS) -> Self:
        """A POST of a form (`application/x-www-form-urlencoded`)."""
        content = urlencode(_pairs(fields)).encode()
        kind = "application/x-www-form-urlencoded"
        return cls(url, None, headers, "POST", content, kind)

    def encoded(self) -> bytes:
        """The body's bytes, as sent."""
        return to_bytes(self.body) if self.content is None else self.content


def to_bytes(body: Any) -> bytes:
    """A body as JSON, in the bytes in which it is sent."""
    return to_json(body)


def with_query(url: str, query: Query) -> str:
    """A URL with a percent-encoded query."""
    text = urlencode(_pairs(query))
    return f"{url}{'&' if '?' in url else '?'}{text}" if text else url


def _pairs(given: Query) -> Sequence[tuple[str, str]]:
    return list(given.items()) if isinstance(given, Mapping) else list(given)


@dataclass(frozen=True, slots=True)
class JobReference:
    """The job for which a call is made. A provider with a parameter `job` in its constructor gets
    it.

    `id` is the same for each attempt, and unique to the job: usable as a provider's own idempotency
    key or external id.
    """

    id: str
    idempotency_key: str


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer: status, headers (by names in lower case) and the body's bytes.

    A repeated header with the same value is here once. One with different values is not in
    `headers`; its name is in `conflicting`.
    """

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    conflicting: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class NotSent:
    """No byte of the request left this machine: provably without effect.

    `ours`: for a reason of this worker (its lease is lost); not the account's fault.
    """

    reason: str
    ours: bool = False


@dataclass(frozen=True, slots=True)
class Lost:
    """The request may have arrived; a complete answer did not come back."""

    reason: str


Send = Callable[[Request], Awaitable[Answer | NotSent | Lost]]
"""Sends one request within the time limit, under the lease. Never raises for network errors."""


def _text(value: Any) -> Any:
    # A key of digits may be unquoted in a settings file. (A float is refused: it is unknown how
    # `1e5`, for example, was written.)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Text = Annotated[str, BeforeValidator(_text), Field(min_length=1)]
SecretText = Annotated[
    SecretStr, BeforeValidator(_text), Field(min_length=1), AfterValidator(sendable.key)
]
HeaderSecret = Annotated[SecretText, AfterValidator(sendable.header_key)]
"""A secret for a header."""


class Account(OwnWayOut):
    """The settings of every account; a provider adds its credentials."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, use_attribute_docstrings=True
    )

    base_url: Annotated[
        str,
        BeforeValidator(unquoted),
        Field(pattern=r"^https?://[^\s/?#]+[^\s?#]*$"),
        AfterValidator(sendable.base_url),
    ]
    """Scheme, host, and a path if the provider's API is under one; https."""

    allow_http: bool = False
    """Allow http:// too. For development; not needed for a loopback address."""

    rate: Annotated[int, Field(ge=0, le=HIGHEST)] = 0
    """The number of calls in `rate_period` seconds, across all workers; 0: no limit."""

    rate_period: Annotated[float, Field(gt=0, le=LONGEST)] = 1.0
    """Seconds over which `rate` counts."""

    max_in_flight: Annotated[int, Field(ge=1, le=HIGHEST)] = 50
    """Calls in flight, across all workers, so that one hanging account cannot use up every slot."""

    @model_validator(mode="after")
    def _encrypted(self) -> Self:
        if not self.allow_http and tls.is_plain(self.base_url):
            raise FieldError("base_url must be https:// (or set ALLOW_HTTP=true for this account)")
        return self

    def at(self, path: str) -> str:
        """The URL of a path at this account."""
        return f"{self.base_url.rstrip('/')}/{path}"


class Provider(Protocol):
    """One account at one provider. Constructed with its account's settings and a `Send`."""

    name: ClassVar[str]
    Registration: ClassVar[type[BaseModel]]
    """The documented body without credentials, `extra="forbid"`."""
    Account: ClassVar[type[Account]]
    # A provider should also have
    #
    #     Gives: ClassVar[type[BaseModel]]
    #         The model of `Registered.data`: it checks outcomes that a person enters.
    #     repeatable: ClassVar[bool] = True
    #         The provider carries a request out once, however often it comes under the job's id
    #         (`JobReference`): after a lost answer the same call is made again, in place of
    #         `find_out`. Only with the provider's written word for it.
    #     async def check(self) -> Outcome
    #         A call without effect, for way and credentials: `Absent` where both work, else as
    #         `find_out` has it.
    #
    # They are no part of this protocol, so that a provider without them still works.

    def __init__(self, account: Any, send: Send) -> None: ...

    async def register(self, registration: Any) -> Outcome:
        """Call the provider once. Anything but proof of having had no effect is `Unknown`.

        A refusal as duplicate is `Rejected` with the code `already_exists`; what it means after
        an unknown attempt is not decided here.
        """
        ...

    async def find_out(self, registration: Any) -> Outcome:
        """Look up whether the customer exists, without any effect.

        `Registered(recovered=True)`: our own password opens the account. `Absent`: there is no
        customer (`login_only`: only the login says so). `Unresolvable`: there is one, and it is
        unknown whose. `Refused`: our credentials are refused. `Unknown` or `Retryable`: the lookup
        failed for any other reason (not sent, asked to wait, ...).
        """
        ...


def unanswered(sent: NotSent | Lost) -> Retryable | Unknown:
    """The outcome of a call without an answer."""
    match sent:
        case NotSent(reason, ours):
            return Retryable(reason, spends=not ours)
        case Lost(reason):
            return Unknown(reason)
        case _:
            assert_never(sent)


def unasked(outcome: Outcome) -> Outcome:
    """The outcome of a lookup without an answer: even if it was not sent, it proves nothing.

    One that this worker did not send stays so: it is no silence of the provider's.
    """
    if isinstance(outcome, Retryable) and outcome.spends:
        return Unknown(outcome.reason, outcome.retry_after)
    return outcome


#: Refusals of the account, or of the call as such. But anything between the worker and the provider
#: may answer so after the provider has carried the request out: a firewall that reads answers
#: replaces one with 403, a front that hides errors with 404, a form is followed by 302.
_REFUSED = frozenset({301, 302, 307, 308, 401, 403, 404, 405})


def read_status(answer: Answer) -> Outcome | None:
    """The outcome by the status alone, for any provider; None: read the body.

    5xx, 303 and unknown statuses are `Unknown`: the complete request may have been carried out.
    Refusals of the account are `unproved` for the same reason. Only 429 is believed.
    """
    wait = parse_retry_after(answer.headers.get("retry-after"))
    status = answer.status
    if 200 <= status < 300:
        return None
    if status == 429:
        return Retryable("asked to wait (HTTP 429)", retry_after=wait)
    if status in _REFUSED:
        why = f"the call was refused (HTTP {status}): check the account's settings"
        return Refused(why, unproved=True)
    return Unknown(f"HTTP {status}", retry_after=wait)


#: Statuses with which HTTP APIs refuse one customer, and not the account.
_REFUSALS: Mapping[int, Code] = {
    400: Code.INVALID,
    404: Code.NOT_FOUND,
    409: Code.ALREADY_EXISTS,
    422: Code.INVALID,
}


def read_refusal(answer: Answer, words: str = "") -> Outcome | None:
    """The outcome by the status, for a provider that refuses customers by it; None: read the body.

    As `read_status`; in addition 400, 404, 409 and 422 reject this customer: they do not stop the
    account. But only in the provider's own words, which are JSON unless `words` are given: anything
    on the way may answer with such a status, after the request was carried out. `words`: the
    provider's text, made safe for events (`shown`).
    """
    code = _REFUSALS.get(answer.status)
    if code and (words or isinstance(read_json(answer), dict | list)):
        return Rejected((Fault(code, "", words or f"HTTP {answer.status}"),))
    return read_status(answer)


def read_json(answer: Answer) -> Any:
    """The body as JSON, or None if it is none (HTML, truncated, empty, undecodable)."""
    try:
        return _JSON.decode(_text_of(answer))
    except (ValueError, RecursionError):
        return None


def _text_of(answer: Answer) -> str:
    body = answer.body
    try:
        # Servers that declare another charset by habit often send UTF-8, some with a byte order
        # mark. Non-ASCII bytes that are valid UTF-8 are hardly ever anything else.
        return body.decode(detect_encoding(body))
    except UnicodeDecodeError:
        named = CHARSET.search(answer.headers.get("content-type", ""))
        spelt = re.sub(r"[\W_]", "", named[1].lower()) if named else ""
        if (charset := CHARSETS.get(spelt)) is None:
            raise
        return body.decode(charset)


CHARSET = re.compile(r"""charset\s*=\s*["']?([\w.:-]+)""", re.IGNORECASE)

#: The charsets besides UTF-8 that an answer may declare: names without dashes, which servers write
#: differently. (Python's own lookup caches every name.)
CHARSETS = {
    **dict.fromkeys(("iso88591", "latin1", "l1"), "iso-8859-1"),
    **dict.fromkeys(("iso885915", "latin9", "l9"), "iso-8859-15"),
    **dict.fromkeys(("windows1252", "cp1252"), "windows-1252"),
}


def _no_number(_name: str) -> Any:
    raise ValueError


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    # One name with two values: as with a header, it is unknown which is meant. (1 == True)
    if len(found) != len(pairs) and any(
        type(found[name]) is not type(value) or found[name] != value for name, value in pairs
    ):
        raise ValueError
    return found


#: JSON has no NaN and no Infinity.
_JSON = JSONDecoder(parse_constant=_no_number, object_pairs_hook=_object)


def whole(value: object) -> int | None:
    """A whole number as JSON may write it, also as `1.0`; None for anything else.

    A text of digits is none: a server that sends one may have confused two fields.
    """
    match value:
        case bool():
            return None
        case int():
            return value
        # Beyond 2^53 a float may stand for several whole numbers.
        case float() if value.is_integer() and abs(value) < 2**53:
            return int(value)
        case _:
            return None


def same_email(one: str, other: str) -> bool:
    """Whether two spellings are one address: ignoring case and surrounding white space.

    Unicode case folding: if either was written in capitals, `ı`, `i` and `İ` are one letter, for a
    server in Turkey or elsewhere. A provider that distinguishes them was asked for the right
    address, so that it returns no other one.
    """
    return _folded(one) == _folded(other)


_LONGEST_EMAIL = 1000


def _folded(email: str) -> str:
    email = email.strip()
    # Normalizing takes time by the square of the length, and no address is that long.
    if email.isascii() or len(email) > _LONGEST_EMAIL:
        return email.lower()
    return "".join(_undotted(normalize("NFD", normalize("NFC", email).upper().casefold())))


def _undotted(folded: str) -> Iterator[str]:
    """Without the dots that an `İ` leaves on an `i`; other marks may stand between them."""
    letter = ""
    for sign in folded:
        if not combining(sign):
            letter = sign
        elif letter == "i" and sign == "\u0307":
            continue
        yield sign

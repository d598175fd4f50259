"""The job: what a producer hands over, and the id that follows from it."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self
from unicodedata import category, normalize, unidata_version

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)

from regworker.domain.errors import FieldError
from regworker.domain.notation import Notation, plain
from regworker.domain.portable import flaw
from regworker.domain.trace_context import traceparent

#: Names of providers, accounts and endpoints become parts of ledger keys and of environment
#: variables, so they contain neither a colon nor a double underscore.
NAME = r"^[a-z0-9]+(?:[_-][a-z0-9]+)*$"

LONGEST_NAME = 64

Name = Annotated[str, StringConstraints(pattern=NAME, max_length=LONGEST_NAME)]


def is_name(text: str) -> bool:
    """Whether a text may be such a name: only then is it shown, since any other may be anything."""
    return len(text) <= LONGEST_NAME and re.fullmatch(NAME, text) is not None


#: A valid key has no control characters and no other line ends.
_KEY = r"^[^\u0000-\u001f\u007f-\u009f\u2028\u2029]+$"
LONGEST_KEY = 255
#: Before it is normalized: a character of the NFC form has at most four others instead.
_LONGEST_GIVEN = 4 * LONGEST_KEY
#: Half of a surrogate pair is not valid text either, although a Python text can contain it.
_NO_KEY = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def one_form(key: str) -> str:
    """A key in its NFC form, in which keys are compared: `é` is one key, however it is encoded.

    A text that is too long for a key stays as it is: normalizing takes time by the square of the
    length.
    """
    return key if key.isascii() or len(key) > _LONGEST_GIVEN else normalize("NFC", key)


def known_characters(key: str) -> str:
    """The key, if this process knows each of its characters; else `FieldError`.

    Each Python has its own version of Unicode, and puts characters that are newer in no order. So
    two processes could make two jobs of one key, and then two customers. Among characters that both
    know, the form is the same in all versions (Unicode's "Normalization Stability Policy").
    """
    if not key.isascii() and any(category(sign) == "Cn" for sign in key[:_LONGEST_GIVEN]):
        raise FieldError(
            f"holds a character that Unicode {unidata_version} does not have: this process cannot "
            "compare it. Use other characters"
        )
    return key


def _key(value: str) -> str:
    # Some characters are longer in their NFC form.
    key = one_form(value)
    if 1 <= len(key) <= LONGEST_KEY and not _NO_KEY.search(key):
        return known_characters(key)
    raise FieldError(
        "must be text of 1 to 255 characters, without control characters or line separators"
    )


Key = Annotated[
    str,
    AfterValidator(_key),
    WithJsonSchema({"type": "string", "minLength": 1, "maxLength": LONGEST_KEY, "pattern": _KEY}),
]
"""A producer's own key for a job."""

JobId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]

#: A job is a filled-in form; a larger one is a mistake, and would occupy memory of the ledger.
MAX_JOB_BYTES = 64 * 1024

Traceparent = Annotated[
    str | None,
    BeforeValidator(lambda value: traceparent(value) or None),
    WithJsonSchema({"type": ["string", "null"]}),
]
"""`traceparent` of W3C Trace Context; a malformed one is ignored."""

Lane = Literal["live", "bulk"]
"""`live`: a person waits at a sign-up page. `bulk`: an import; started when no live job waits."""


#: No deadline may be earlier: a producer that computes it wrongly should get an error.
EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)

#: The last second of Python's UTC times. A client that means "never" sends the last time of its
#: language (.NET: 9999-12-31T23:59:59.9999999), or one with an offset into year 10000.
LATEST = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)


def _not_past_the_latest(value: datetime) -> datetime:
    return min(value, LATEST)


def _portable(value: dict[str, Any]) -> dict[str, Any]:
    if what := flaw(value):
        raise FieldError(what)
    return value


def _body(value: Any) -> Any:
    return value if type(value) is dict else plain(value)


class Job(Notation):
    """A registration job, as JSON at every entry point.

    `registration` is the provider's documented body without credentials; the provider's own model
    checks it. `deadline` is when the worker gives up (default: 24 h after acceptance).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    provider: Name = Field(description="Which provider: `skypostal`, `open2b`.")
    account: Name = Field("default", description="Which configured account at the provider.")
    idempotency_key: Key = Field(
        description="The producer's own key; one customer per key. Compared in Unicode form NFC; "
        "without characters that are newer than the worker's version of Unicode (14 or later)."
    )
    # Not `JsonValue`, which checks each value in Python: the provider's model checks anyway.
    registration: Annotated[dict[str, Any], BeforeValidator(_body)] = Field(
        description="The provider's documented body, without credentials.", repr=False
    )
    reply_to: tuple[Name, ...] = Field(
        ("results",), description="Configured endpoints that get the result.", max_length=8
    )
    lane: Lane = Field("live", description="`live` jobs always start before `bulk` jobs.")
    if_exists: Literal["reject", "adopt"] = Field(
        "reject",
        description="If the account already exists: `reject` gives `already_exists`; `adopt` "
        "counts it as registered if this job's password opens it.",
    )
    deadline: (
        Annotated[AwareDatetime, Field(ge=EARLIEST), AfterValidator(_not_past_the_latest)] | None
    ) = Field(
        None, description="RFC 3339. After it the job is abandoned. Default: 24 h after acceptance."
    )
    metadata: Annotated[dict[str, JsonValue], AfterValidator(_portable)] = Field(
        default_factory=dict, description="Echoed in every event of this job. Not for secrets."
    )
    traceparent: Traceparent = Field(
        None,
        description="The trace that the job belongs to (W3C Trace Context). A malformed one is "
        "ignored.",
    )

    if TYPE_CHECKING:  # the accepted types, if a field also accepts other types than it stores

        def __init__(
            self,
            *,
            provider: str,
            idempotency_key: str,
            registration: BaseModel | Mapping[str, Any],
            account: str = ...,
            reply_to: Sequence[str] = ...,
            lane: Lane = ...,
            if_exists: Literal["reject", "adopt"] = ...,
            deadline: datetime | str | None = ...,
            metadata: Mapping[str, JsonValue] = ...,
            traceparent: str | None = ...,
        ) -> None: ...

    @property
    def id(self) -> str:
        """The job's id: also the Celery task id, the same for every repeat of the key."""
        # No `cached_property`: before Python 3.12 a fork may copy its lock locked.
        kept: dict[str, str] = self.__dict__
        if "id" not in kept:
            kept["id"] = job_id(self.provider, self.account, self.idempotency_key)
        return kept["id"]

    def content(self, registration: bytes) -> bytes:
        """What makes two jobs of one key the same job, as canonical bytes; holds secrets.

        `registration`: canonical JSON.

        How urgent a job is (`lane`, `deadline`) and its trace are not part of it: a producer that
        repeats a request an hour later asks for the same thing.
        """
        # Written out, since encoding it would be a tenth of the time of `enqueue_many`. Names need
        # no escaping, and most jobs have no metadata.
        names = ",".join([f'"{name}"' for name in self.reply_to])
        metadata = canonical(self.metadata) if self.metadata else b"{}"
        begun = f'{{"id":"{self.id}","if_exists":"{self.if_exists}","metadata":'
        return b'%b%b,"reply_to":[%b]}\0%b' % (
            begun.encode(),
            metadata,
            names.encode(),
            registration,
        )


class Cancel(BaseModel):
    """A request to cancel a job, as JSON at the asynchronous entry points.

    It names the job by its id, or by provider, account and idempotency key. The answer goes to the
    endpoints of the job; if there is no such job, to those in `reply_to`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    job_id: JobId | None = None
    provider: Name | None = None
    account: Name = "default"
    idempotency_key: Key | None = None
    reply_to: tuple[Name, ...] = Field(("results",), max_length=8)

    @model_validator(mode="after")
    def _names_one(self) -> Self:
        by_key = self.provider is not None and self.idempotency_key is not None
        if (self.job_id is None) != by_key:
            raise FieldError("a job is named by its job_id, or by provider and idempotency_key")
        return self

    @property
    def target(self) -> str:
        """The id of the job to cancel."""
        return self.job_id or job_id(str(self.provider), self.account, str(self.idempotency_key))


def job_id(provider: str, account: str, idempotency_key: str) -> str:
    """Derive the id of the job with this key: a UUID (version 8) of a SHA-256 of its scope."""
    # Joined, not formatted: the text of a member of a `str` enumeration is its value.
    scope = "\x1f".join((provider, account, one_form(idempotency_key)))
    digest = bytearray(hashlib.sha256(b"registration-worker/job\x1f" + scope.encode()).digest())
    digest[6] = digest[6] & 0x0F | 0x80
    digest[8] = digest[8] & 0x3F | 0x80
    text = digest[:16].hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def canonical(value: Any) -> bytes:
    """JSON with sorted keys and no spaces: equal values give equal bytes.

    `ValueError` for NaN and infinite numbers, which JSON has not.
    """
    return _CANONICAL.encode(value).encode()


# What contains itself is refused before: by pydantic, and by `flaw`.
_CANONICAL = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, check_circular=False
)

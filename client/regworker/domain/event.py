"""The result event: CloudEvents 1.0 in JSON, the same bytes on every channel.

Read with tolerance: an event of a newer worker may have fields that are not known here yet.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue
from pydantic_core import to_json

from regworker.domain.outcome import Code


class EventType(StrEnum):
    """What happened to a job. All types but `review` are final.

    `corrected` follows a final one, at most once, if a person decided wrongly on the review.
    """

    REGISTERED = "registration.registered"
    REJECTED = "registration.rejected"
    ABANDONED = "registration.abandoned"
    CANCELLED = "registration.cancelled"
    REVIEW = "registration.review"
    CORRECTED = "registration.corrected"

    @property
    def word(self) -> str:
        """What it says, in a word: `registered`."""
        return self.removeprefix("registration.")

    @classmethod
    def of(cls, word: str) -> "EventType":
        """The type that says this."""
        return cls(f"registration.{word}")


class EventError(BaseModel):
    """One reason: our stable `code`, and the provider's field, text and own code."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    code: Code
    field: str = ""
    message: str
    provider_code: str | None = None


class EventData(BaseModel):
    """What happened to the job: `outcome` if registered, else `errors`; cancelled has neither.

    A correction has what is right: `outcome` if the customer is this job's, else `errors`.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    job_id: str
    idempotency_key: str
    provider: str
    account: str
    attempts: int = Field(description="Calls that may have reached the provider.")
    recovered: bool = Field(
        False,
        description="The outcome comes from a look-up at the provider, not from the answer to "
        "the registration call.",
    )
    accepted_at: AwareDatetime
    finished_at: AwareDatetime
    metadata: dict[str, JsonValue] = Field(default_factory=dict)
    outcome: dict[str, JsonValue] | None = Field(
        None,
        repr=False,
        description="SkyPostal: `customer_box_id`, `customer_key`. Open2b: `customer_key`.",
    )
    errors: tuple[EventError, ...] | None = None
    corrects: str | None = Field(
        None, description="Only in a correction: the id of the event that was wrong."
    )


class RefusalData(BaseModel):
    """Why a request of an asynchronous entry point was refused, with its readable fields.

    No other event has `accepted`. `job_id` is the job that the request names. If its key is taken
    (`idempotency_conflict`), that is the first job with the key, which does not change.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    accepted: Literal[False] = False
    request: Literal["register", "cancel"]
    job_id: str | None = None
    idempotency_key: str | None = None
    provider: str | None = None
    account: str | None = None
    metadata: dict[str, JsonValue] = Field(default_factory=dict)
    errors: tuple[EventError, ...]


class Event(BaseModel):
    """A CloudEvent about one job, or about a request that made none.

    `id` is unique and stable: deduplicate by it.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    specversion: Literal["1.0"] = "1.0"
    id: str
    source: str
    type: EventType
    subject: str = Field(
        description="The job's id; for a refused request, which has no job, a name of its own."
    )
    time: AwareDatetime
    datacontenttype: Literal["application/json"] = "application/json"
    traceparent: str | None = Field(
        None,
        description="The trace that the job belongs to, if it has one (W3C Trace Context; "
        'CloudEvents, "Distributed Tracing extension").',
    )
    data: EventData | RefusalData

    def encode(self) -> bytes:
        """The bytes that go out, on every channel."""
        return self.model_dump_json(exclude_none=True).encode()


def encode(
    id_: str,
    source: str,
    kind: EventType,
    subject: str,
    at: float,
    data: Mapping[str, object],
    traceparent: str = "",
) -> bytes:
    """The same bytes as `Event.encode()`, from values that are known to be valid.

    `at`: milliseconds; `data`: the fields of `EventData` in its order, without those that are
    None. A worker makes one for each job, and validating its own values in the model would cost as
    much as writing them; a test compares the two.
    """
    return to_json(
        {
            "specversion": "1.0",
            "id": id_,
            "source": source,
            "type": str(kind),  # pydantic looks for a long time at an enumeration's member
            "subject": subject,
            "time": moment(at),
            "datacontenttype": "application/json",
            **({"traceparent": traceparent} if traceparent else {}),
            "data": data,
        },
        inf_nan_mode="null",  # as the models do
    )


class DisabledData(BaseModel):
    """An endpoint that gets no events any more, until an operator enables it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    endpoint: str
    reason: str = Field(description="Its answer, or for how long all deliveries have failed.")
    since: AwareDatetime = Field(description="The time of its first failure.")
    dead: int = Field(description="Undelivered events; they are kept and can be replayed.")


class TestData(BaseModel):
    """The data of a test event: only the endpoint that it was sent to."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    __test__ = False

    endpoint: str


class Notice(BaseModel):
    """A CloudEvent about an endpoint, and no job: its type does not start with `registration.`."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    specversion: Literal["1.0"] = "1.0"
    id: str
    source: str
    type: Literal["endpoint.disabled", "webhook.test"]
    subject: str = Field(description="The endpoint's name.")
    time: AwareDatetime
    datacontenttype: Literal["application/json"] = "application/json"
    data: DisabledData | TestData

    def encode(self) -> bytes:
        """The bytes that go out."""
        return self.model_dump_json().encode()


def moment(ms: float) -> datetime:
    """A ledger time (milliseconds since 1970, the server's clock) as a datetime in UTC."""
    try:
        return datetime.fromtimestamp(ms / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        # A changed record may contain any number.
        return _LAST if ms > 0 else _FIRST


_FIRST = datetime(1, 1, 1, tzinfo=UTC)
_LAST = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)


def event_id(job_id: str, reopened: int, kind: EventType) -> str:
    """The id of an event: the same however often it is published or delivered.

    It does not depend on fences or attempts: a ledger that forgot the end of a job counts those
    again, and the event that is published then must have the id of the first. Between two times
    that a person reopens a job (redrive, resend), each kind of event happens once at most. What was
    corrected is never reopened.
    """
    name = f"{job_id}.{kind.word}"
    return f"{name}.{reopened + 1}" if reopened and kind is not EventType.CORRECTED else name


def read_event(text: bytes | str) -> dict[str, Any]:
    """The event as a plain dictionary, validated with the model."""
    return Event.model_validate_json(text).model_dump(mode="json", exclude_none=True)

"""The job: what a producer hands over, and the id that follows from it."""

import hashlib
import json
from datetime import UTC, datetime
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    model_validator,
)

#: Names of providers, accounts and endpoints: they become parts of ledger keys and of
#: environment variables, so they hold neither a colon nor a double underscore.
NAME = r"^[a-z0-9]+(?:[_-][a-z0-9]+)*$"

Name = Annotated[str, StringConstraints(pattern=NAME, max_length=64)]

Key = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=r"^[\x21-\x7e]+$")]
"""A producer's own key for a job."""

JobId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]

#: A job is a form somebody filled in; one past this is a mistake, and would sit in memory of
#: the ledger, whose commands are all short.
MAX_JOB_BYTES = 64 * 1024

Lane = Literal["live", "bulk"]
"""`live`: somebody looks at a sign-up page. `bulk`: an import; taken when no live job waits."""


#: No deadline is before this: what computes one wrongly should hear of it.
EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)


class Job(BaseModel):
    """A registration job, as JSON at every door.

    `registration` is the provider's documented body without credentials; the provider's own model
    checks it. `deadline` is when the producer loses interest (default: 24 h after acceptance).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    provider: Name = Field(description="Which provider: `skypostal`, `open2b`.")
    account: Name = Field("default", description="Which configured account at the provider.")
    idempotency_key: Key = Field(
        description="The producer's own key: one customer each. Printable ASCII, no spaces."
    )
    # No `JsonValue`, which looks at each value in Python: the provider's model looks anyway.
    registration: dict[str, Any] = Field(
        description="The provider's documented body, without credentials.", repr=False
    )
    reply_to: tuple[Name, ...] = Field(
        ("results",), description="Configured endpoints that get the result.", max_length=8
    )
    lane: Lane = Field("live", description="`live` is always taken before `bulk`.")
    if_exists: Literal["reject", "adopt"] = Field(
        "reject",
        description="What an account that exists already means: `reject` gives `already_exists`; "
        "`adopt` counts it as registered if it opens with this job's password.",
    )
    deadline: Annotated[AwareDatetime, Field(ge=EARLIEST)] | None = Field(
        None, description="RFC 3339. Past it the job is abandoned. Default: 24 h from acceptance."
    )
    metadata: dict[str, JsonValue] = Field(
        default_factory=dict, description="Echoed in every event of this job. Not for secrets."
    )

    @cached_property
    def id(self) -> str:
        """The job's id: also the Celery task id, the same for every repeat of the key."""
        return job_id(self.provider, self.account, self.idempotency_key)

    def content(self, registration: bytes) -> bytes:
        """What makes two jobs of one key the same job, as canonical bytes; holds secrets.

        `registration`: canonical JSON.

        How urgent a job is (`lane`, `deadline`) is not part of it: a producer that repeats a
        request an hour later asks for the same thing.
        """
        # Spelt out: a tenth of what `enqueue_many` takes for a job was to have it encoded. Names
        # need no escaping, and most jobs have no metadata.
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
    """A request to take a job back, as JSON at the asynchronous doors.

    It names the job by its id, or by what its id follows from. `reply_to` gets the answer if there
    is no such job; that of a job goes where the job says.
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
            raise ValueError("a job is named by its job_id, or by provider and idempotency_key")
        return self

    @property
    def target(self) -> str:
        """The id of the job to cancel."""
        return self.job_id or job_id(str(self.provider), self.account, str(self.idempotency_key))


def job_id(provider: str, account: str, idempotency_key: str) -> str:
    """Derive the id of the job with this key: a UUID (version 8) of a SHA-256 of its scope."""
    scope = f"{provider}\x1f{account}\x1f{idempotency_key}"
    digest = bytearray(hashlib.sha256(b"registration-worker/job\x1f" + scope.encode()).digest())
    digest[6] = digest[6] & 0x0F | 0x80
    digest[8] = digest[8] & 0x3F | 0x80
    text = digest[:16].hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def canonical(value: Any) -> bytes:
    """JSON with sorted keys and no spaces: equal values give equal bytes."""
    return _CANONICAL.encode(value).encode()


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)

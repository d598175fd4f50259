"""Events and signed webhook requests, as a worker publishes them, for a host's own tests."""

import base64
import hashlib
import hmac
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from regworker.domain.event import Event, EventData, EventError, EventType, event_id
from regworker.domain.job import job_id
from regworker.domain.outcome import Code

#: The providers' data, with invalid credentials.
OUTCOMES: Mapping[str, Mapping[str, Any]] = {
    "skypostal": {"customer_box_id": 811111, "customer_key": "VGhpcyBpcyBhIGZha2Uga2V5"},
    "open2b": {"customer_key": "FakeKey-RtRi8JWs"},
}


@dataclass(frozen=True, slots=True)
class Ending:
    """How a job ends; made by `registered`, `rejected`, `abandoned`, `cancelled` or `review`.

    Or how a person's decision is corrected (`corrected`), which no job ends by.
    """

    type: EventType
    outcome: Mapping[str, Any] | None = field(default=None, repr=False)
    errors: tuple[EventError, ...] = ()
    attempts: int = 1
    recovered: bool = False
    corrects: EventType | None = None


def registered(outcome: Mapping[str, Any] | None = None, *, recovered: bool = False) -> Ending:
    """The customer exists. `outcome`: default, one that the job's provider could have given."""
    return Ending(EventType.REGISTERED, outcome, recovered=recovered)


def rejected(
    code: str = "invalid",
    field: str = "",
    message: str = "refused by a test",
    provider_code: str | None = None,
) -> Ending:
    """The provider refused the registration for good. `code`: one of
    `regworker.domain.outcome.Code`."""
    return _failed(EventType.REJECTED, code, field, message, provider_code)


def abandoned(code: str = "deadline", message: str = "the deadline passed") -> Ending:
    """The deadline passed or all attempts were used up; no customer was created."""
    return _failed(EventType.ABANDONED, code, "", message)


def review(message: str = "the provider cannot tell whether the customer exists") -> Ending:
    """A person must look. Not final: the job stays open."""
    return _failed(EventType.REVIEW, Code.PROVIDER_ERROR, "", message)


def cancelled() -> Ending:
    """The producer cancelled the job before any request was sent."""
    return Ending(EventType.CANCELLED, attempts=0)


def corrected(right: Ending, *, was: Ending) -> Ending:
    """A person had decided wrongly on a review: what is right, and what was published first."""
    return replace(right, type=EventType.CORRECTED, corrects=was.type)


def event(
    ending: Ending,
    *,
    provider: str = "open2b",
    account: str = "default",
    idempotency_key: str = "test-1",
    metadata: Mapping[str, Any] | None = None,
    accepted_at: datetime | None = None,
    source: str = "/registration-worker",
) -> Event:
    """The event that a worker publishes of such a job; `encode()` gives its bytes."""
    now = datetime.now(UTC)
    id_ = job_id(provider, account, idempotency_key)
    outcome = ending.outcome
    if outcome is None and not ending.errors and ending.type in _WITH_OUTCOME:
        outcome = OUTCOMES.get(provider, {})
    data = EventData(
        job_id=id_,
        idempotency_key=idempotency_key,
        provider=provider,
        account=account,
        attempts=ending.attempts,
        recovered=ending.recovered,
        accepted_at=accepted_at or now,
        finished_at=now,
        metadata=dict(metadata or {}),
        outcome=None if outcome is None else dict(outcome),
        errors=ending.errors or None,
        corrects=ending.corrects and event_id(id_, 0, ending.corrects),
    )
    name = event_id(id_, 0, ending.type)
    return Event(id=name, source=source, type=ending.type, subject=id_, time=now, data=data)


_WITH_OUTCOME = frozenset({EventType.REGISTERED, EventType.CORRECTED})


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """A webhook's request: POST `body` with `headers` to the receiver under test."""

    headers: Mapping[str, str]
    body: bytes = field(repr=False)


def signed(what: Event, *secrets: str, at: float | None = None) -> SignedRequest:
    """The request that delivers an event, signed by each of the secrets (`whsec_...`).

    `at`: seconds since 1970, default now; a receiver refuses a request that is minutes old.
    Standard Webhooks, "Signature scheme".
    """
    body = what.encode()
    stamp = str(int(time.time() if at is None else at))
    content = f"{what.id}.{stamp}.".encode() + body
    signatures = [
        base64.b64encode(hmac.digest(_key(secret), content, hashlib.sha256)).decode()
        for secret in secrets
    ]
    headers = {
        "content-type": "application/cloudevents+json",
        "webhook-id": what.id,
        "webhook-timestamp": stamp,
        "webhook-signature": " ".join(f"v1,{one}" for one in signatures),
    }
    return SignedRequest(headers, body)


def _failed(
    kind: EventType, code: str, name: str, message: str, provider_code: str | None = None
) -> Ending:
    error = EventError(code=Code(code), field=name, message=message, provider_code=provider_code)
    return Ending(kind, errors=(error,))


def _key(secret: str) -> bytes:
    return base64.b64decode(secret.removeprefix("whsec_"))

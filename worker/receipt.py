"""What a producer is told of its jobs."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from worker.errors import IdempotencyConflict, InvalidJob
from worker.lifecycle import State


@dataclass(frozen=True, slots=True)
class Receipt:
    """A job that is in. `repeat`: it was already, with the same content."""

    job_id: str
    idempotency_key: str
    state: State
    accepted_at: datetime
    repeat: bool


@dataclass(frozen=True, slots=True)
class Status:
    """Where a job stands. `event`: what was published of it last (it may hold keys: secret)."""

    job_id: str
    idempotency_key: str
    provider: str
    account: str
    state: State
    attempts: int
    accepted_at: datetime
    deadline: datetime
    due: datetime | None
    finished_at: datetime | None
    why: str
    timeline: tuple[tuple[datetime, str], ...]
    event: dict[str, Any] | None

    @property
    def final(self) -> bool:
        """Whether the job is over."""
        return self.finished_at is not None


@dataclass(frozen=True, slots=True)
class Refused:
    """A job of `enqueue_many` that did not get in; `number` counts the given jobs from 0."""

    number: int
    error: InvalidJob | IdempotencyConflict

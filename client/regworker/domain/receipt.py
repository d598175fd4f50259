"""The answers to a producer about its jobs."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from regworker.domain.errors import IdempotencyConflict, InvalidJob, UnreadableRecord
from regworker.domain.states import State


@dataclass(frozen=True, slots=True)
class Receipt:
    """An accepted job. `repeat`: it was already accepted, with the same content."""

    job_id: str
    idempotency_key: str
    state: State
    accepted_at: datetime
    repeat: bool


@dataclass(frozen=True, slots=True)
class Status:
    """The state of a job. `event`: the last published event (it may hold keys: secret)."""

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
    event: dict[str, Any] | None = field(repr=False)
    corrected: str = ""
    """`registered` or `rejected`: the right result, if an operator has corrected a person's wrong
    decision on its review; then `event` is the correction. `state` does not change."""

    @property
    def final(self) -> bool:
        """Whether the job has ended."""
        return self.finished_at is not None


@dataclass(frozen=True, slots=True)
class Refused:
    """A refused job of `enqueue_many`; `number` counts the given jobs from 0."""

    number: int
    error: InvalidJob | IdempotencyConflict | UnreadableRecord

"""Looks a customer up at the provider, for the person who settles a review.

Only the lookup is sent, and the ledger is not changed. It needs the account's settings in this
process; for a job that is sent again, a worker looks up, which has them.
"""

import asyncio
from dataclasses import dataclass
from typing import Any, Literal, assert_never

from regworker.domain.errors import NotInReview
from regworker.domain.outcome import (
    Absent,
    Outcome,
    Refused,
    Registered,
    Rejected,
    Retryable,
    Unknown,
    Unresolvable,
)
from regworker.domain.states import State
from regworker.ledger.records import TAKEN, Record
from regworker.sealing import seals
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from worker.execution.decision import REFUSED, refused_again
from worker.providers.base import JobReference
from worker.providers.http import HttpTransport
from worker.providers.registry import Accounts, Registry


@dataclass(frozen=True, slots=True)
class Answered:
    """A provider's answer. `reason` contains no personal data; `data` contains credentials."""

    what: Literal["ours", "absent", "unclear", "unasked"]
    """`ours`: this job's password opens the account; `absent`: neither its password nor its address
    finds a customer; `unclear`: there is or may be a customer, and it may be this job's."""
    reason: str = ""
    data: dict[str, Any] | None = None


class Questions:
    """Looks customers up, with each account's settings in this process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._registry = Registry(settings.providers)
        self._accounts = Accounts(self._registry, settings.accounts, settings.way_out)
        self._keyring = Keyring.of(settings)

    def can(self, record: Record) -> bool:
        """Whether this process has the account."""
        return self._accounts.get((record.provider, record.account)) is not None

    def ask(self, record: Record) -> Answered:
        """Look up once. Raises `NotInReview`, and `SealingError` for a record that was changed."""
        if record.state is not State.REVIEW:
            raise NotInReview(f"job {record.id} is {record.state}, not in review")
        if not self.can(record):
            return Answered("unasked", "this process has no settings for the account")
        plain = self._keyring.open(record.payload, seals.payload(record))
        registration = self._registry.read_json(record.provider, plain)
        found = asyncio.run(self._ask(record, registration))
        if isinstance(found, Absent) and _was_refused(record):
            found = refused_again(found)
        return _found(found)

    async def _ask(self, record: Record, registration: Any) -> Outcome:
        transport = HttpTransport(self._settings.call_budget)
        name = record.provider, record.account
        try:
            way = self._accounts.way(name)
            send = transport.sender(lambda: True, self._settings.call_budget, way=way)
            job = JobReference(record.id, record.idempotency_key)
            provider = self._accounts.open(*name, send, job)
            return await provider.find_out(registration)
        finally:
            await transport.aclose()


def _was_refused(record: Record) -> bool:
    """Whether a call of the job was refused because the customer exists, by what is recorded."""
    said = any(REFUSED in text for text in (record.why, record.log))
    return said or record.unproved == TAKEN


def _found(outcome: Outcome) -> Answered:
    match outcome:
        case Registered(data):
            return Answered("ours", data=data)
        case Absent(reason, login_only):
            return Answered("unclear" if login_only else "absent", reason)
        case Unresolvable(reason):
            return Answered("unclear", reason)
        case Unknown(reason) | Retryable(reason) | Refused(reason):
            return Answered("unasked", reason)
        case Rejected(errors):
            return Answered("unasked", ", ".join(f"{one.field}: {one.code}" for one in errors))
        case _:
            assert_never(outcome)

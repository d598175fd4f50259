"""Turning what became of a job into the event that says so, and telling it again."""

from collections.abc import Mapping
from typing import Any

from pydantic_core import from_json, to_json

from worker.entry import Entry
from worker.event import (
    Event,
    EventError,
    EventType,
    RefusalData,
    encode,
    event_id,
    moment,
    read_event,
)
from worker.ledger.commands import Publication
from worker.ledger.records import Record
from worker.outcome import Fault, Registered
from worker.sealing import Keyring
from worker.settings import Settings


class Announcer:
    """Makes publications. The event's bytes are made once, and are the same on every channel."""

    def __init__(self, settings: Settings, keyring: Keyring) -> None:
        self._settings = settings
        self._keyring = keyring

    def registered(self, record: Record, at: float, outcome: Registered) -> Publication:
        """The customer exists. `at`: milliseconds, as all times here."""
        return self._publication(EventType.REGISTERED, record, at, outcome, ())

    def failed(
        self, kind: EventType, record: Record, at: float, errors: tuple[Fault, ...]
    ) -> Publication:
        """The job ended without a customer of ours, or (`review`) waits for a person.

        `errors` say why; a cancelled job has none.
        """
        return self._publication(kind, record, at, None, errors)

    def refused(
        self, subject: str, at: float, entry: Entry, errors: tuple[Fault, ...]
    ) -> Publication:
        """A request by an asynchronous door was not taken; no job is touched by that."""
        echo = entry.echo
        event = Event(
            id=f"{subject}.rejected",
            source=self._settings.source,
            type=EventType.REJECTED,
            subject=subject,
            time=moment(at),
            data=RefusalData(
                request=entry.request,
                job_id=echo.target,
                idempotency_key=echo.idempotency_key,
                provider=echo.provider,
                account=echo.account,
                metadata=echo.metadata,
                errors=tuple(map(_error, errors)),
            ),
        )
        text = event.encode()
        return Publication(event.id, text, self._keyring.seal(text), "", echo.reply_to)

    def last(self, record: Record) -> dict[str, Any] | None:
        """The last event that was told of a job, as it went out; None while there is none."""
        if not record.event:
            return None
        kept = self._keyring.open(record.event)
        beyond = from_json(kept)
        # The first version kept all of it.
        whole = "specversion" in beyond
        return read_event(kept if whole else _text(record, beyond))

    def _publication(
        self,
        kind: EventType,
        record: Record,
        at: float,
        outcome: Registered | None,
        errors: tuple[Fault, ...],
    ) -> Publication:
        beyond: dict[str, object] = {
            "type": kind.word,
            "fence": record.fence,
            "source": self._settings.source,
            "at": round(at),
            "attempts": record.attempts,
        }
        if outcome:
            beyond["outcome"] = outcome.data
            if outcome.recovered:
                beyond["recovered"] = True
        if errors:
            beyond["errors"] = [_told(fault) for fault in errors]
        text = _text(record, beyond)
        seal = self._keyring.seal
        kept = to_json(beyond, inf_nan_mode="null")
        id_ = event_id(record.id, record.fence, kind)
        return Publication(id_, text, seal(text), seal(kept), record.reply_to)


def _text(record: Record, beyond: Mapping[str, Any]) -> bytes:
    """An event's bytes, of what its job's record says from first to last and what is kept beyond.

    No more is kept than that: a million records are mostly the events in them.
    """
    at = beyond["at"]
    data: dict[str, object] = {
        "job_id": record.id,
        "idempotency_key": record.idempotency_key,
        "provider": record.provider,
        "account": record.account,
        "attempts": beyond["attempts"],
        "recovered": beyond.get("recovered", False),
        "accepted_at": moment(record.accepted_at),
        "finished_at": moment(at),
        "metadata": record.metadata,
    }
    for name in ("outcome", "errors"):
        if name in beyond:
            data[name] = beyond[name]
    kind = EventType.of(beyond["type"])
    id_ = event_id(record.id, beyond["fence"], kind)
    return encode(id_, beyond["source"], kind, record.id, at, data)


def _told(fault: Fault) -> dict[str, object]:
    told: dict[str, object] = {"code": fault.code, "field": fault.field, "message": fault.message}
    return told if fault.provider_code is None else {**told, "provider_code": fault.provider_code}


def _error(fault: Fault) -> EventError:
    return EventError(
        code=fault.code,
        field=fault.field,
        message=fault.message,
        provider_code=fault.provider_code,
    )

"""Builds the event of a job's outcome, and the same event again for a replay."""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic_core import from_json, to_json

from regworker.domain.errors import WrongSeal
from regworker.domain.event import (
    Event,
    EventError,
    EventType,
    RefusalData,
    encode,
    event_id,
    moment,
    read_event,
)
from regworker.domain.outcome import Fault, Registered
from regworker.domain.request import Entry
from regworker.domain.trace_context import traceparent
from regworker.ledger.records import Record
from regworker.ledger.transitions import Publication
from regworker.sealing import seals
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from regworker.tracing import onward


class EventBuilder:
    """Makes publications. The event's bytes are made once, and are the same on every channel."""

    def __init__(self, settings: Settings, keyring: Keyring) -> None:
        self._source = settings.source
        self._keyring = keyring
        self.use(settings)

    def use(self, settings: Settings) -> None:
        """From now on, use the endpoints of these settings."""
        streams = settings.streams()
        self._open = {name: not one.sealed for name, one in streams.items()}
        self._open |= dict.fromkeys(settings.delivered(), False)

    def registered(
        self, record: Record, at: float, outcome: Registered, *, asked: bool = False
    ) -> Publication:
        """The customer exists. `at`: milliseconds, like all times here.

        `asked`: the record is proved to match its producer's request; a correction needs that.
        """
        return self._publication(
            EventType.REGISTERED, record, at, outcome, (), _asked(record) if asked else {}
        )

    def failed(
        self,
        kind: EventType,
        record: Record,
        at: float,
        errors: tuple[Fault, ...],
        *,
        asked: bool = False,
    ) -> Publication:
        """The job ended without a customer of ours, or (`review`) waits for a person.

        `errors` say why; a cancelled job has none. `asked` as in `registered`.
        """
        return self._publication(kind, record, at, None, errors, _asked(record) if asked else {})

    def corrected(self, record: Record, at: float, right: Registered | Fault) -> Publication:
        """A correction of a person's wrong decision on a review.

        Raises `WrongSeal` if the record was changed since: the outcome would go where its producer
        did not want it.
        """
        beyond = from_json(self._keyring.open(record.event, seals.kept(record.id)))
        # Of the published event, whatever the record says now.
        wrong = event_id(record.id, beyond["reopened"], EventType.of(beyond["type"]))
        more = {"corrects": wrong, "ended": record.finished_at}
        if isinstance(right, Fault):
            return self._publication(EventType.CORRECTED, record, at, None, (right,), more)
        if beyond.get("asked") != seals.payload(record).sub:
            raise WrongSeal(f"job {record.id} does not match its producer's request any more")
        return self._publication(EventType.CORRECTED, record, at, right, (), more)

    def refused(
        self, subject: str, at: float, entry: Entry, errors: tuple[Fault, ...]
    ) -> Publication:
        """A request of an asynchronous entry point was refused; no job is affected."""
        echo = entry.echo
        event = Event(
            id=f"{subject}.rejected",
            source=self._source,
            type=EventType.REJECTED,
            subject=subject,
            time=moment(at),
            traceparent=echo.traceparent or traceparent(entry.origin.traceparent) or None,
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
        # If none of the endpoints is configured, the results stream gets it.
        endpoints = echo.reply_to if "results" in echo.reply_to else (*echo.reply_to, "results")
        sealed = self._keyring.seal(text, seals.event(event.id, *endpoints))
        plain = self._plain(endpoints)
        return Publication(event.id, event.type, text, sealed, "", echo.reply_to, plain)

    def last(self, record: Record) -> dict[str, Any] | None:
        """The last published event of a job, with the same bytes; None if there is none yet."""
        if not record.event:
            return None
        kept = self._keyring.open(record.correction or record.event, seals.kept(record.id))
        return read_event(_event(record, from_json(kept))[1])

    def _publication(
        self,
        kind: EventType,
        record: Record,
        at: float,
        outcome: Registered | None,
        errors: tuple[Fault, ...],
        more: Mapping[str, object],
    ) -> Publication:
        """`more`: what the job's record keeps in addition."""
        beyond: dict[str, object] = {
            "type": kind.word,
            "source": self._source,
            # If the ledger's clock was set back, a job must not end before it began.
            "at": max(round(at), record.accepted_at),
            "attempts": record.attempts,
            "reopened": record.reopened,
            **more,
        }
        if outcome:
            beyond["outcome"] = outcome.data
            if outcome.recovered:
                beyond["recovered"] = True
        if errors:
            beyond["errors"] = [_told(fault) for fault in errors]
        if trace := onward(record.trace):
            beyond["traceparent"] = trace
        id_, text = _event(record, beyond)
        sealed = self._keyring.seal(text, seals.event(id_, *record.reply_to))
        kept = self._keyring.seal(to_json(beyond, inf_nan_mode="null"), seals.kept(record.id))
        plain = self._plain(record.reply_to)
        return Publication(id_, kind, text, sealed, kept, record.reply_to, plain)

    def _plain(self, endpoints: Iterable[str]) -> bool:
        """Whether any of the endpoints may be a stream with plain events.

        For an endpoint that is not configured here, the ledger's announcements decide. For a
        configured one, these settings decide, not the ledger.
        """
        return any(self._open.get(name, True) for name in endpoints)


def _asked(record: Record) -> dict[str, object]:
    """The producer's request by the record, in the form of the payload's seal."""
    return {"asked": seals.payload(record).sub}


def _event(record: Record, beyond: Mapping[str, Any]) -> tuple[str, bytes]:
    """An event's id and bytes, from the fields of its job's record and the kept data.

    Nothing else is kept: the events are most of a million records' size.
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
    if "corrects" in beyond:
        data["finished_at"] = moment(beyond["ended"])
        data["corrects"] = beyond["corrects"]
    id_ = event_id(record.id, beyond["reopened"], kind)
    trace = beyond.get("traceparent", "")
    return id_, encode(id_, beyond["source"], kind, record.id, at, data, trace)


def _told(fault: Fault) -> dict[str, object]:
    shown: dict[str, object] = {"code": fault.code, "field": fault.field, "message": fault.message}
    return shown if fault.provider_code is None else {**shown, "provider_code": fault.provider_code}


def _error(fault: Fault) -> EventError:
    return EventError(
        code=fault.code,
        field=fault.field,
        message=fault.message,
        provider_code=fault.provider_code,
    )

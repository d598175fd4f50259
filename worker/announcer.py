"""Turning what became of a job into the event that says so, ready to be written."""

from worker.entry import Entry
from worker.event import Event, EventError, EventType, RefusalData, encode, event_id, moment
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
        return self._sealed(event.id, event.encode(), echo.reply_to)

    def _publication(
        self,
        kind: EventType,
        record: Record,
        at: float,
        outcome: Registered | None,
        errors: tuple[Fault, ...],
    ) -> Publication:
        data: dict[str, object] = {
            "job_id": record.id,
            "idempotency_key": record.idempotency_key,
            "provider": record.provider,
            "account": record.account,
            "attempts": record.attempts,
            "recovered": outcome.recovered if outcome else False,
            "accepted_at": moment(record.accepted_at),
            "finished_at": moment(at),
            "metadata": record.metadata,
        }
        if outcome:
            data["outcome"] = outcome.data
        if errors:
            data["errors"] = [_told(fault) for fault in errors]
        id_ = event_id(record.id, record.fence, kind)
        text = encode(id_, self._settings.source, kind, record.id, at, data)
        return self._sealed(id_, text, record.reply_to)

    def _sealed(self, id_: str, text: bytes, endpoints: tuple[str, ...]) -> Publication:
        return Publication(id_, text, self._keyring.seal(text), endpoints)


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

"""Turning what became of a job into the event that says so, ready to be written."""

from worker.event import Event, EventData, EventError, EventType, event_id, moment
from worker.ledger.commands import Publication
from worker.ledger.records import Record
from worker.outcome import Fault, Registered
from worker.sealing import Keyring
from worker.settings import Endpoint, Settings, StreamEndpoint


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

    def _publication(
        self,
        kind: EventType,
        record: Record,
        at: float,
        outcome: Registered | None,
        errors: tuple[Fault, ...],
    ) -> Publication:
        event = Event(
            id=event_id(record.id, record.fence, kind),
            source=self._settings.source,
            type=kind,
            subject=record.id,
            time=moment(at),
            data=EventData(
                job_id=record.id,
                idempotency_key=record.idempotency_key,
                provider=record.provider,
                account=record.account,
                attempts=record.attempts,
                recovered=outcome.recovered if outcome else False,
                accepted_at=moment(record.accepted_at),
                finished_at=moment(at),
                metadata=record.metadata,
                outcome=outcome.data if outcome else None,
                errors=tuple(map(_error, errors)) or None,
            ),
        )
        text = event.encode()
        streams, others = self._channels(record.reply_to)
        return Publication(event.id, text, self._keyring.seal(text), streams, others)

    def _channels(self, names: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        # A name that this process doesn't know gets a delivery: another worker may know it.
        known: list[tuple[str, Endpoint | None]] = [
            (name, self._settings.endpoint(name)) for name in names
        ]
        streams = tuple(end.stream for _, end in known if isinstance(end, StreamEndpoint))
        others = tuple(name for name, end in known if not isinstance(end, StreamEndpoint))
        return streams, others


def _error(fault: Fault) -> EventError:
    return EventError(
        code=fault.code,
        field=fault.field,
        message=fault.message,
        provider_code=fault.provider_code,
    )

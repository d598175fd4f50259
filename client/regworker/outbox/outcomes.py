"""Results back in the host's database: each event takes effect there once."""

import logging
from collections.abc import Callable

from sqlalchemy import Connection, Engine, Table, insert, select
from sqlalchemy.exc import IntegrityError

from regworker.domain.event import Event, Notice
from regworker.frames import emptied, guarded, traceback_of
from regworker.outbox.tables import outcomes_table
from regworker.results import Result, ResultConsumer, UnreadableEvent

log = logging.getLogger(__name__)

Handler = Callable[[Connection, Event], None]
"""The host's handler of an event, in the transaction that records it."""


@guarded
class Outcomes:
    """Writes each event of a results stream into a table, once, however often it comes.

    `handler` runs in the same transaction as the row: what it writes takes effect once, too. If it
    raises, nothing is written, and the event comes again after the consumer's `claim_after`; the
    log says where it was raised, and not its text, which may quote the event.
    """

    def __init__(
        self,
        engine: Engine,
        consumer: ResultConsumer,
        handler: Handler = lambda connection, event: None,
        table: Table = outcomes_table,
    ) -> None:
        self._engine = engine
        self._consumer = consumer
        self._handler = handler
        self._table = table

    def turn(self, patience: float = 1.0) -> int:
        """Take what comes within `patience` seconds; returns how many events were new."""
        new = 0
        for result in self._consumer.receive(patience):
            try:
                new += self._record(result)
            except Exception as error:  # noqa: BLE001 -- whatever it is, it comes again
                # Without its text and its frames' locals: both contain the written event.
                where = traceback_of(error)
                emptied(error)
                what = "event of entry %s is not recorded; it comes again:\n%s"
                log.error(what, result.entry, where)  # noqa: TRY400
                continue
            self._consumer.ack(result)
        return new

    def _record(self, result: Result) -> bool:
        try:
            event = result.event
        except UnreadableEvent as error:
            log.warning("%s; it is left out", error)
            return False
        if isinstance(event, Notice):
            return False
        row = {
            "event_id": event.id,
            "job_id": event.data.job_id,
            "type": event.type,
            "event": result.raw.decode(),
        }
        table = self._table
        known = select(table.c.event_id).where(table.c.event_id == event.id)
        try:
            with self._engine.begin() as connection:
                if connection.execute(known).first():
                    return False
                connection.execute(insert(table).values(row))
                self._handler(connection, event)
        except IntegrityError:
            # Either another consumer recorded it at this moment, or the handler violated a
            # constraint of its own tables: only in the first case is the event done.
            with self._engine.connect() as connection:
                if connection.execute(known).first():
                    return False
            raise
        return True

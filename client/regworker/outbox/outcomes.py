"""Results back in the host's database: each event takes effect there once."""

import json
import logging
from collections.abc import Callable
from inspect import isawaitable, iscoroutinefunction
from typing import Any

from sqlalchemy import Connection, Engine, Table, insert, select
from sqlalchemy.exc import IntegrityError

from regworker.arguments import of_kind
from regworker.domain.event import Event, Notice
from regworker.frames import emptied, guarded, traceback_of
from regworker.outbox.tables import UNREADABLE, ascii_json, outcomes_table, transactional
from regworker.results import (
    AsyncResultConsumer,
    MissingKey,
    Result,
    ResultConsumer,
    UnreadableEvent,
)

log = logging.getLogger(__name__)

Handler = Callable[[Connection, Event], object]
"""The host's handler of an event, in the transaction that records it."""


@guarded
class Outcomes:
    """Writes each event of a results stream into a table, once, however often it comes.

    `handler` runs in the same transaction as the row: what it writes takes effect once, too. If it
    raises, nothing is written, and the event comes again after the consumer's `claim_after`; the
    log says where it was raised, and not its text, which may quote the event.

    An event whose sealing key this process does not have is not acknowledged: it comes again, and
    the log names the setting. What holds no event at all is kept as a row with the type
    `unreadable`, which no handler gets.
    """

    def __init__(
        self,
        engine: Engine,
        consumer: ResultConsumer,
        handler: Handler = lambda connection, event: None,
        table: Table = outcomes_table,
    ) -> None:
        of_kind("engine", engine, Engine, "an Engine")
        transactional(engine)
        if isinstance(consumer, AsyncResultConsumer):
            raise TypeError("consumer must be a ResultConsumer, not AsyncResultConsumer")
        of_kind("handler", handler, Callable, "a function")  # type: ignore[arg-type]
        if iscoroutinefunction(handler):
            raise TypeError(f"handler {_NOT_ASYNC}")
        self._engine = engine
        self._consumer = consumer
        self._handler = handler
        self._table = table

    def turn(self, patience: float = 1.0) -> int:
        """Take what comes within `patience` seconds; returns how many events were new."""
        new = 0
        locked: list[MissingKey] = []
        for result in self._consumer.receive(patience):
            try:
                new += self._record(result)
            except MissingKey as error:
                locked.append(error)
                continue
            except Exception as error:  # noqa: BLE001 -- whatever it is, it comes again
                # Without its text and its frames' locals: both contain the written event.
                where = traceback_of(error)
                emptied(error)
                what = "event of entry %s is not recorded; it comes again:\n%s"
                log.error(what, result.entry, where)  # noqa: TRY400
                continue
            self._consumer.ack(result)
        if locked:
            what = "%d events are not recorded, and come again: give this process the keys: %s"
            log.error(what, len(locked), locked[0])
        return new

    def _record(self, result: Result) -> bool:
        """Write an entry's row; returns whether it was an event, and new."""
        event: Event | None = None
        try:
            found = result.event
        except MissingKey:
            raise
        except UnreadableEvent as error:
            log.warning("%s; its row has the type %s", error, UNREADABLE)
            row = self._unreadable(result, str(error))
        else:
            if isinstance(found, Notice):
                return False
            event = found
            row = {
                "event_id": event.id,
                "job_id": event.data.job_id,
                "type": event.type,
                "event": ascii_json(result.raw.decode()),
            }
        table = self._table
        known = select(table.c.event_id).where(table.c.event_id == row["event_id"])
        try:
            with self._engine.begin() as connection:
                if connection.execute(known).first():
                    return False
                connection.execute(insert(table).values(row))
                if event is not None:
                    _called(self._handler, connection, event)
        except IntegrityError:
            # Either another consumer recorded it at this moment, or the handler violated a
            # constraint of its own tables: only in the first case is the event done.
            with self._engine.connect() as connection:
                if connection.execute(known).first():
                    return False
            raise
        return event is not None

    def _unreadable(self, result: Result, problem: str) -> dict[str, Any]:
        """The row of an entry that can never be read; the stream may be trimmed."""
        place = ascii_json(f"{result.ledger} {self._consumer.stream} {result.entry}")
        fields = {_text(name): _text(value) for name, value in result.fields.items()}
        kept = {"problem": problem, "size": result.size, "fields": fields}
        return {
            "event_id": place[-255:],
            "job_id": None,
            "type": UNREADABLE,
            "event": json.dumps(kept),
        }


_NOT_ASYNC = "must be a plain function: it runs in the transaction, and nobody would await it"


def _called(handler: Handler, connection: Connection, event: Event) -> None:
    """Its event would count as handled, whatever it left to be awaited."""
    left = handler(connection, event)
    if isawaitable(left):
        if hasattr(left, "close"):
            left.close()
        raise TypeError(f"handler {_NOT_ASYNC}")


def _text(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")

"""The relay: moves committed rows of the outbox into the ledger, in order, and deletes them.

It deletes a row only after the receipt, so a relay that dies in between sends the same jobs again;
the ledger recognizes them by their keys, and accepts each once. Relays may run side by side: each
locks its own rows (`FOR UPDATE SKIP LOCKED`).
"""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, Table, delete, select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from regworker.domain.receipt import Receipt, Refused
from regworker.frames import guarded
from regworker.outbox.tables import outbox_table
from regworker.producer import Producer

E = TypeVar("E", Engine, AsyncEngine)

#: Rows of a turn: a pipeline of the producer's. More would stay locked for longer.
BATCH = 500


@dataclass(frozen=True, slots=True)
class Turn:
    """The result of a turn: rows moved into the ledger, and rows refused."""

    moved: int = 0
    refused: int = 0

    @property
    def idle(self) -> bool:
        """Whether there was nothing to do."""
        return not (self.moved or self.refused)


@guarded
class Relay:
    """Moves rows. A row that is refused stays, with its `problem`, and holds up no other."""

    def __init__(self, producer: Producer, table: Table = outbox_table, batch: int = BATCH) -> None:
        self._producer = producer
        self._table = table
        self._batch = batch

    def turn(self, engine: Engine) -> Turn:
        """Move one batch. `LedgerUnavailable` where the ledger is away: the rows stay."""
        with _unlocking(engine).begin() as connection:
            rows = self._take(connection)
            return self._settle(connection, rows, self._hand_over(rows))

    async def turn_async(self, engine: AsyncEngine) -> Turn:
        """The same for a loop of asyncio, which goes on meanwhile."""
        async with _unlocking(engine).begin() as connection:
            rows = await connection.run_sync(self._take)
            results = await asyncio.to_thread(self._hand_over, rows)
            return await connection.run_sync(self._settle, rows, results)

    def _take(self, connection: Connection) -> Sequence[Any]:
        table = self._table
        wanted = (
            select(table.c.id, table.c.job)
            .where(table.c.refused_at.is_(None))
            .order_by(table.c.id)
            .limit(self._batch)
            .with_for_update(skip_locked=True)
        )
        return connection.execute(wanted).all()

    def _hand_over(self, rows: Sequence[Any]) -> list[Receipt | Refused]:
        return list(self._producer.enqueue_many(json.loads(row.job) for row in rows))

    def _settle(
        self, connection: Connection, rows: Sequence[Any], results: list[Receipt | Refused]
    ) -> Turn:
        table = self._table
        moved: list[int] = []
        for row, result in zip(rows, results, strict=True):
            if isinstance(result, Receipt):
                moved.append(row.id)
                continue
            refusal = {"refused_at": datetime.now(UTC), "problem": str(result.error)}
            connection.execute(update(table).where(table.c.id == row.id).values(refusal))
        if moved:
            connection.execute(delete(table).where(table.c.id.in_(moved)))
        return Turn(len(moved), len(rows) - len(moved))


def _unlocking(engine: E) -> E:
    """The engine, set so that taking rows does not block transactions that add some.

    By default, MySQL and MariaDB also lock the gap after the last row.
    """
    if engine.dialect.name in {"mysql", "mariadb"}:
        return engine.execution_options(isolation_level="READ COMMITTED")
    return engine

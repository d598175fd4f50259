"""Rows that the relay could not move: for a person to read and retry."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, Table, select, update

from regworker.outbox.tables import outbox_table


@dataclass(frozen=True, slots=True)
class Refusal:
    """A row whose job is refused, without the job."""

    id: int
    job_id: str
    refused_at: datetime
    problem: str


def listed(connection: Connection, table: Table = outbox_table) -> Iterator[Refusal]:
    """The refused rows, the oldest first."""
    columns = (table.c.id, table.c.job_id, table.c.refused_at, table.c.problem)
    found = select(*columns).where(table.c.refused_at.is_not(None)).order_by(table.c.id)
    for row in connection.execute(found):
        yield Refusal(*row)


def retry(
    connection: Connection, ids: Sequence[int] | None = None, table: Table = outbox_table
) -> int:
    """Let the relay take refused rows again, by default all of them; returns how many."""
    again = update(table).where(table.c.refused_at.is_not(None))
    if ids:
        again = again.where(table.c.id.in_(ids))
    return connection.execute(again.values(refused_at=None, problem=None)).rowcount

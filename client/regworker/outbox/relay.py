"""The relay: moves committed rows of the outbox into the ledger, in order, and deletes them.

It deletes a row only after the receipt, so a relay that dies in between sends the same jobs again;
the ledger recognizes them by their keys, and accepts each once. Relays may run side by side: each
locks its own rows (`FOR UPDATE SKIP LOCKED`).

Of several ledgers, one may be away for long. Then its rows stay, and the relay goes on behind them:
the other rows are moved, and deleted before their ledgers forget the jobs.
"""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

from redis.exceptions import RedisError
from sqlalchemy import Connection, Engine, Table, delete, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from regworker.arguments import of_kind
from regworker.clock import steady
from regworker.domain.errors import InvalidJob, Problem, RegistrationWorkerError
from regworker.domain.receipt import Receipt, Refused
from regworker.frames import guarded
from regworker.outbox.tables import outbox_table, transactional
from regworker.producer import Producer

E = TypeVar("E", Engine, AsyncEngine)

#: Rows of a turn: a pipeline of the producer's. More would stay locked for longer.
BATCH = 500

#: Seconds after which rows whose ledger was away are tried again, even if other rows still come.
AGAIN = 30.0

#: A relay whose machine or network vanishes in a turn keeps its rows locked until the server
#: notices, by default for two hours, and no other relay moves them. So the server ends the
#: transaction of a relay from which it hears nothing; a turn waits for the ledgers for less than
#: that. A limit that the host has set stays.
_FREED = text(
    "SELECT set_config('idle_in_transaction_session_timeout', '120s', true) "
    "WHERE current_setting('idle_in_transaction_session_timeout') = '0'"
)

#: Without any of its content, which may be a secret.
_NO_JSON = InvalidJob([Problem("invalid", "job", "is not JSON: the row was changed or cut off")])

#: Characters of a problem that are written: a column of MySQL's ends at 64 KiB.
LONGEST = 2000

#: Written if the database does not take the problem itself.
_UNWRITTEN = "the job is refused, and the database could not store the problem"

Fault = RegistrationWorkerError | RedisError


@dataclass(frozen=True, slots=True)
class Turn:
    """The result of a turn: rows moved into the ledger, rows refused, and rows that stay because
    their ledger, one of several, is away."""

    moved: int = 0
    refused: int = 0
    left: int = 0

    @property
    def idle(self) -> bool:
        """Whether there was nothing to do."""
        return not (self.moved or self.refused or self.left)


@dataclass(slots=True)
class _Pass:
    """A walk through the table, from the oldest row."""

    away: dict[str, Fault] = field(default_factory=dict)
    """Ledgers that did not accept their rows: they are not asked again in this pass."""
    stopped: Fault | None = None
    """Set if no other ledger is left."""
    unwritten: DBAPIError | None = None
    """Why the database did not take a refusal: its row stays as it is."""
    last: int | None = None
    """The row behind which the next turn begins."""
    until: float = field(default_factory=lambda: steady() + AGAIN)


@guarded
class Relay:
    """Moves rows. A row that is refused stays, with its `problem`, and holds up no other."""

    def __init__(self, producer: Producer, table: Table = outbox_table, batch: int = BATCH) -> None:
        of_kind("producer", producer, Producer, "a Producer")
        of_kind("batch", batch, int, "a number of rows")
        if batch < 1:
            raise ValueError("batch must be at least 1")
        self._producer = producer
        self._table = table
        self._batch = batch
        self._pass = _Pass()

    def turn(self, engine: Engine) -> Turn:
        """Move the next batch; its rows whose ledger is away stay.

        Raises the ledger's error (`LedgerUnavailable`, for example), or the database's, if all rows
        stay that are left.
        The next turn then begins at the oldest row.
        """
        of_kind("engine", engine, Engine, "an Engine (for an AsyncEngine, await turn_async)")
        transactional(engine)
        with _unlocking(engine).begin() as connection:
            rows = self._take(connection)
            turn = self._settle(connection, rows, self._hand_over(rows))
        return self._turned(rows, turn)

    async def turn_async(self, engine: AsyncEngine) -> Turn:
        """The same for a loop of asyncio, which goes on meanwhile."""
        of_kind("engine", engine, AsyncEngine, "an AsyncEngine (for an Engine, use turn)")
        transactional(engine.sync_engine)
        async with _unlocking(engine).begin() as connection:
            rows = await connection.run_sync(self._take)
            results = await asyncio.to_thread(self._hand_over, rows)
            turn = await connection.run_sync(self._settle, rows, results)
        return self._turned(rows, turn)

    def _take(self, connection: Connection) -> Sequence[Any]:
        table = self._table
        if connection.dialect.name == "postgresql":
            connection.execute(_FREED)
        wanted = (
            select(table.c.id, table.c.job)
            .where(table.c.refused_at.is_(None))
            .order_by(table.c.id)
            .limit(self._batch)
            .with_for_update(skip_locked=True)
        )
        if self._pass.last is not None:
            wanted = wanted.where(table.c.id > self._pass.last)
        return connection.execute(wanted).all()

    def _hand_over(self, rows: Sequence[Any]) -> list[Receipt | Refused | Fault]:
        """A result for each row. What was answered before an error counts."""
        read = [_read(number, row.job) for number, row in enumerate(rows)]
        jobs = [one for one in read if not isinstance(one, Refused)]
        results: list[Receipt | Refused | Fault] = []
        try:
            results.extend(self._producer._each(jobs, self._pass.away))
        except (RegistrationWorkerError, RedisError) as error:
            self._pass.stopped = error
            results += [error] * (len(jobs) - len(results))
        answers = iter(results)
        return [one if isinstance(one, Refused) else next(answers) for one in read]

    def _settle(
        self, connection: Connection, rows: Sequence[Any], results: list[Receipt | Refused | Fault]
    ) -> Turn:
        table = self._table
        moved: list[int] = []
        refused = 0
        for row, result in zip(rows, results, strict=True):
            match result:
                case Receipt():
                    moved.append(row.id)
                case Refused(error=error):
                    refused += self._refuse(connection, row.id, str(error))
        if moved:
            connection.execute(delete(table).where(table.c.id.in_(moved)))
        return Turn(len(moved), refused, len(rows) - len(moved) - refused)

    def _refuse(self, connection: Connection, id_: int, problem: str) -> bool:
        """Write why a row is refused; whatever the database says to that is about this row alone.

        In ASCII: a problem may quote what the database's character set does not have.
        """
        plain = problem.encode("ascii", "backslashreplace").decode()
        changed = update(self._table).where(self._table.c.id == id_)
        fault: DBAPIError | None = None
        for words in (plain[:LONGEST], _UNWRITTEN):
            try:
                with connection.begin_nested():
                    refusal = {"refused_at": datetime.now(UTC), "problem": words}
                    connection.execute(changed.values(refusal))
            except DBAPIError as error:
                if error.connection_invalidated:
                    raise
                fault = error
            else:
                return True
        self._pass.unwritten = fault
        return False

    def _turned(self, rows: Sequence[Any], turn: Turn) -> Turn:
        """Decide where the next turn begins, or raise, once a turn's changes are committed."""
        this = self._pass
        if turn.left:
            this.last = rows[-1].id
        if turn.moved or turn.refused:
            if this.stopped or steady() > this.until:
                self._pass = _Pass()
            return turn
        if this.stopped or len(rows) < self._batch:
            self._pass = _Pass()
            if fault := this.stopped or next(iter(this.away.values()), None) or this.unwritten:
                raise fault
        return turn


def _read(number: int, job: Any) -> Any:
    """The job of a row; `Refused` if it is not JSON."""
    try:
        return json.loads(job)
    except (TypeError, ValueError, RecursionError):
        return Refused(number, _NO_JSON)


def _unlocking(engine: E) -> E:
    """The engine, set so that taking rows does not block transactions that add some.

    By default, MySQL and MariaDB also lock the gap after the last row.
    """
    if engine.dialect.name in {"mysql", "mariadb"}:
        return engine.execution_options(isolation_level="READ COMMITTED")
    return engine

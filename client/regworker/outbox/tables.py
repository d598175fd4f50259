"""The two tables in SQLAlchemy's form: for `create_all`, Alembic, and `regworker outbox sql`."""

import json
import re

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Dialect,
    Engine,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    func,
)
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.schema import CreateIndex, CreateTable

metadata = MetaData()

#: SQLite counts up by itself only in a column of type INTEGER.
_NUMBER = BigInteger().with_variant(Integer(), "sqlite")

#: A job takes 64 KiB, and a third more when it is sealed: MySQL's TEXT ends at 64 KiB.
_LONG = Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb")

_TIME = DateTime(timezone=True)

outbox_table = Table(
    "registration_outbox",
    metadata,
    Column("id", _NUMBER, primary_key=True, autoincrement=True),
    Column("job_id", String(36), nullable=False, comment="The id of the job in the ledger."),
    Column("job", _LONG, nullable=False, comment="The job as JSON, its registration sealed."),
    Column("added_at", _TIME, nullable=False, server_default=func.now()),
    Column("refused_at", _TIME, index=True, comment="When the relay found that it is refused."),
    Column("problem", Text, comment="Why it is refused."),
)
"""Jobs that wait for the relay. A row is deleted when its job is accepted."""

outcomes_table = Table(
    "registration_outcomes",
    metadata,
    Column("event_id", String(255), primary_key=True),
    Column("job_id", String(36), index=True, comment="NULL: a request that made no job."),
    Column("type", String(64), nullable=False, comment="registration.registered, ..."),
    Column("event", _LONG, nullable=False, comment="The event as JSON. It may hold credentials."),
    Column("received_at", _TIME, nullable=False, server_default=func.now()),
)
"""Results, each once."""

#: What no event is called: the type of the row that keeps an entry which holds no event.
UNREADABLE = "unreadable"


def transactional(engine: Engine) -> None:
    """Refuse an engine that commits each statement: what is written together would not be."""
    own = engine.get_execution_options().get("isolation_level")
    level = own or getattr(engine.dialect, "_on_connect_isolation_level", None)
    if level is not None and str(level).upper() == "AUTOCOMMIT":
        raise ValueError(
            "engine commits each statement (AUTOCOMMIT), and this needs transactions: give "
            'engine.execution_options(isolation_level="READ COMMITTED") (SQLite: "SERIALIZABLE")'
        )


def ascii_json(text: str) -> str:
    """JSON with escapes for what not every database's character set has (latin1, utf8mb3)."""
    return re.sub(r"[^\x00-\x7f]+", lambda found: json.dumps(found[0])[1:-1], text)


DIALECTS: dict[str, type[Dialect]] = {
    "postgresql": postgresql.dialect,
    "mysql": mysql.dialect,
    "sqlite": sqlite.dialect,
}


def sql(dialect: str) -> str:
    """The migration as SQL text. `dialect`: a key of `DIALECTS`; MariaDB's is `mysql`."""
    made = DIALECTS[dialect]()
    statements = []
    for table in (outbox_table, outcomes_table):
        statements.append(str(CreateTable(table).compile(dialect=made)).strip())
        statements += [str(CreateIndex(index).compile(dialect=made)) for index in table.indexes]
    return "".join(f"{statement};\n\n" for statement in statements)

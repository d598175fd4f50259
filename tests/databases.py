"""Databases for tests of the transactional outbox: an empty one for each test, on a running
server."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import create_engine, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.pool import NullPool

from tests.programs import answers, leave_out

SERVERS = {
    "postgresql": os.environ.get(
        "REGWORKER_TEST_POSTGRES_URL", "postgresql+psycopg://postgres@127.0.0.1:5432/postgres"
    ),
    "mariadb": os.environ.get(
        "REGWORKER_TEST_MARIADB_URL", "mariadb+pymysql://root@127.0.0.1:3306/"
    ),
}


@contextmanager
def database(kind: str, folder: Path, options: str = "") -> Iterator[URL]:
    """The URL of a database that is removed at the end. `kind`: of `SERVERS`, or `sqlite`;
    `options`: of CREATE DATABASE."""
    if kind == "sqlite":
        yield make_url(f"sqlite:///{folder / 'host.db'}")
        return
    server = make_url(SERVERS[kind])
    plain = server.set(drivername=kind).render_as_string()
    if not answers(plain):
        leave_out(f"the outbox on {kind}: nothing answers at {plain}")
    name = f"regworker_{secrets.token_hex(6)}"
    engine = create_engine(server, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} {options}"))
        try:
            yield server.set(database=name)
        finally:
            force = " WITH (FORCE)" if kind == "postgresql" else ""
            connection.execute(text(f"DROP DATABASE {name}{force}"))

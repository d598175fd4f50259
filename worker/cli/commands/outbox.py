"""`regworker outbox`: jobs from a table of the host's database into the ledger."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from regworker.domain.errors import RegistrationWorkerError, SettingsError
from regworker.settings import Settings, variable
from worker.cli.connection import open_producer
from worker.cli.lazy import new_app, texts
from worker.cli.output import AsJson, note, plain, print_json, print_line

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from regworker.outbox import Relay, Turn

app = new_app(no_args_is_help=True)

#: Seconds between reads of an empty table. A job waits half of that, on average.
_IDLE = 0.5

#: Seconds between attempts while the database or the ledger does not answer.
_AWAY = 2.0


#: Seconds after which a relay that was asked to end does so in any case: nothing interrupts a
#: driver that waits for its database.
_STOP = 15.0

_REFUSED = "refused or did not answer"

#: Seconds without a sign of life after which a connection to the database is given up: a database
#: that vanished (a network that drops packets, a machine that is gone) would be waited for during
#: minutes or hours, also by a relay that was asked to end.
_SILENT = 20

#: Seconds for which MySQL and MariaDB keep the rows of a relay that vanished. (For PostgreSQL, each
#: relay sets a limit in its transaction.)
_HELD = 120

_LIBPQ: dict[str, int | str] = {
    "connect_timeout": _SILENT // 2,
    "keepalives_idle": _SILENT // 2,
    "keepalives_interval": _SILENT // 4,
    "keepalives_count": 2,
    "tcp_user_timeout": _SILENT * 1000,
}
_MYSQL: dict[str, int | str] = {
    "connect_timeout": _SILENT // 2,
    "read_timeout": _SILENT,
    "write_timeout": _SILENT,
    "init_command": f"SET SESSION wait_timeout = {_HELD}",
}

#: How SQLAlchemy's drivers call that; the URL's own options go first.
_LIMITS: dict[str, dict[str, int | str]] = {
    "psycopg": _LIBPQ,
    "psycopg2": _LIBPQ,
    "pymysql": _MYSQL,
    "mysqldb": _MYSQL,
}


class Dialect(StrEnum):
    """The dialects of `regworker.outbox.tables`."""

    POSTGRESQL = "postgresql"
    MYSQL = "mysql"
    SQLITE = "sqlite"


@app.callback()
def outbox() -> None:
    """Move jobs that your service wrote into an outbox table, in its own transaction.

    REGWORKER_OUTBOX_URL names the database, as an SQLAlchemy URL; for example
    postgresql+psycopg://user:password@host/database.
    """


def sql(
    dialect: Annotated[
        Dialect, typer.Option(help="Use mysql for MariaDB too.")
    ] = Dialect.POSTGRESQL,
) -> None:
    """Print the SQL that creates the tables `registration_outbox` and `registration_outcomes`.

    Examples:
        regworker outbox sql | psql shop
        regworker outbox sql --dialect mysql > migrations/0042_registrations.sql
    """
    from regworker.outbox import tables

    print_line(tables.sql(dialect.value).rstrip())


def relay(
    once: Annotated[
        bool, typer.Option("--once", help="Move the rows that are there, and exit.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Move committed rows into the ledger, in order, until SIGTERM or Ctrl-C.

    A row is deleted when its job is accepted. A row whose job is refused stays, with the problem,
    and does not stop other rows (`regworker outbox refused`). While a ledger is away or has no
    worker, its rows stay, and those of other ledgers are moved. Several relays may run side by
    side; a killed one loses nothing, because the same key is the same job. So a relay that was
    asked to end, and whose database does not answer, ends by itself after 15 seconds.

    Examples:
        regworker outbox relay
        regworker outbox relay --once --json
    """
    from regworker.outbox import Relay

    ended = threading.Event()

    def stop(*_: object) -> None:
        if not ended.is_set():
            ended.set()
            watch = threading.Timer(_STOP, _end)
            watch.daemon = True
            watch.start()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    moved = refused = 0
    with _database() as engine, open_producer() as producer:
        mover = Relay(producer)
        note("moving rows of registration_outbox")
        while not ended.is_set():
            turn = _turn(mover, engine, once=once)
            if turn is None:
                ended.wait(_AWAY)
                continue
            moved, refused = moved + turn.moved, refused + turn.refused
            if turn.refused:
                note(f"{turn.refused} refused; `regworker outbox refused` shows why")
            if turn.idle:
                if once:
                    break
                ended.wait(_IDLE)
    if json:
        print_json({"moved": moved, "refused": refused})
    else:
        print_line(f"moved {moved}, refused {refused}")
    raise typer.Exit(1 if once and refused else 0)


def refused(json: AsJson = False) -> None:
    """List rows whose jobs were refused, with the problem.

    Examples:
        regworker outbox refused --json | jq .problem
    """
    from regworker.outbox import refusals

    with _database() as engine, engine.connect() as connection:
        for row in refusals.listed(connection):
            if json:
                print_json({**asdict(row), "refused_at": row.refused_at.isoformat()})
            else:
                print_line(plain(f"{row.id}  {row.job_id}  {row.problem}"))


def retry(
    ids: Annotated[
        list[int] | None,
        typer.Argument(metavar="[ROW]...", help="The rows' ids. Default: all refused rows."),
    ] = None,
    json: AsJson = False,
) -> None:
    """Let the relay try refused rows again, for example after an account was configured.

    Examples:
        regworker outbox retry 17 18
    """
    from regworker.outbox import refusals

    with _database() as engine, engine.begin() as connection:
        count = refusals.retry(connection, ids)
    if json:
        print_json({"retried": count})
    else:
        print_line(f"{count} rows will be tried again")


for command in (sql, relay, refused, retry):
    app.command(command.__name__, **texts(command))(command)


def _turn(mover: "Relay", engine: "Engine", *, once: bool) -> "Turn | None":
    """One turn; None if the database or the ledger does not answer, or accepts nothing."""
    from redis.exceptions import RedisError
    from sqlalchemy.exc import DBAPIError

    try:
        return mover.turn(engine)
    except (RegistrationWorkerError, RedisError) as error:
        if once:
            raise
        note(f"{error}; the rows stay")
    except DBAPIError as error:
        if once:
            raise _unreachable(error) from None
        note(f"the database {_REFUSED} ({type(error.orig).__name__}); the rows stay")
    return None


def _end() -> None:
    what = "a turn did not end: the database or the ledger does not answer"
    note(f"ended by force after {_STOP:g} s, because {what}; the rows stay")
    os._exit(1)


@contextmanager
def _database() -> Iterator["Engine"]:
    from sqlalchemy import create_engine, make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError, ProgrammingError

    name = variable("outbox_url")
    # Reading the table needs no key; a producer reports itself which settings are missing.
    url = Settings.load(sealing_keys="").outbox_url
    if url is None or not url.get_secret_value():
        form = "postgresql+psycopg://user:password@host/database"
        raise SettingsError([(name, f"is not set: the database of the outbox, as {form}")])
    try:
        place = make_url(url.get_secret_value())
        limits = _LIMITS.get(place.get_driver_name(), {})
        engine = create_engine(
            place,
            hide_parameters=True,  # they hold whole jobs
            pool_pre_ping=True,
            connect_args={name: one for name, one in limits.items() if name not in place.query},
        )
    except (ArgumentError, NoSuchModuleError, ValueError):
        # Without SQLAlchemy's words, which quote the URL.
        what = "is not an SQLAlchemy database URL: dialect+driver://user:password@host/name"
        raise SettingsError([(name, what)]) from None
    except ModuleNotFoundError as error:
        what = f"needs a driver that is not installed: pip install {error.name}"
        raise SettingsError([(name, what)]) from None
    try:
        yield engine
    except (OperationalError, ProgrammingError) as error:
        raise _unreachable(error) from None
    finally:
        engine.dispose()


def _unreachable(error: Exception) -> SettingsError:
    what = (
        f"the database {_REFUSED} ({type(getattr(error, 'orig', error)).__name__}): check the URL, "
        "and that `regworker outbox sql` was run there"
    )
    return SettingsError([(variable("outbox_url"), what)])

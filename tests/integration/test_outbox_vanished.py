"""The outbox while its database, or the machine of its relay, is gone without a word."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, func, select, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from regworker.ledger import SyncLedger
from regworker.ledger.admin import Limits, announce
from regworker.outbox import Outbox, Relay, metadata, outbox_table, relay
from regworker.producer import Producer
from regworker.settings import Settings
from tests.databases import database
from tests.integration.installation import KEYS
from tests.integration.jobs import skypostal
from worker.cli.commands import outbox as command
from worker.cli.local import stack

#: Seconds. Far more than anything here takes.
PATIENCE = 90.0


@pytest.fixture
def postgresql(tmp_path: Path) -> Iterator[URL]:
    """A database with both tables."""
    with database("postgresql", tmp_path) as url:
        engine = create_engine(url, poolclass=NullPool)
        metadata.create_all(engine)
        yield url


@pytest.fixture
def settings(redis_url: str, ledger: SyncLedger) -> Settings:
    """A host's settings; a worker has announced itself."""
    ledger(announce([Limits("skypostal", "default", 0, 0, 0)], ["results"]))
    return Settings.load(redis_url=redis_url, sealing_keys=KEYS)


def left(engine: Engine) -> int:
    """How many rows there are."""
    with engine.connect() as connection:
        return connection.execute(select(func.count()).select_from(outbox_table)).scalar_one()


def test_the_rows_of_a_relay_that_vanished_are_freed(
    postgresql: URL, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another relay moves them; the first one, if it comes back, learns that it is too late."""
    monkeypatch.setattr(relay, "_FREED", text(str(relay._FREED).replace("120s", "200ms")))
    engine = create_engine(postgresql, poolclass=NullPool)
    with engine.begin() as connection:
        Outbox(settings).add(connection, skypostal())
    taken, over = threading.Event(), threading.Event()

    class Vanished(Relay):
        def _hand_over(self, rows: Any) -> Any:
            taken.set()
            over.wait(PATIENCE)
            return super()._hand_over(rows)

    faults: list[Exception] = []

    def first(producer: Producer) -> None:
        try:
            Vanished(producer).turn(engine)
        except DBAPIError as error:
            faults.append(error)

    with Producer(settings) as producer:
        thread = threading.Thread(target=first, args=(producer,))
        thread.start()
        assert taken.wait(PATIENCE)
        other = Relay(producer)
        stack.until(lambda: other.turn(engine).moved == 1, "another relay moves the row", PATIENCE)
        over.set()
        thread.join(PATIENCE)
    assert len(faults) == 1
    assert left(engine) == 0


def test_the_command_asked_to_end_does_so_although_its_database_hangs(
    postgresql: URL, settings: Settings
) -> None:
    """It says why; the rows stay."""
    engine = create_engine(postgresql, poolclass=NullPool)
    waits = text(
        "SELECT count(*) FROM pg_locks WHERE NOT granted AND database = (SELECT oid FROM "
        "pg_database WHERE datname = current_database())"
    )
    with engine.begin() as holding:
        holding.execute(text("LOCK TABLE registration_outbox IN ACCESS EXCLUSIVE MODE"))
        process = subprocess.Popen(
            [sys.executable, "-m", "worker.cli", "outbox", "relay"],
            env={
                **os.environ,
                "REGWORKER_OUTBOX_URL": postgresql.render_as_string(hide_password=False),
                "REGWORKER_REDIS_URL": settings.redis_url,
                "REGWORKER_SEALING_KEYS": KEYS,
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        stack.until(lambda: holding.execute(waits).scalar_one() > 0, "the relay waits", PATIENCE)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "ended by force" in said


@pytest.mark.parametrize("given", [None, "7000"])
def test_the_command_gives_up_a_database_that_vanished(
    given: str | None, postgresql: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel ends its connection, after the time that the URL names, if it names one."""
    url = postgresql.update_query_dict({"tcp_user_timeout": given} if given else {})
    monkeypatch.setenv("REGWORKER_OUTBOX_URL", url.render_as_string(hide_password=False))
    with command._database() as engine, engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        with socket.socket(fileno=os.dup(driver.fileno())) as made:
            found = made.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
    assert found == int(given or 20_000)


def test_so_does_it_with_mariadb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its driver counts the seconds itself, and the server frees the rows of a session."""
    with database("mariadb", tmp_path) as url:
        monkeypatch.setenv("REGWORKER_OUTBOX_URL", url.render_as_string(hide_password=False))
        with command._database() as engine, engine.connect() as connection:
            driver: Any = connection.connection.driver_connection
            assert (driver._read_timeout, driver._write_timeout) == (20, 20)
            assert connection.execute(text("SELECT @@session.wait_timeout")).scalar() == 120

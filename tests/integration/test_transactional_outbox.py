"""The transactional outbox: a job is enqueued if, and only if, the host's transaction commits."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, MetaData, create_engine, func, select, text, update
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from regworker.domain.errors import InvalidJob, LedgerUnavailable
from regworker.domain.receipt import Receipt
from regworker.ledger import SyncLedger
from regworker.ledger.admin import Limits, announce
from regworker.ledger.transitions import job_key
from regworker.outbox import (
    Outbox,
    Outcomes,
    Relay,
    metadata,
    outbox_table,
    outcomes_table,
    refusals,
)
from regworker.producer import Producer
from regworker.results import ResultConsumer
from regworker.settings import Settings
from tests.databases import database
from tests.integration.installation import KEYS, ROOT, installation
from tests.integration.jobs import open2b, skypostal
from tests.integration.ledger_steps import settings_of_a_host
from tests.integration.outbox import Cli

PASSWORD = "Unforgettable-7"


@pytest.fixture(scope="module")
def databases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], URL]]:
    """A database of each kind, created on first use, because starting a server takes time."""
    with ExitStack() as stack:

        @cache
        def made(kind: str) -> URL:
            return stack.enter_context(database(kind, tmp_path_factory.mktemp(kind)))

        yield made


@pytest.fixture(params=["postgresql", "mariadb", "sqlite"])
def url(request: pytest.FixtureRequest, databases: Callable[[str], URL]) -> Iterator[URL]:
    """An empty database of each kind."""
    found = databases(request.param)
    yield found
    cleaner, left = create_engine(found, poolclass=NullPool), MetaData()
    left.reflect(cleaner)
    left.drop_all(cleaner)


@pytest.fixture
def empty(url: URL) -> Iterator[Engine]:
    """An engine of a database without tables."""
    made = create_engine(url, hide_parameters=True)
    yield made
    made.dispose()


@pytest.fixture
def engine(empty: Engine) -> Engine:
    """An engine of a database that holds both tables."""
    metadata.create_all(empty)
    return empty


@pytest.fixture
def settings(redis_url: str, ledger: SyncLedger) -> Settings:
    """The settings of a host; a worker has announced itself to the ledger."""
    return settings_of_a_host(redis_url, ledger, KEYS)


@pytest.fixture
def producer(settings: Settings) -> Iterator[Producer]:
    """A producer at that ledger."""
    with Producer(settings) as one:
        yield one


def rows(engine: Engine) -> int:
    """How many rows the outbox has."""
    with engine.connect() as connection:
        return int(connection.execute(select(func.count()).select_from(outbox_table)).scalar_one())


# ── adding ────────────────────────────────────────────────────────────────────────────────────


def test_a_job_is_enqueued_if_the_transaction_commits(
    engine: Engine, settings: Settings, producer: Producer
) -> None:
    """A rolled back job never reaches the ledger; a committed one does, once."""
    outbox, relay = Outbox(settings), Relay(producer)
    with engine.connect() as connection:
        outbox.add(connection, skypostal(idempotency_key="rolled-back"))
        connection.rollback()
    with engine.begin() as connection:
        id_ = outbox.add(connection, skypostal(idempotency_key="committed"))
    assert relay.turn(engine).moved == 1
    assert producer.status(id_).idempotency_key == "committed"
    assert relay.turn(engine).idle
    assert rows(engine) == 0


def test_the_host_sees_its_own_mistakes_at_once(engine: Engine, settings: Settings) -> None:
    """An invalid job raises where it is added, with all its errors, and writes nothing."""
    job = open2b()
    job["registration"]["customer"]["password"] = "short"
    job["registration"]["customer"]["address"]["country"] = "Britain"
    with engine.begin() as connection, pytest.raises(InvalidJob) as caught:
        Outbox(settings).add(connection, job)
    assert {one.field for one in caught.value.problems} == {
        "registration.customer.password",
        "registration.customer.address.country",
    }
    assert rows(engine) == 0


def test_neither_the_table_nor_the_databases_files_hold_a_password(
    engine: Engine, url: URL, settings: Settings
) -> None:
    """The registration is sealed before it is written."""
    job = skypostal()
    job["registration"]["customer_password"] = PASSWORD
    with engine.begin() as connection:
        Outbox(settings).add(connection, job)
        stored = connection.execute(select(outbox_table.c.job)).scalar_one()
    assert PASSWORD not in stored
    assert json.loads(stored)["registration"].count(".") == 4
    if url.database and url.drivername == "sqlite":
        assert all(
            PASSWORD.encode() not in one.read_bytes()
            for one in Path(url.database).parent.iterdir()
            if one.is_file()
        )


def test_async_hosts_add_and_relay_in_their_loop(
    engine: Engine, url: URL, settings: Settings, producer: Producer
) -> None:
    """On an async connection; the relay does not block the loop while it uses the ledger."""
    if url.drivername == "mariadb+pymysql":
        url = url.set(drivername="mariadb+aiomysql")
    if url.drivername == "sqlite":
        url = url.set(drivername="sqlite+aiosqlite")

    async def host() -> str:
        database = create_async_engine(url, hide_parameters=True)
        try:
            async with database.begin() as connection:
                id_ = await Outbox(settings).add_async(connection, skypostal())
            assert (await Relay(producer).turn_async(database)).moved == 1
        finally:
            await database.dispose()
        return id_

    assert producer.status(asyncio.run(host())).state == "queued"


# ── the relay ─────────────────────────────────────────────────────────────────────────────────


def test_a_refused_row_holds_up_no_other_and_says_why(
    engine: Engine, settings: Settings, producer: Producer, ledger: SyncLedger
) -> None:
    """It stays with its error; once the cause is gone, an operator can retry it."""
    outbox, relay = Outbox(settings), Relay(producer)
    with engine.begin() as connection:
        outbox.add(connection, skypostal(account="elsewhere"))
        outbox.add(connection, skypostal())
    turn = relay.turn(engine)
    assert (turn.moved, turn.refused) == (1, 1)
    assert relay.turn(engine).idle
    with engine.begin() as connection:
        [refused] = refusals.listed(connection)
        assert "'elsewhere' of skypostal is not an account of any worker" in refused.problem
        assert refusals.retry(connection, [refused.id + 1]) == 0
        assert refusals.retry(connection) == 1
    ledger(announce([Limits("skypostal", "elsewhere", 0, 0, 0)], ["results"], {}))
    assert relay.turn(engine).moved == 1


def test_jobs_arrive_in_the_order_in_which_they_were_added(
    engine: Engine, settings: Settings, producer: Producer
) -> None:
    """Whatever size the relay's batches have."""
    with engine.begin() as connection:
        ids = [Outbox(settings).add(connection, skypostal()) for _ in range(25)]
    seen: list[str] = []
    accept = producer._each

    def watched(jobs: Any, away: Any) -> Iterator[Any]:
        for result in accept(jobs, away):
            assert isinstance(result, Receipt)
            seen.append(result.job_id)
            yield result

    producer._each = watched  # type: ignore[method-assign]
    relay = Relay(producer, batch=10)
    while not relay.turn(engine).idle:
        pass
    assert seen == ids


def test_relays_side_by_side_take_rows_of_their_own(
    url: URL, engine: Engine, settings: Settings
) -> None:
    """None waits for another's rows, and no row is moved twice. (SQLite has no row locks.)"""
    both_may_take = url.drivername == "sqlite"
    with engine.begin() as connection:
        for _ in range(20):
            Outbox(settings).add(connection, skypostal())
    with Producer(settings) as producer:
        relay = Relay(producer, batch=5)
        with engine.connect() as connection:
            held = relay._take(connection)
            if not both_may_take:
                assert relay.turn(engine).moved == 5
                assert rows(engine) == 15
                with engine.begin() as adding:
                    Outbox(settings).add(adding, skypostal())  # not blocked either
            assert len(held) == 5
            connection.rollback()
        moved = 0
        while not (turn := relay.turn(engine)).idle:
            moved += turn.moved
    assert moved == (20 if both_may_take else 16)


def test_rows_stay_while_the_ledger_is_away(
    engine: Engine, settings: Settings, unused_port: int
) -> None:
    """The turn fails, and the next one moves the rows."""
    with engine.begin() as connection:
        Outbox(settings).add(connection, skypostal())
    away = Settings.load(redis_url=f"redis://127.0.0.1:{unused_port}/0", sealing_keys=KEYS)
    with Producer(away) as producer, pytest.raises(LedgerUnavailable):
        Relay(producer).turn(engine)
    assert rows(engine) == 1


DYING = """
import os, signal, sys
from sqlalchemy import create_engine
from regworker.producer import Producer
from regworker.settings import Settings
from regworker.outbox import Relay

point, url = sys.argv[1:]

class Dying(Relay):
    def _take(self, connection):
        found = super()._take(connection)
        die("taken")
        return found
    def _hand_over(self, rows):
        done = super()._hand_over(rows)
        die("handed over")
        return done
    def _settle(self, connection, rows, results):
        done = super()._settle(connection, rows, results)
        die("deleted")
        return done

def die(here):
    if here == point:
        os.kill(os.getpid(), signal.SIGKILL)

with Producer(Settings.load()) as producer:
    Dying(producer, batch=7).turn(create_engine(url))
"""


#: Where a relay dies, for each database. All databases lose uncommitted changes alike, so only one
#: of them runs all the points.
DEATHS = [
    *(("postgresql", point) for point in ("taken", "handed over", "deleted")),
    *((kind, "deleted") for kind in ("mariadb", "sqlite")),
]


@pytest.mark.parametrize(("url", "point"), DEATHS, indirect=["url"])
def test_a_relay_that_is_killed_loses_and_doubles_nothing(
    point: str,
    engine: Engine,
    url: URL,
    settings: Settings,
    producer: Producer,
    ledger: SyncLedger,
) -> None:
    """Wherever it is killed, the next one moves the rest; every job is accepted once."""
    with engine.begin() as connection:
        ids = {Outbox(settings).add(connection, skypostal()) for _ in range(20)}
    died = subprocess.run(
        [sys.executable, "-c", DYING, point, url.render_as_string(hide_password=False)],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "REGWORKER_REDIS_URL": settings.redis_url,
            "REGWORKER_SEALING_KEYS": KEYS,
        },
        timeout=200,
        check=False,
    )
    assert died.returncode == -signal.SIGKILL
    assert rows(engine) == 20
    relay = Relay(producer, batch=7)
    while rows(engine):  # locked until the server notices that the killed relay is gone
        relay.turn(engine)
    assert {producer.status(id_).job_id for id_ in ids} == ids
    assert len(list(ledger.redis.scan_iter("{reg}:job:*"))) == 20


def test_rows_that_cannot_be_read_hold_up_no_other(
    engine: Engine, url: URL, settings: Settings, ledger: SyncLedger
) -> None:
    """They stay with their problem: rows that are no JSON, and one whose job has no valid record.
    The command goes on."""
    with engine.begin() as connection:
        ids = [Outbox(settings).add(connection, skypostal()) for _ in range(6)]
        for number, text in enumerate(['{"a', "", "null", "[" * 100_000]):
            changed = update(outbox_table).where(outbox_table.c.job_id == ids[number])
            connection.execute(changed.values(job=text))
    ledger.redis.set(job_key(ids[4]), "junk")
    regworker = Cli(
        REGWORKER_OUTBOX_URL=url.render_as_string(hide_password=False),
        REGWORKER_REDIS_URL=settings.redis_url,
        REGWORKER_SEALING_KEYS=KEYS,
    )
    assert regworker.json("outbox", "relay", "--once", code=1) == [{"moved": 1, "refused": 5}]
    problems = {one["job_id"]: one["problem"] for one in regworker.json("outbox", "refused")}
    assert [word in problems[id_] for id_, word in zip(ids, SAID, strict=False)] == [True] * 5


#: The problems of those rows.
SAID = [*["job: is not JSON"] * 2, "must be an object", "job: is not JSON", "cannot be read"]


# ── outcomes ──────────────────────────────────────────────────────────────────────────────────


def test_each_event_is_written_back_once(tmp_path: Path, url: URL, engine: Engine) -> None:
    """From the host's row to the provider and back, with a consumer that dies before its ack."""
    handled: list[str] = []
    with installation(tmp_path) as here:
        settings = here.producer.settings
        with engine.begin() as connection:
            ids = {Outbox(settings).add(connection, open2b()) for _ in range(5)}
        assert Relay(here.producer).turn(engine).moved == 5
        for id_ in ids:
            here.producer.wait(id_, 60)
        for lost in (True, False):
            consumer = ResultConsumer("host", "one", settings=settings)
            if lost:
                consumer.ack = lambda *results: None  # type: ignore[method-assign]
            outcomes = Outcomes(engine, consumer, lambda _, event: handled.append(event.subject))
            new = outcomes.turn(10)
            assert new == (5 if lost else 0)
            consumer._ledger.close()
    assert sorted(handled) == sorted(ids)
    with engine.connect() as connection:
        assert set(connection.execute(select(outcomes_table.c.job_id)).scalars()) == ids


def test_a_handler_that_fails_gets_its_event_again(
    tmp_path: Path, engine: Engine, settings: Settings, producer: Producer
) -> None:
    """The failed event writes nothing; other events continue."""
    ids = [producer.enqueue(skypostal(metadata={"at": n})).job_id for n in range(2)]
    for id_ in ids:
        producer.cancel(id_)
    failing = {ids[0]}

    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE seen (id VARCHAR(36))"))

    def handler(connection: Any, event: Any) -> None:
        connection.execute(text("INSERT INTO seen VALUES (:id)"), {"id": event.subject})
        if event.subject in failing:
            raise RuntimeError("the host's own trouble")

    with ResultConsumer("host", settings=settings, claim_after=0.5) as consumer:
        outcomes = Outcomes(engine, consumer, handler)
        assert outcomes.turn(10) == 1
        failing.clear()
        assert outcomes.turn(10) == 1
    with engine.connect() as connection:
        assert sorted(connection.execute(text("SELECT id FROM seen")).scalars()) == sorted(ids)
        found = connection.execute(select(outcomes_table.c.job_id, outcomes_table.c.type)).all()
    assert {tuple(row) for row in found} == {(one, "registration.cancelled") for one in ids}


# ── the command ───────────────────────────────────────────────────────────────────────────────


def test_the_command_makes_the_tables_relays_and_shows_what_is_refused(
    empty: Engine, url: URL, settings: Settings
) -> None:
    """Everything that an operator needs, starting with an empty database."""
    dialect = "mysql" if url.drivername.startswith("mariadb") else url.get_backend_name()
    environment = {
        "REGWORKER_OUTBOX_URL": url.render_as_string(hide_password=False),
        "REGWORKER_REDIS_URL": settings.redis_url,
        "REGWORKER_SEALING_KEYS": KEYS,
    }
    regworker = Cli(**environment)
    made = regworker("outbox", "sql", "--dialect", dialect)
    with empty.begin() as connection:
        for statement in filter(str.strip, made.split(";")):
            connection.execute(text(statement))
        outbox = Outbox(settings)
        outbox.add(connection, skypostal(account="elsewhere"))
        outbox.add(connection, skypostal())
    assert regworker.json("outbox", "relay", "--once", code=1) == [{"moved": 1, "refused": 1}]
    [refused] = regworker.json("outbox", "refused")
    assert "is not an account of any worker" in refused["problem"]
    assert regworker.json("outbox", "retry") == [{"retried": 1}]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("", "REGWORKER_OUTBOX_URL: is not set"),
        ("nonsense", "REGWORKER_OUTBOX_URL: is not an SQLAlchemy database URL"),
        (
            "oracle9://scott:s3cret-tiger@host/x",
            "REGWORKER_OUTBOX_URL: is not an SQLAlchemy database URL",
        ),
        (
            "postgresql+psycopg://u:s3cret-tiger@127.0.0.1:1/x",
            "the database refused or did",
        ),
        ("sqlite:////nonexistent/folder/x.db", "the database refused or did"),
    ],
)
def test_a_database_that_cannot_be_used_is_named_without_its_password(
    value: str, says: str
) -> None:
    """The error names the variable, without a traceback or a secret."""
    said = Cli(REGWORKER_OUTBOX_URL=value)("outbox", "refused", code=1)
    assert says in said
    assert "s3cret-tiger" not in said
    assert "Traceback" not in said


def test_the_relay_runs_until_it_is_told_to_end(tmp_path: Path, settings: Settings) -> None:
    """It moves rows that arrive while it runs; on SIGTERM it ends and reports what it did."""
    with database("sqlite", tmp_path) as url:
        engine = create_engine(url)
        metadata.create_all(engine)
        process = subprocess.Popen(
            [sys.executable, "-m", "worker.cli", "outbox", "relay", "--json"],
            env={
                **os.environ,
                "REGWORKER_OUTBOX_URL": str(url),
                "REGWORKER_REDIS_URL": settings.redis_url,
                "REGWORKER_SEALING_KEYS": KEYS,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            with engine.begin() as connection:
                Outbox(settings).add(connection, skypostal())
            empty = threading.Event()
            while rows(engine):
                assert process.poll() is None
                empty.wait(0.1)
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
            engine.dispose()
    assert json.loads(out) == {"moved": 1, "refused": 0}, err

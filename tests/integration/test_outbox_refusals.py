"""The outbox in a database that cannot store every text, or refuses a row; and events that cannot
be opened (yet)."""

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, select, text
from sqlalchemy.exc import DBAPIError

from regworker.ledger import SyncLedger
from regworker.outbox import Outbox, Outcomes, Relay, metadata, outbox_table, outcomes_table
from regworker.outbox.refusals import listed
from regworker.producer import Producer
from regworker.results import ResultConsumer
from regworker.sealing import seals
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from regworker.testing import event, registered
from tests.databases import database
from tests.integration.installation import KEYS, PATIENCE
from tests.integration.jobs import open2b, skypostal
from tests.integration.ledger_steps import settings_of_a_host
from worker.cli.local import stack

RESULTS = "{reg}:results"

#: Databases whose character set lacks some of `WORDS`, and one that has them all.
DATABASES = {
    "MariaDB, latin1": ("mariadb", "CHARACTER SET latin1"),
    "MariaDB, utf8mb3": ("mariadb", "CHARACTER SET utf8mb3"),
    "PostgreSQL, LATIN1": (
        "postgresql",
        "ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0",
    ),
    "SQLite": ("sqlite", ""),
}

#: Latin, Cyrillic, and beyond the Basic Multilingual Plane.
WORDS = ("pedido-ñ", "заказ-1", "order-\U0001f600")


@pytest.fixture
def settings(redis_url: str, ledger: SyncLedger) -> Settings:
    """The settings of a host; a worker has announced itself to the ledger."""
    return settings_of_a_host(redis_url, ledger, KEYS)


@pytest.fixture
def producer(settings: Settings) -> Iterator[Producer]:
    """A producer at that ledger."""
    with Producer(settings) as one:
        yield one


@pytest.fixture(params=DATABASES)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """A database of each kind, with both tables."""
    kind, options = DATABASES[request.param]
    with database(kind, tmp_path, options) as url:
        made = create_engine(url, hide_parameters=True)
        metadata.create_all(made)
        yield made
        made.dispose()


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Engine]:
    """A database in a file."""
    made = create_engine(f"sqlite:///{tmp_path / 'host.db'}", hide_parameters=True)
    metadata.create_all(made)
    yield made
    made.dispose()


def conflicting(producer: Producer, key: str) -> dict[str, Any]:
    """A job that will be refused: its key is taken by another one."""
    producer.enqueue(open2b(idempotency_key=key))
    job = open2b(idempotency_key=key)
    job["registration"]["customer"]["address"]["firstName"] = "Other"
    return job


def keys_left(engine: Engine) -> int:
    """How many rows wait for the relay."""
    with engine.connect() as connection:
        waiting = select(outbox_table.c.id).where(outbox_table.c.refused_at.is_(None))
        return len(connection.execute(waiting).all())


def refuse_updates(connection: Connection, when: str) -> None:
    """Set up a trigger as a host's database may have."""
    refuse = f"BEFORE UPDATE ON registration_outbox WHEN {when}"
    connection.execute(
        text(f"CREATE TRIGGER no {refuse} BEGIN SELECT RAISE(ABORT, 'refused here'); END")
    )


# ── the relay ─────────────────────────────────────────────────────────────────────────────────


def test_a_refusal_is_stored_in_any_character_set(
    engine: Engine, settings: Settings, producer: Producer
) -> None:
    """The problem quotes the key in ASCII, and rows behind the refused ones are moved."""
    outbox, relay = Outbox(settings), Relay(producer, batch=2)
    with engine.begin() as connection:
        for key in WORDS:
            outbox.add(connection, conflicting(producer, key))
        behind = [outbox.add(connection, skypostal(idempotency_key=key)) for key in WORDS]
    turns = [relay.turn(engine) for _ in range(4)]
    assert (sum(one.refused for one in turns), sum(one.moved for one in turns)) == (3, 3)
    assert [producer.status(id_).job_id for id_ in behind] == behind
    with engine.connect() as connection:
        for key, refusal in zip(WORDS, listed(connection), strict=True):
            assert key.encode("ascii", "backslashreplace").decode() in refusal.problem


def test_a_long_problem_is_cut(sqlite: Engine, settings: Settings, producer: Producer) -> None:
    """A column of MySQL's ends at 64 KiB; the row says what is wrong nevertheless."""
    with sqlite.begin() as connection:
        Outbox(settings).add(connection, open2b())
        row = connection.execute(select(outbox_table.c.job)).scalar_one()
        changed = {**json.loads(row), "provider": "open2b", "reply_to": ["é" * 300] * 300}
        connection.execute(outbox_table.update().values(job=json.dumps(changed)))
    assert Relay(producer).turn(sqlite).refused == 1
    with sqlite.connect() as connection:
        [refusal] = listed(connection)
    assert refusal.problem.isascii()
    assert 0 < len(refusal.problem) <= 2000


#: Triggers of a host's database that refuse an update, and what the row then says.
TRIGGERS = {
    "a word": ("NEW.problem LIKE '%taken%'", "could not store the problem"),
    "everything": ("NEW.refused_at IS NOT NULL", None),
}


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_a_refusal_that_the_database_refuses_stops_nothing_behind_it(
    sqlite: Engine, settings: Settings, producer: Producer, trigger: str
) -> None:
    """It says so in fixed words, or the row stays, and the relay reports the database's error once
    all others are moved."""
    when, says = TRIGGERS[trigger]
    with sqlite.begin() as connection:
        Outbox(settings).add(connection, conflicting(producer, "first"))
        for number in range(5):
            Outbox(settings).add(connection, skypostal(idempotency_key=f"behind-{number}"))
        refuse_updates(connection, when)
    relay = Relay(producer, batch=2)
    moved = refused = 0
    while keys_left(sqlite) > (says is None):
        turn = relay.turn(sqlite)
        moved, refused = moved + turn.moved, refused + turn.refused
    assert (moved, refused) == (5, says is not None)
    if says is None:
        with pytest.raises(DBAPIError, match="refused here"):
            relay.turn(sqlite)
        with sqlite.begin() as connection:
            connection.execute(text("DROP TRIGGER no"))
        assert relay.turn(sqlite).refused == 1
    else:
        assert relay.turn(sqlite).idle
        with sqlite.connect() as connection:
            [refusal] = listed(connection)
        assert says in refusal.problem


def test_the_command_goes_on_after_an_error_of_the_database(
    sqlite: Engine, settings: Settings, producer: Producer
) -> None:
    """Whatever its kind; rows that come later are moved."""
    with sqlite.begin() as connection:
        Outbox(settings).add(connection, conflicting(producer, "first"))
        refuse_updates(connection, "NEW.refused_at IS NOT NULL")
    process = subprocess.Popen(
        [sys.executable, "-m", "worker.cli", "outbox", "relay", "--json"],
        env={
            **os.environ,
            "REGWORKER_OUTBOX_URL": sqlite.url.render_as_string(hide_password=False),
            "REGWORKER_REDIS_URL": settings.redis_url,
            "REGWORKER_SEALING_KEYS": KEYS,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert "moving rows" in process.stderr.readline()
    assert "the database refused or did not answer (IntegrityError)" in process.stderr.readline()
    with sqlite.begin() as connection:
        Outbox(settings).add(connection, skypostal())
    stack.until(lambda: keys_left(sqlite) == 1, "the row is moved")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=PATIENCE)
    assert json.loads(out) == {"moved": 1, "refused": 0}, err


# ── outcomes ──────────────────────────────────────────────────────────────────────────────────


def outcomes(engine: Engine) -> dict[str, Any]:
    """The recorded rows: their contents by type."""
    with engine.connect() as connection:
        found = connection.execute(select(outcomes_table.c.type, outcomes_table.c.event)).all()
        return {type_: json.loads(content) for type_, content in found}


@pytest.mark.parametrize("word", WORDS)
def test_an_event_is_recorded_in_any_character_set(
    engine: Engine, settings: Settings, ledger: SyncLedger, word: str
) -> None:
    """The row is ASCII, and the same JSON as the event."""
    sent = event(registered(), metadata={word: [word, 1.10, 10**18]}).encode()
    ledger.redis.xadd(RESULTS, {"event": sent})
    with ResultConsumer("host", settings=settings) as consumer:
        assert Outcomes(engine, consumer).turn(PATIENCE) == 1
    assert outcomes(engine) == {"registration.registered": json.loads(sent)}


def unread(ledger: SyncLedger) -> int:
    """The entries that the group has not acknowledged."""
    pending: Any = ledger.redis.xpending(RESULTS, "host")
    return int(pending["pending"])


@pytest.mark.parametrize("keys", ["", Keyring.new("older")], ids=["no keys", "an older ring"])
def test_a_sealed_event_waits_for_its_key(
    sqlite: Engine,
    settings: Settings,
    ledger: SyncLedger,
    keys: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is not acknowledged; the log names the setting, and the other events go on. With the key
    it is recorded."""
    of_worker = Keyring.new("newer")

    def seal(id_: str, ring: str) -> None:
        sealed = Keyring.parse(ring).seal(event(registered()).encode(), seals.event(id_))
        fields: Any = {"id": id_, "type": "registration.registered", "sealed": sealed}
        ledger.redis.xadd(RESULTS, fields)

    def read(keys: str) -> int:
        found = Settings.load_for_client(redis_url=settings.redis_url, sealing_keys=keys)
        with ResultConsumer("host", settings=found, claim_after=0.01) as consumer:
            return Outcomes(sqlite, consumer).turn(PATIENCE)

    seal("job-1.1.registered", of_worker)
    if keys:
        seal("job-2.1.registered", keys)
    else:
        ledger.redis.xadd(RESULTS, {"event": event(registered()).encode()})
    with caplog.at_level(logging.ERROR):
        assert read(keys) == 1
    assert "1 events are not recorded, and come again" in caplog.text
    assert "REGWORKER_SEALING_KEYS" in caplog.text
    assert unread(ledger) == 1
    with sqlite.begin() as connection:
        connection.execute(outcomes_table.delete())
    assert read(f"{of_worker},{keys}".rstrip(",")) == 1
    assert unread(ledger) == 0


#: Entries that can never be read, by whom they are from.
NEVER: dict[str, dict[bytes, bytes]] = {
    "another program": {b"note": "привет".encode()},
    "broken bytes": {b"event": b"\xff\x00{", b"\xff": b"\x00"},
    "a seal that is none": {b"id": b"x", b"type": b"t", b"sealed": b"no.seal"},
    "no event": {b"event": b'{"type": "registration.of.a.later.kind"}'},
}


@pytest.mark.parametrize("entry", NEVER)
def test_what_can_never_be_read_is_kept_where_somebody_sees_it(
    sqlite: Engine, settings: Settings, ledger: SyncLedger, entry: str
) -> None:
    """As a row of its own type, since the stream is trimmed; no handler gets it, and the entry does
    not come again."""
    ledger.redis.xadd(RESULTS, NEVER[entry])  # type: ignore[arg-type]
    handled: list[Any] = []
    with ResultConsumer("host", settings=settings) as consumer:
        turned = Outcomes(sqlite, consumer, lambda _, one: handled.append(one)).turn(PATIENCE)
    assert (turned, handled, unread(ledger)) == (0, [], 0)
    [(kind, kept)] = outcomes(sqlite).items()
    assert kind == "unreadable"
    fields = {name.encode(): value.encode() for name, value in kept["fields"].items()}
    for name, value in NEVER[entry].items():
        plain = value.decode("utf-8", "backslashreplace").encode()
        assert fields[name.decode("utf-8", "backslashreplace").encode()] == plain
    assert kept["problem"]

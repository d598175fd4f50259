"""Each role's rights on a real server suffice for its work and allow nothing else."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from celery import Celery

from regworker.domain.job import canonical
from regworker.ledger import AsyncLedger, SyncLedger
from regworker.ledger.transitions import CONFIGURED, WAKES, announced
from regworker.producer import Producer
from regworker.results import ResultConsumer
from regworker.sealing import seals
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from tests.gateway.service import start
from tests.integration.installation import (
    KEYS,
    PATIENCE,
    Installation,
    installation,
)
from tests.integration.jobs import open2b, skypostal
from worker.broker.wake_relay import WakeRelay
from worker.broker.wakeups import QUEUES
from worker.cli.local import stack
from worker.monitoring.overview import Observer
from worker.operations.roles import ROLES


def url(here: Installation, role: str) -> str:
    """The ledger's URL for a role."""
    return f"redis://{role}:secret@127.0.0.1:{here.valkey.port}/0"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """An installation where each process has its role; the broker is the ledger's server."""
    with installation(tmp_path_factory.mktemp("roles"), workers=0, broker_url="") as running:
        for role in ROLES:
            reset, on, *rest = role.rules()
            running.ledger.redis.execute_command(
                "ACL", "SETUSER", role.name, reset, on, ">secret", *rest
            )
        running.start_worker(redis_url=url(running, "worker"))
        stack.wait_for_worker(running.ledger, running.workers[0])
        running.wait_for_line("ready.")
        yield running


_MAY_BE_DENIED = {
    *(("producer", "registrations"), ("gateway", "registrations"), ("flower", "unacked")),
}


@pytest.fixture(autouse=True)
def nothing_denied(here: Installation) -> Iterator[None]:
    """The role lacks every right that the server denied during its work."""
    admin: Any = here.ledger.redis
    admin.execute_command("ACL", "LOG", "RESET")
    yield
    # Producers and gateways may not push onto the broker: the script lets a worker do it. Flower,
    # like every kombu consumer, would restore unacknowledged messages of others.
    denied = [
        (one["username"], one["object"])
        for one in admin.acl_log()
        if (one["username"], one["object"].split("_")[0].split(".")[0]) not in _MAY_BE_DENIED
    ]
    assert not denied


def settings(here: Installation, role: str) -> Settings:
    """The settings of a process of a role."""
    return Settings.load(redis_url=url(here, role), sealing_keys=KEYS)


def test_a_producer_enqueues_waits_looks_and_cancels(here: Installation) -> None:
    """With the real code and only the role's rights."""
    with Producer(settings(here, "producer")) as producer:
        done = producer.enqueue(skypostal())
        event = producer.wait(done.job_id, PATIENCE)
        assert event["type"] == "registration.registered"
        assert producer.status(done.job_id).final
        regworker(here, "operator", "providers", "pause", "open2b/default", "--why", "a test")
        waits = producer.enqueue(open2b())
        assert producer.cancel(waits.job_id).state == "cancelled"
        regworker(here, "operator", "providers", "resume", "open2b/default")


def test_a_stream_producer_adds_jobs(here: Installation) -> None:
    """With one command, without our library."""
    job = skypostal()
    with redis.Redis.from_url(url(here, "stream-producer")) as client:
        client.xadd("{reg}:jobs", {"job": json.dumps(job)})
    stack.until(lambda: here.made(job["registration"]["customer_email"]) == 1, "it", PATIENCE)


def test_a_task_producer_sends_tasks(here: Installation) -> None:
    """A Celery client that knows only the task's name."""
    job = skypostal()
    app = Celery(broker=url(here, "task-producer"), set_as_current=False)
    app.send_task("registrations.register", (job,), queue="registrations", ignore_result=True)
    app.close()
    stack.until(lambda: here.made(job["registration"]["customer_email"]) == 1, "it", PATIENCE)


def test_a_results_reader_reads_as_a_group(here: Installation) -> None:
    """Creates its group, reads, acknowledges, returns entries and leaves."""
    here.run(skypostal())
    with ResultConsumer("roles", settings=settings(here, "results-reader")) as consumer:
        found = consumer.take(PATIENCE)
        assert found is not None
        consumer.ack(found)
        consumer.take(PATIENCE)


def test_an_exporter_looks_at_ledger_and_broker(here: Installation) -> None:
    """Everything that it shows."""
    with Observer(settings(here, "exporter")) as observer:
        stack.until(lambda: bool(observer.look().snapshot.workers), "a worker is seen", PATIENCE)
        assert observer.look().queues is not None


@pytest.mark.parametrize("role", ["exporter", "operator"])
def test_who_reads_all_names_may_read_many(here: Installation, role: str) -> None:
    """More than a server returns at once."""
    names = {f"key:old:{number}" for number in range(3000)}
    here.ledger.redis.sadd(CONFIGURED, *names)
    with closing(SyncLedger(url(here, role))) as ledger:
        assert names < set(ledger.ask(announced))
    here.ledger.redis.srem(CONFIGURED, *names)


def test_flower_sees_the_workers(here: Installation, unused_port: int, tmp_path: Path) -> None:
    """It receives events, queries workers and reads queues."""
    environment = {
        **here.environment,
        "REGWORKER_REDIS_URL": url(here, "flower"),
        "REGWORKER_SEALING_KEYS": "none",
        "FLOWER_UNAUTHENTICATED_API": "true",
        "FLOWER_READ_ONLY": "true",
    }
    with (
        (tmp_path / "log").open("wb") as log,
        stack.process(stack.flower_command(unused_port), environment, tmp_path, log),
    ):
        import urllib.request

        def page(path: str) -> str:
            try:
                where = f"http://127.0.0.1:{unused_port}/{path}"
                with urllib.request.urlopen(where, timeout=PATIENCE) as answer:
                    return str(answer.read().decode())
            except OSError:
                return ""

        stack.until(lambda: "celery@" in page("workers?json=1"), "the worker", PATIENCE)
        stack.until(lambda: "registrations" in page("broker"), "the queues", PATIENCE)


def regworker(here: Installation, role: str, *arguments: str) -> str:
    """Run a command as a role; return its output."""
    done = subprocess.run(
        [sys.executable, "-m", "worker.cli", *arguments],
        env={**os.environ, **here.environment, "REGWORKER_REDIS_URL": url(here, role)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "command",
    [
        *("doctor", "stats", "top --once", "providers list", "review list", "quarantine list"),
        *("deliveries list", "deliveries endpoints", "results groups", "keys list"),
        *("jobs --json", "audit"),
    ],
)
def test_an_operator_runs_every_command(here: Installation, command: str) -> None:
    """Commands that read; pause and resume are tested elsewhere."""
    regworker(here, "operator", *command.split())


def test_a_worker_sets_aside_what_stands_in_the_place_of_its_lists(here: Installation) -> None:
    """At the broker, and at a ledger beside a broker of another kind."""
    admin: Any = here.ledger.redis
    for key in (QUEUES["bulk"], WAKES):
        admin.delete(key)
        admin.set(key, "junk")
    stack.until(lambda: admin.exists(f"{QUEUES['bulk']}.set-aside"), "the rename", PATIENCE)

    async def relay() -> None:
        own = AsyncLedger(url(here, "worker"))
        it = WakeRelay(own, None, url(here, "worker"), dict)  # type: ignore[arg-type]
        await it.relay_once()
        await it.aclose()
        await own.aclose()

    asyncio.run(relay())
    assert admin.get(f"{WAKES}.set-aside") == b"junk"
    admin.delete(f"{QUEUES['bulk']}.set-aside", f"{WAKES}.set-aside")


def test_an_operator_exports_and_erases(here: Installation) -> None:
    """The data of a job, as an operator with these rights."""
    job = here.run(skypostal())["subject"]
    assert job in regworker(here, "operator", "export", job)
    assert job in regworker(here, "operator", "forget", job, "--by", "ann")


def test_a_gateway_serves_the_way_in(here: Installation) -> None:
    """Accepts, waits for the end, reports it, cancels; only an operator creates tokens."""
    token = regworker(here, "operator", "tokens", "new", "--name", "shop").split()[0]
    environment = {**here.environment, "REGWORKER_REDIS_URL": url(here, "gateway")}
    with ExitStack() as running:
        address, _, _ = start(running, here.folder, environment, "--port", "0")
        headers = {"authorization": f"Bearer {token}"}
        client = running.enter_context(
            httpx.Client(base_url=address, headers=headers, timeout=PATIENCE)
        )
        cursor = client.get("/v1/events").json()["cursor"]
        job = client.post("/v1/jobs", json=skypostal()).json()["job_id"]
        while not (found := client.get(f"/v1/jobs/{job}?wait=60").json())["final"]:
            pass
        assert found["state"] == "registered"
        events = client.get(f"/v1/events?after={cursor}&wait=60").json()["events"]
        assert [one["subject"] for one in events] == [job]
        assert client.delete(f"/v1/jobs/{job}").status_code == 409


def test_a_gateway_without_keys_asks_a_worker(here: Installation) -> None:
    """With the same rights; also for the sessions of its pages."""
    token = regworker(here, "operator", "tokens", "new", "--name", "shop").split()[0]
    environment = {**here.environment, "REGWORKER_REDIS_URL": url(here, "gateway")}
    del environment["REGWORKER_SEALING_KEYS"]
    job = skypostal()
    plain, keyring = canonical(job["registration"]), Keyring.parse(KEYS)
    job["registration"] = keyring.seal(plain, seals.registration(job))
    with ExitStack() as running:
        address, _, _ = start(running, here.folder, environment, "--port", "0")
        headers = {"authorization": f"Bearer {token}"}
        answer = httpx.post(f"{address}/v1/jobs", json=job, headers=headers, timeout=PATIENCE)
        assert answer.status_code == 201, answer.text
        assert httpx.get(f"{address}/jobs", timeout=PATIENCE).status_code == 303


#: What no role may do.
NOBODY = [
    *("FLUSHALL", "FLUSHDB", "CONFIG GET requirepass", "CONFIG SET dir /", "SHUTDOWN", "DEBUG x"),
    *("ACL LIST", "KEYS *", "MONITOR", "REPLICAOF no one", "SAVE", "SWAPDB 0 1", "MODULE LIST"),
    *("CLIENT KILL ID 1", "SET x y", "FUNCTION LIST"),
]

#: What a role may not do although another role may.
FORBIDDEN = {
    "stream-producer": [
        *("XRANGE {reg}:jobs - +", "XREAD STREAMS {reg}:results 0", "HGETALL {reg}:job:x"),
        *("HSET {reg}:job:x a b", "EVALSHA x 0", "EVAL x 0", "LPUSH registrations.live x"),
        *("PUBLISH /0.celery.pidbox x", "XADD {reg}:results * a b", "XTRIM {reg}:jobs MAXLEN 0"),
        *("SCRIPT LOAD x", "DEL {reg}:jobs", "SUBSCRIBE {reg}:done:x", "PUBLISH {reg}:done:x y"),
    ],
    "task-producer": [
        *("XADD {reg}:jobs * a b", "XREAD STREAMS {reg}:results 0", "HGETALL {reg}:job:x"),
        *("LPUSH registrations.live x", "PUBLISH /0.celery.pidbox x", "EVAL x 0", "EVALSHA x 0"),
        *("DEL registrations", "RPOP registrations", "BRPOP registrations 1"),
        *("SADD registrations x", "LPUSH _kombu.binding.registrations x"),
    ],
    "producer": [
        *("LPUSH registrations.live x", "PUBLISH /0.celery.pidbox x", "EVAL x 0", "INFO"),
        *("SUBSCRIBE /0.celeryev/x", "XREADGROUP GROUP a b STREAMS {reg}:results >"),
        *("DEL {reg}:jobs", "BRPOP registrations 1", "SCAN 0"),
    ],
    "gateway": [
        *("LPUSH registrations.live x", "PUBLISH /0.celery.pidbox x", "EVAL x 0", "INFO"),
        *("SUBSCRIBE /0.celeryev/x", "XREADGROUP GROUP a b STREAMS {reg}:results >"),
        *("DEL {reg}:jobs", "BRPOP registrations 1", "SCAN 0", "KEYS {reg}:tokens"),
        *("DEL {reg}:tokens", "XTRIM {reg}:results MAXLEN 0", "SUBSCRIBE other"),
    ],
    "results-reader": [
        *("XADD {reg}:results * a b", "XDEL {reg}:results 1-1", "XTRIM {reg}:results MAXLEN 0"),
        *("HGETALL {reg}:job:x", "XRANGE {reg}:jobs - +", "DEL {reg}:results", "EVAL x 0"),
        *("PUBLISH {reg}:done:x y", "PUBLISH /0.celery.pidbox x", "XGROUP DESTROY {reg}:results a"),
    ],
    "exporter": [
        *("XADD {reg}:results * a b", "XADD {reg}:jobs * a b", "LPUSH registrations.live x"),
        *("HSET {reg}:job:x a b", "PUBLISH /0.celery.pidbox x", "EVAL x 0", "DEL {reg}:job:x"),
        *("XRANGE {reg}:results - +", "BRPOP registrations 1"),
    ],
    "flower": [
        *(
            "HGETALL {reg}:job:x",
            "XRANGE {reg}:results - +",
            "XADD {reg}:jobs * a b",
            "DEL {reg}:jobs",
        ),
        *("LPUSH registrations.live x", "RPOP registrations", "PUBLISH {reg}:done:x y"),
    ],
    "worker": ["SCAN 0", "DEL other", "PUBLISH other x"],
    "operator": ["DEL other", "PUBLISH /0.celery.pidbox x", "SUBSCRIBE /0.celeryev/x"],
}


@pytest.mark.parametrize("role", [role.name for role in ROLES])
def test_a_role_may_do_no_more(here: Installation, role: str) -> None:
    """The server denies each command."""
    admin: Any = here.ledger.redis
    allowed = []
    for command in [*NOBODY, *FORBIDDEN[role]]:
        try:
            said = admin.execute_command("ACL", "DRYRUN", role, *command.split())
        except redis.ResponseError as error:
            said = str(error)
        if said in (b"OK", "OK", True):
            allowed.append(command)
    assert not allowed

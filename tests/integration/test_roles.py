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
from regworker.domain.states import State
from regworker.ledger import AsyncLedger, SyncLedger
from regworker.ledger.endpoints import pending_key
from regworker.ledger.snapshot import OPEN, place
from regworker.ledger.transitions import CONFIGURED, WAKES, announced, job_key
from regworker.producer import Producer
from regworker.results import RESULTS, ResultConsumer
from regworker.sealing import seals
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from regworker.settings.endpoints import LEDGER_WORDS
from tests.gateway.service import start
from tests.integration.installation import (
    KEYS,
    PATIENCE,
    SECRET,
    Installation,
    installation,
)
from tests.integration.jobs import open2b, skypostal
from worker.broker.wake_relay import WakeRelay
from worker.broker.wakeups import QUEUES
from worker.cli.local import stack
from worker.monitoring.overview import Observer
from worker.operations.roles import ROLES

#: A results stream besides `{reg}:results`.
VAULT = "{reg}:vault"


def url(here: Installation, role: str) -> str:
    """The ledger's URL for a role."""
    return f"redis://{role}:secret@127.0.0.1:{here.valkey.port}/0"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """An installation where each process has its role; the broker is the ledger's server."""
    with installation(
        tmp_path_factory.mktemp("roles"),
        workers=0,
        broker_url="",
        endpoints__vault__kind="stream",
        endpoints__vault__stream=VAULT,
        endpoints__hook__kind="webhook",
        endpoints__hook__url="http://127.0.0.1:1/",
        endpoints__hook__secrets=SECRET,
        endpoints__hook__allow_http=True,
        endpoints__hook__allow_private=True,
    ) as running:
        for role in ROLES:
            allow(running, role.name, RESULTS, VAULT)
        # No worker has run yet: nobody has corrected it.
        running.ledger.redis.zadd(OPEN, {"nobody": place(State.CALLING, "live", 5)})
        running.start_worker(redis_url=url(running, "worker"))
        stack.wait_for_worker(running.ledger, running.workers[0])
        running.wait_for_line("ready.")
        yield running


def allow(here: Installation, role: str, *streams: str) -> None:
    """Give a role the rights that the command prints for these results streams."""
    options = [part for stream in streams for part in ("--stream", stream)]
    line = regworker(here, "", "acl", role, *options)
    admin: Any = here.ledger.redis
    admin.execute_command(*line.replace("<password>", "secret").split())


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


def test_a_producer_cancels_whatever_gets_the_event(here: Installation) -> None:
    """Streams and a webhook."""
    admin: Any = here.ledger.redis
    regworker(here, "operator", "providers", "pause", "open2b/default", "--why", "a test")
    with Producer(settings(here, "producer")) as producer:
        waits = producer.enqueue(open2b(reply_to=["results", "vault", "hook"]))
        before = admin.xlen(VAULT)
        assert producer.cancel(waits.job_id).state == "cancelled"
        assert admin.xlen(VAULT) == before + 1
        assert admin.zcard(pending_key("hook")) == 1
        # Its record has expired, and its delivery is still there when the key is used again.
        admin.delete(job_key(waits.job_id))
        job = {**open2b(reply_to=["vault", "hook"]), "idempotency_key": waits.idempotency_key}
        again = producer.enqueue(job)
        assert again.job_id == waits.job_id
        assert producer.cancel(again.job_id).state == "cancelled"
    assert admin.xlen(VAULT) == before + 2
    assert admin.zcard(pending_key("hook")) == 1
    regworker(here, "operator", "providers", "resume", "open2b/default")


def test_a_producer_gets_every_answer(here: Installation) -> None:
    """To several jobs at once: accepted, repeated, with other content, for an unknown account."""
    known = skypostal()
    with Producer(settings(here, "producer")) as producer:
        producer.enqueue(known)
        found = producer.enqueue_many(
            [known, {**known, "if_exists": "adopt"}, skypostal(account="nobody")]
            + [skypostal(lane="bulk") for _ in range(30)]
        )
        answers = [type(one).__name__ for one in found]
    assert answers == ["Receipt", "Refused", "Refused", *["Receipt"] * 30]


def test_an_event_that_may_not_be_written_everywhere_is_written_nowhere(
    here: Installation,
) -> None:
    """A producer without the right to one of the streams cancels nothing; the job goes on."""
    admin: Any = here.ledger.redis
    regworker(here, "operator", "providers", "pause", "open2b/default", "--why", "a test")
    allow(here, "producer", RESULTS)
    with Producer(settings(here, "producer")) as producer:
        waits = producer.enqueue(open2b(reply_to=["results", "vault"]))

        def written() -> tuple[Any, ...]:
            record = admin.hmget(job_key(waits.job_id), "state", "event", "finished_at")
            return admin.xlen(RESULTS), admin.xlen(VAULT), record

        before = written()
        with pytest.raises(redis.exceptions.NoPermissionError, match=":vault: nothing was written"):
            producer.cancel(waits.job_id)
        assert written() == before
        allow(here, "producer", RESULTS, VAULT)
        assert producer.cancel(waits.job_id).state == "cancelled"
    regworker(here, "operator", "providers", "resume", "open2b/default")


def test_a_worker_corrects_the_index_of_jobs(here: Installation) -> None:
    """Whoever watches need not read jobs for that."""
    admin: Any = here.ledger.redis
    stack.until(lambda: admin.zscore(OPEN, "nobody") is None, "the correction", PATIENCE)


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


def test_a_gateway_cancels_for_a_person(here: Installation) -> None:
    """Another client's job, with an entry in the audit log."""
    shop, desk = (
        regworker(here, "operator", "tokens", "new", "--name", name, *may).split()[0]
        for name, *may in (["shop"], ["desk", "--may", "operate"])
    )
    environment = {**here.environment, "REGWORKER_REDIS_URL": url(here, "gateway")}
    regworker(here, "operator", "providers", "pause", "open2b/default", "--why", "a test")
    with ExitStack() as running:
        address, _, _ = start(running, here.folder, environment, "--port", "0")
        client = running.enter_context(httpx.Client(base_url=address, timeout=PATIENCE))
        given, other = ({"authorization": f"Bearer {one}"} for one in (shop, desk))
        job = client.post("/v1/jobs", json=open2b(), headers=given).json()["job_id"]
        answer = client.delete(f"/v1/jobs/{job}", headers=other)
        assert answer.json()["state"] == "cancelled", answer.text
    assert job in regworker(here, "operator", "audit")
    regworker(here, "operator", "providers", "resume", "open2b/default")


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


#: By role, the ledger's keys that it may read and write, by their first words. Only workers and
#: operators may use all others: tokens, sessions, the audit log, accounts, announcements, ...
SHARED = {"job", "delivery", "alarms", "absent", "stats", "wakes"}
PRODUCED = {
    *SHARED,
    *("open", "later", "waiting", "ended", "pending", "trying", "line", "dead", "results"),
}
FOLLOWED = {*SHARED, "configured", "identity", "replicas", "streams", "waking"}
WATCHED = {
    *("open", "later", "alarms", "reviews", "configured", "streams", "announced", "stats", "dead"),
    *("quarantine", "workers", "worker", "results", "account", "inflight", "waiting", "endpoint"),
    *("pending", "trying", "line"),
}
REACHES: dict[str, tuple[set[str], set[str]]] = {
    "stream-producer": (set(), {"jobs"}),
    "task-producer": (set(), set()),
    "producer": (FOLLOWED, PRODUCED),
    "gateway": (
        {*FOLLOWED, "results", "jobs", "pages", "tokens", "answer"},
        {*PRODUCED, "jobs", "pages", "audit"},
    ),
    "results-reader": ({"results"}, {"results"}),
    "exporter": (WATCHED, set()),
    "flower": (set(), set()),
}

#: Commands that read, or write, a key: a role that may run none of them on it cannot reach it.
READ = [
    *("HMGET {} a", "HGETALL {}", "GET {}", "SMEMBERS {}", "ZRANGE {} 0 1", "XRANGE {} - +"),
    *("XREAD STREAMS {} 0", "HSCAN {} 0", "XINFO STREAM {}", "LPOP {}"),
]
WRITE = [
    *("HSET {} a b", "SET {} x", "DEL {}", "XADD {} * a b", "ZADD {} 1 a", "LPUSH {} x"),
    *("SADD {} x", "XTRIM {} MAXLEN 0", "XDEL {} 1-1", "RENAME {} {}", "PEXPIRE {} 1"),
    *("HDEL {} a", "ZREM {} a", "XACK {} a 1-1", "XGROUP CREATE {} g $"),
]


def may(here: Installation, role: str, command: str) -> bool:
    """Whether the server would run a role's command."""
    admin: Any = here.ledger.redis
    try:
        said = admin.execute_command("ACL", "DRYRUN", role, *command.split())
    except redis.ResponseError as error:
        said = str(error)
    return said in (b"OK", "OK", True)


@pytest.mark.parametrize("role", REACHES)
def test_a_role_reaches_only_its_keys(here: Installation, role: str) -> None:
    """Each key of the ledger, also those that are added later."""

    def reached(commands: list[str]) -> set[str]:
        return {
            word
            for word in {*LEDGER_WORDS, "results"}
            for key in (f"{{reg}}:{word}", f"{{reg}}:{word}:x")
            if any(may(here, role, command.replace("{}", key)) for command in commands)
        }

    assert (reached(READ), reached(WRITE)) == REACHES[role]


def test_nobody_forges_a_token(here: Installation) -> None:
    """Not with a script of their own either; and no record of a job is shown to an exporter."""
    tokens, job = "{reg}:tokens", job_key(here.run(skypostal())["subject"])
    forge = "return redis.call('HSET', KEYS[1], 'x', '{}')"
    show = "return redis.call('HMGET', KEYS[1], 'key', 'metadata')"
    for role, source, key in [
        ("producer", forge, tokens),
        ("gateway", forge, tokens),
        ("producer", forge, "{reg}:account:skypostal:default"),
        ("gateway", forge, "{reg}:account:skypostal:default"),
        ("exporter", show, tokens),
        ("exporter", show, job),
    ]:
        with redis.Redis.from_url(url(here, role)) as client:
            script = client.script_load(source)
            for keys in ([key], []):
                with pytest.raises(
                    redis.exceptions.ResponseError, match=r"(?i)permission|can't access"
                ):
                    client.evalsha(script, len(keys), *keys)
                script = client.script_load(source.replace("KEYS[1]", f"'{key}'"))
    admin: Any = here.ledger.redis
    assert not admin.exists(tokens) or not admin.hexists(tokens, "x")
    admin.execute_command("ACL", "LOG", "RESET")


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
        *("DEL {reg}:jobs", "BRPOP registrations 1", "SCAN 0", "XRANGE {reg}:results - +"),
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
        *("XRANGE {reg}:results - +", "BRPOP registrations 1", "XINFO STREAM {reg}:results FULL"),
        *("HMGET {reg}:job:x key", "HGETALL {reg}:tokens", "XRANGE {reg}:audit - +"),
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
    assert [one for one in [*NOBODY, *FORBIDDEN[role]] if may(here, role, one)] == []

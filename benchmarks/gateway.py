"""What the HTTP gateway costs: `python -m benchmarks.gateway [--jobs N] [--clients N] [--polls N]`.

One process of `regworker serve` on a Valkey of its own, and clients in this process over keep-alive
connections. Printed: jobs a second, the service's CPU for each, p50 of one client alone, and what a
crowd in a long poll costs: connections to the ledger, memory, and how long news takes to reach all.
In turns with it a bare server gets the same requests (`benchmarks.support.bare`): the ratio of the
two depends little on the machine and on what else runs there.
"""

import argparse
import asyncio
import json
import socket
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from regworker.ledger import SyncLedger
from regworker.producer import Producer
from regworker.settings import Settings
from tests.gateway.service import KEYS, serves, start
from tests.integration.installation import ROOT
from tests.integration.jobs import skypostal
from worker.cli.local import stack
from worker.operations.tokens import TokenStore


class Client:
    """One keep-alive connection with as little overhead as possible: the service is measured."""

    def __init__(self, url: str, token: str) -> None:
        parts = urlsplit(url)
        self._address = (str(parts.hostname), int(parts.port or 80))
        self._token = token

    async def __aenter__(self) -> "Client":
        self._reader, self._writer = await asyncio.open_connection(*self._address)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    async def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Send a request; return its status and body."""
        head = f"{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {self._token}\r\n"
        self._writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        found = await self._reader.readuntil(b"\r\n\r\n")
        names = dict(line.split(b": ", 1) for line in found.split(b"\r\n")[1:] if line)
        answer = await self._reader.readexactly(int(names[b"content-length"]))
        return int(found.split(b" ", 2)[1]), answer


def body() -> bytes:
    """One job."""
    return json.dumps(skypostal()).encode()


async def crowd(url: str, token: str, jobs: list[bytes], clients: int) -> float:
    """Send all jobs over so many connections; return the seconds."""
    waiting = iter(jobs)

    async def one() -> None:
        async with Client(url, token) as client:
            for job in waiting:
                status, answer = await client.ask("POST", "/v1/jobs", job)
                assert status == 201, answer

    begun = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(clients)))
    return time.perf_counter() - begun


def bare(running: ExitStack, folder: Path) -> tuple[str, int]:
    """Start a server that does nothing; return its URL and process id."""
    port = stack.free_port()
    command = [sys.executable, "-m", "benchmarks.support.bare", str(port)]
    output = running.enter_context((folder / "bare.log").open("ab"))
    process = running.enter_context(
        stack.process(command, {"PYTHONPATH": str(ROOT)}, folder, output)
    )

    def listens() -> bool:
        with socket.socket() as tried:
            return tried.connect_ex(("127.0.0.1", port)) == 0

    stack.until(listens, "the bare server listens")
    return f"http://127.0.0.1:{port}", process.pid


@dataclass
class Burst:
    """A server with many clients; measured in several turns."""

    url: str
    process: psutil.Process
    seconds: float = 0.0
    cpu: list[float] = field(default_factory=list)
    """Milliseconds per request, for each turn."""

    def turn(self, token: str, jobs: int, clients: int) -> None:
        """Send so many jobs."""
        bodies = [body() for _ in range(jobs)]
        before = self.process.cpu_times()
        self.seconds += asyncio.run(crowd(self.url, token, bodies, clients))
        after = self.process.cpu_times()
        spent = after.user + after.system - before.user - before.system
        self.cpu.append(spent / jobs * 1000)


async def alone(url: str, token: str, count: int) -> list[float]:
    """Seconds of each job of a single client."""
    found = []
    async with Client(url, token) as client:
        for _ in range(count):
            job = body()
            begun = time.perf_counter()
            await client.ask("POST", "/v1/jobs", job)
            found.append(time.perf_counter() - begun)
            await asyncio.sleep(0.005)
    return found


async def polls(
    url: str, token: str, count: int, settings: Settings, ledger: SyncLedger
) -> tuple[float, int]:
    """Many clients wait for one event: seconds until all have it, connections to the ledger."""
    async with Client(url, token) as client:
        cursor = json.loads((await client.ask("GET", "/v1/events"))[1])["cursor"]
        job = json.loads((await client.ask("POST", "/v1/jobs", body()))[1])["job_id"]

    async def one(arrived: asyncio.Semaphore) -> None:
        async with Client(url, token) as client:
            arrived.release()
            _, answer = await client.ask("GET", f"/v1/events?after={cursor}&wait=60")
            assert json.loads(answer)["events"], answer

    arrived = asyncio.Semaphore(0)
    waiting = [asyncio.create_task(one(arrived)) for _ in range(count)]
    for _ in waiting:
        await arrived.acquire()
    await asyncio.sleep(1.0)
    connections = len(ledger.redis.client_list())
    begun = time.perf_counter()
    with Producer(settings) as producer:
        await asyncio.to_thread(producer.cancel, job)
    await asyncio.gather(*waiting)
    return time.perf_counter() - begun, connections


def main() -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--polls", type=int, default=500)
    given = parser.parse_args()
    with ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory()))
        valkey = running.enter_context(stack.valkey(folder / "valkey"))
        values: dict[str, Any] = {"redis_url": valkey.connection_url, "sealing_keys": KEYS}
        settings = Settings.load(**values)
        ledger = SyncLedger(valkey.connection_url)
        running.callback(ledger.close)
        serves(ledger, settings)
        token, _ = TokenStore(ledger).new("bench", ("enqueue", "read"), rate=1e9)
        environment = {f"REGWORKER_{name.upper()}": value for name, value in values.items()}
        url, process, _ = start(running, folder, environment, "--port", "0")
        service = psutil.Process(process.pid)
        asyncio.run(alone(url, token, 50))
        idle = asyncio.run(alone(url, token, 200))
        bare_url, bare_pid = bare(running, folder)
        ours, least = Burst(url, service), Burst(bare_url, psutil.Process(bare_pid))
        for _ in range(given.turns):
            least.turn(token, given.jobs // given.turns, given.clients)
            ours.turn(token, given.jobs // given.turns, given.clients)
        cpu, of_bare = statistics.mean(ours.cpu), statistics.mean(least.cpu)
        memory = service.memory_info().rss
        news, connections = asyncio.run(polls(url, token, given.polls, settings, ledger))
        found = {
            "jobs_per_second": round(given.jobs / ours.seconds),
            "cpu_ms_per_job": round(cpu, 3),
            "cpu_ms_per_job_of_each_turn": [round(one, 3) for one in ours.cpu],
            "cpu_ms_per_request_of_a_bare_server": round(of_bare, 4),
            "times_a_bare_server": round(cpu / of_bare, 1),
            "jobs_per_cpu_second": round(1000 / cpu),
            "idle_p50_ms": round(statistics.median(idle) * 1000, 2),
            "polls": given.polls,
            "connections_to_the_ledger": connections,
            "seconds_until_all_have_the_event": round(news, 3),
            "memory_mb_before_and_during_polls": [
                round(one / 1e6) for one in (memory, service.memory_info().rss)
            ],
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()

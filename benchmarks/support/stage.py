"""The processes of a benchmark: the provider, a Valkey, a contestant's worker and its client."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psutil
import redis

from benchmarks.contestants import SLOTS, Contestant
from benchmarks.support import meter
from regworker.sealing.keyring import Keyring
from regworker.settings import PREFIX
from worker.cli.local import stack

ROOT = Path(__file__).parents[2]

#: Only ours needs keys and a secret; these are used nowhere else.
KEYS = Keyring.new("bench")
SECRET = "whsec_dGhlIHNlY3JldCBvZiB0aGUgdGVzdHMgb25seQ=="

#: Seconds for the stub to answer.
PATIENCE = 30.0


class Stub:
    """The provider's process: see `stub.py`."""

    def __init__(self, url: str, pid: int = 0) -> None:
        self.url = url
        self.pid = pid

    def count(self, what: str) -> int:
        """How many `registrations` or `hooks` it has answered."""
        return int(self.counts()[what])

    def counts(self) -> dict[str, Any]:
        """All that it counts."""
        with urlopen(f"{self.url}/counts", timeout=PATIENCE) as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    def calls(self, word: str) -> dict[str, tuple[float, float]]:
        """When each call came and was answered, by the word and number in its body."""
        with urlopen(f"{self.url}/calls?{word}", timeout=PATIENCE) as answer:
            return {name: (came, left) for name, (came, left) in json.load(answer).items()}


@contextmanager
def stub(folder: Path, *arguments: str) -> Iterator[Stub]:
    """Start the provider; `arguments`: another module than `support.stub`, and its options."""
    command = [sys.executable, "-m", *(arguments or ("benchmarks.support.stub",))]
    with stack.process(command, environment(), folder, subprocess.PIPE) as child:
        yield Stub(stack.sandbox_url(child), child.pid)


@contextmanager
def replica(folder: Path, port: int) -> Iterator[None]:
    """Start a replica of the Valkey on this port."""
    with stack.valkey(folder) as valkey, redis.Redis(port=valkey.port) as server:
        server.replicaof("127.0.0.1", str(port))
        stack.until(lambda: server.info("replication")["master_link_status"] == "up", "a replica")
        yield


@contextmanager
def worker(
    contestant: Contestant, redis_url: str, provider: Stub, folder: Path, **settings: object
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a contestant's worker; its log is `worker.log`."""
    ours = contestant.kind == "ours"
    if contestant.environment.get("BENCH_EVENTS") == "0":
        (folder / "celeryconfig.py").write_text("worker_send_task_events = False\n")
    command = stack.worker_command() if ours else [contestant.python, *contestant.command]
    environment = environment_of(contestant, redis_url, provider.url, **settings)
    with (
        (folder / "worker.log").open("wb") as log,
        stack.process(command, environment, folder, log) as child,
    ):
        try:
            yield child
        finally:
            # Everything is measured: it need not stop cleanly.
            kill(child.pid)


@contextmanager
def client(
    contestant: Contestant, redis_url: str, provider: Stub, folder: Path
) -> Iterator["Client"]:
    """Start a contestant's client; its log is `client.log`."""
    command = [contestant.python, "-m", "benchmarks.support.driver", contestant.module]
    with spoken_to(command, environment_of(contestant, redis_url, provider.url), folder) as child:
        yield Client(child)


@contextmanager
def caller(
    contestant: Contestant, provider: Stub, folder: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a bare loop: see `contestants/floor.py`."""
    command = [contestant.python, "-c", "from benchmarks.contestants.floor import main; main()"]
    with spoken_to(command, environment_of(contestant, "", provider.url), folder) as child:
        yield child


@contextmanager
def spoken_to(
    command: list[str], environment: dict[str, str], folder: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process that answers lines with lines; its log is `client.log`."""
    with (folder / "client.log").open("wb") as log:
        child = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield child
        finally:
            child.kill()
            child.communicate()


def say(child: subprocess.Popen[bytes], line: dict[str, Any]) -> None:
    """Ask a client."""
    assert child.stdin is not None
    child.stdin.write(json.dumps(line).encode() + b"\n")
    child.stdin.flush()


def heard(child: subprocess.Popen[bytes]) -> dict[str, Any]:
    """A client's answer."""
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line:
        raise RuntimeError("a client ended")
    answer: dict[str, Any] = json.loads(line)
    return answer


class Client:
    """A contestant's client: see `driver.py`."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self._child = child
        self.next = 1
        """The number of the next job."""

    def enqueue(
        self, count: int, rate: float | None = None
    ) -> tuple[list[tuple[str, float]], float, float]:
        """Enqueue: for each its result's key and its start time; the seconds taken; the CPU time
        used."""
        asked = {"first": self.next, "count": count, "rate": rate}
        self.next += count
        say(self._child, asked)
        answer = heard(self._child)
        sent = [(key, at) for key, at in answer["sent"]]
        if len(sent) != count:
            raise RuntimeError(f"{len(sent)} of {count} jobs were taken")
        return sent, answer["seconds"], answer["cpu"]


def environment_of(
    contestant: Contestant, redis_url: str, provider_url: str, **settings: object
) -> dict[str, str]:
    """The environment of a contestant's processes."""
    slots = {"concurrency": SLOTS, **settings}
    # All contestants may call the provider as often as their slots allow.
    free = {"accounts__skypostal__default__max_in_flight": 1000}
    ours = stack.environment(redis_url, provider_url, KEYS, SECRET, **slots, **free)
    return {
        **environment(),
        **(ours if contestant.kind == "ours" else {}),
        "BENCH_REDIS": redis_url,
        "BENCH_PROVIDER": provider_url,
        **contestant.environment,
    }


@contextmanager
def frozen(*pids: int) -> Iterator[None]:
    """Stop processes and their children inside the block, so that work accumulates."""
    processes = [process for pid in pids for process in meter.tree(pid)]
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in reversed(processes):
            process.resume()


def kill(pid: int) -> None:
    """End a process and its children at once."""
    with suppress(psutil.NoSuchProcess):
        for process in meter.tree(pid):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)


def environment() -> dict[str, str]:
    """Of a benchmark's process: without the settings of the calling environment."""
    foreign = {name: "" for name in os.environ if name.startswith(PREFIX)}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**foreign, "PYTHONPATH": path}

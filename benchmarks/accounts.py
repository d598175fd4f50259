"""`python -m benchmarks.accounts`: what an installation with very many accounts costs.

One account a store, all in one file (`REGWORKER_CONFIG`), in front of a ledger with a million
finished jobs: until a worker is ready, until a producer can be used, what lists and metrics take,
and the longest that one command holds the ledger meanwhile. A machine that is busy with other
things makes all of it slow, and not costly: the CPU is measured too. The server does not say how
much CPU a command took: its longest time may be another process's, so its usual one is printed too.
"""

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.pages import COPY_ENDED, KEYS, Filling
from benchmarks.support import meter, stage
from regworker.ledger import SyncLedger
from regworker.ledger.admin import Limits, announce
from regworker.ledger.client import digest, scripts
from regworker.ledger.transitions import CONFIGURED, STATS, job_key
from regworker.settings import Settings
from worker.cli.local import stack

#: One store, in the format of `REGWORKER_CONFIG`.
STORE = """
[accounts.open2b.store{number:05}]
base_url = "https://store{number:05}.example.com"
secret_key = "key-of-store-{number:05}"
rate = 50
rate_period = 300
max_in_flight = 5
"""

#: Microseconds from which the server logs a command.
SLOW = 100

PRODUCER = """
import time
import regworker.producer
begun, used = time.perf_counter(), time.process_time()
regworker.producer.Producer()
print(time.perf_counter() - begun, time.process_time() - used)
"""


class Server:
    """The ledger's server, and how long commands occupy it."""

    def __init__(self, redis: Any) -> None:
        self._redis = redis
        self._names = {digest(name).encode(): name for name in scripts()}
        redis.config_set("slowlog-log-slower-than", SLOW)
        redis.config_set("slowlog-max-len", 1000)
        redis.slowlog_reset()

    def held(self) -> dict[str, list[float]]:
        """Milliseconds of the commands since the last call that took more than `SLOW`, by name."""
        found: dict[str, list[float]] = {}
        for one in self._redis.slowlog_get(1000):
            words = one["command"].split()
            name = words[0].decode().lower()
            if name == "evalsha":
                name = self._names.get(words[1], "a script of the benchmark")
            found.setdefault(name, []).append(one["duration"] / 1000)
        self._redis.slowlog_reset()
        return found


def fill(ledger: SyncLedger, settings: Settings, accounts: int, records: int) -> None:
    """Announce the accounts, and give each its share of finished jobs."""
    names = [f"store{number:05}" for number in range(accounts)]
    for at in range(0, accounts, 500):
        limits = [Limits("open2b", name, 6000, 30000, 5) for name in names[at : at + 500]]
        ledger(announce(limits, ["results"], settings.streams()))
    ledger(announce([Limits("skypostal", "default", 0, 0, 0)], ["results"], settings.streams()))
    job_id = Filling(ledger, settings).ended(0)
    redis: Any = ledger.redis
    copy, share = redis.register_script(COPY_ENDED), max(1, records // accounts)
    for number, name in enumerate(names):
        keys = [job_key(job_id), f"{{reg}}:ended:registered:open2b:{name}"]
        copy(keys=keys, args=[number * share, (number + 1) * share - 1])
        counts = {f"{state}:open2b:{name}": share for state in ("registered", "rejected")}
        redis.hset(STATS, mapping=counts)


@contextmanager
def exporter(folder: Path, environment: dict[str, str]) -> Iterator[tuple[str, int]]:
    """`regworker exporter`: its URL and its pid."""
    file = folder / "exporter.log"
    with file.open("wb") as log:
        command = [sys.executable, "-m", "worker.cli", "exporter", "--port", "0"]
        with stack.process(command, {**os.environ, **environment}, folder, log) as child:
            stack.until(lambda: b"metrics at " in file.read_bytes(), "the exporter")
            found = re.search(rb"metrics at (\S+)", file.read_bytes())
            assert found
            yield found[1].decode(), child.pid


class Bench:
    """The measurements, one round at a time."""

    def __init__(self, folder: Path, environment: dict[str, str], ledger: SyncLedger) -> None:
        self._folder, self._ledger = folder, ledger
        self._environment = {**os.environ, **environment}
        self._accounts = int(ledger.redis.scard(CONFIGURED))

    def worker(self) -> tuple[float, float]:
        """Seconds until a worker has announced all of its accounts."""
        redis: Any = self._ledger.redis
        redis.delete(CONFIGURED)
        with (self._folder / "worker.log").open("wb") as log:
            begun = time.perf_counter()
            command = stack.worker_command()
            with stack.process(command, self._environment, self._folder, log) as child:

                def ready() -> bool:
                    ended = child.poll() is not None
                    return ended or redis.scard(CONFIGURED) >= self._accounts - 1

                stack.until(ready, "a worker")
                assert child.poll() is None, (self._folder / "worker.log").read_text()
                taken = time.perf_counter() - begun, meter.cpu(child.pid)
                # Wait for the first heartbeats.
                time.sleep(6)
                with suppress(ProcessLookupError):
                    stage.kill(child.pid)
        return taken

    def producer(self) -> tuple[float, float]:
        """Seconds until a producer can be used, including the import."""
        found = self._run(sys.executable, "-c", PRODUCER)[2].split()
        return float(found[0]), float(found[1])

    def command(self, *words: str) -> tuple[float, float]:
        """A command of `regworker`."""
        return self._run(sys.executable, "-m", "worker.cli", *words)[:2]

    def _run(self, *command: str) -> tuple[float, float, str]:
        begun, used = time.perf_counter(), _children()
        done = subprocess.run(
            command, env=self._environment, cwd=self._folder, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return time.perf_counter() - begun, _children() - used, done.stdout


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def scraper(url: str, pid: int, series: list[int]) -> Callable[[], tuple[float, float]]:
    """One scrape of the exporter; `series` gets their number."""

    def scrape() -> tuple[float, float]:
        begun, used = time.perf_counter(), meter.cpu(pid)
        with urllib.request.urlopen(url) as answer:
            text = answer.read()
        series[:] = [sum(not line.startswith(b"#") for line in text.splitlines())]
        return time.perf_counter() - begun, meter.cpu(pid) - used

    return scrape


def main() -> None:
    """Fill, measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--accounts", type=int, default=5000, help="accounts (5000)")
    parser.add_argument("--records", type=int, default=1_000_000, help="finished jobs (1000000)")
    parser.add_argument("--rounds", type=int, default=5, help="times that each is measured (5)")
    options = parser.parse_args()
    with ExitStack() as running:
        running.enter_context(stack.ending_by_signal())
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        valkey = running.enter_context(stack.valkey(folder / "valkey", fsync="no"))
        ledger = SyncLedger(valkey.connection_url)
        running.callback(ledger.close)
        values = {"redis_url": valkey.connection_url, "sealing_keys": KEYS}
        fill(ledger, Settings.load(**values), options.accounts, options.records)
        config = folder / "regworker.toml"
        config.write_text("".join(STORE.format(number=one) for one in range(options.accounts)))
        environment = {f"REGWORKER_{name.upper()}": value for name, value in values.items()}
        environment |= {"REGWORKER_CONFIG": str(config), "PYTHONPATH": str(stage.ROOT)}
        bench, server = Bench(folder, environment, ledger), Server(ledger.redis)
        url, pid = running.enter_context(exporter(folder, environment))
        series: list[int] = []
        measured: dict[str, Callable[[], tuple[float, float]]] = {
            "worker ready": bench.worker,
            "Producer()": bench.producer,
            "providers list": lambda: bench.command("providers", "list"),
            "providers list --json": lambda: bench.command("providers", "list", "--json"),
            "jobs --state registered": lambda: bench.command("jobs", "--state", "registered"),
            "a scrape": scraper(url, pid, series),
        }
        for name, measure in measured.items():
            server.held()
            taken = [measure() for _ in range(options.rounds)]
            seconds, cpu = median(one for one, _ in taken), median(one for _, one in taken)
            print(f"{name}: {seconds:.2f} s, {cpu:.2f} s of CPU")
            for script, each in sorted(server.held().items()):
                usual, most = median(each), max(each)
                print(f"    at the ledger, {script}: {usual:.1f} ms, at most {most:.1f} ms")
        print(f"series in a scrape: {series[0]}")


if __name__ == "__main__":
    main()

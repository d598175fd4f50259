"""`python -m benchmarks.accounts`: what an installation with very many accounts costs.

One account a store, all in one file (`REGWORKER_CONFIG`), in front of a ledger with a million
finished jobs, and with unfinished ones that have long timelines: until a worker is ready, until a
producer can be used, what commands, pages and metrics take, and which script or command held the
ledger longest meanwhile. On a machine that is busy with other things everything is slow, and not
costly: the CPU is measured too. The server does not say how much CPU a command took, and another
process may have run meanwhile; so it prints the longest time of the calmest round, and of all.
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
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from benchmarks.pages import KEYS, PASSWORD, Filling, served
from benchmarks.support import meter, stage
from regworker.ledger import SyncLedger
from regworker.ledger.admin import Limits, announce
from regworker.ledger.calls import digest, scripts
from regworker.ledger.transitions import CONFIGURED, STATS
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

#: Microseconds from which the server logs a command, and how many it keeps.
SLOW, LOGGED = 300, 100_000

#: Unfinished jobs of each account, and the lines of their timelines: an outage made them long.
QUEUED, LINES = 20, 40

#: Jobs in review.
REVIEWS = 1000

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
        redis.config_set("slowlog-max-len", LOGGED)
        redis.slowlog_reset()

    def slowest(self) -> tuple[float, str]:
        """The longest command since the last call: milliseconds, and its name."""
        found = (0.0, "none")
        for one in self._redis.slowlog_get(LOGGED):
            words = one["command"].split()
            name = words[0].decode().lower()
            if name == "evalsha":
                name = self._names.get(words[1], "a script of the benchmark")
            # A command of a script is logged, too.
            took = one["duration"] / 1000, name
            found = max(found, took)
        self._redis.slowlog_reset()
        return found


def fill(ledger: SyncLedger, settings: Settings, accounts: int, records: int) -> str:
    """Announce the accounts, and give each its share of jobs; return the id of a queued one."""
    names = [f"store{number:05}" for number in range(accounts)]
    for at in range(0, accounts, 500):
        limits = [Limits("open2b", name, 6000, 30000, 5) for name in names[at : at + 500]]
        ledger(announce(limits, ["results"], settings.streams()))
    ledger(announce([Limits("skypostal", "default", 0, 0, 0)], ["results"], settings.streams()))
    redis: Any = ledger.redis
    filling = Filling(ledger, settings)
    ended, queued, share = filling.ended(0), filling.queued(0), max(1, records // accounts)
    filling.reviews(REVIEWS)
    now = ledger.now()
    line = "unknown: no answer within the time limit of the call"
    timeline = "".join(f"{now + number} {line}\n" for number in range(LINES))
    for number, name in enumerate(names):
        mine = {"provider": "open2b", "account": name}
        template = filling.like(ended, f"ended-{number}", mine)
        filling.copy_ended(template, f"registered:open2b:{name}", share)
        filling.copy_open(
            filling.like(queued, f"queued-{number}", mine | {"log": timeline}), QUEUED
        )
        counts = {f"{state}:open2b:{name}": share for state in ("registered", "rejected")}
        redis.hset(STATS, mapping=counts)
    return queued


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

    def page(self, client: httpx.Client, pid: int, path: str) -> tuple[float, float]:
        """A page of `regworker serve`."""
        begun, used = time.perf_counter(), meter.cpu(pid)
        answer = client.get(path)
        assert answer.status_code == 200, answer.text
        return time.perf_counter() - begun, meter.cpu(pid) - used

    def _run(self, *command: str) -> tuple[float, float, str]:
        begun, used = time.perf_counter(), _children()
        done = subprocess.run(
            command, env=self._environment, cwd=self._folder, capture_output=True, text=True
        )
        # `doctor` fails: the server does not sync its files.
        assert done.returncode == 0 or "doctor" in command, done.stderr
        return time.perf_counter() - begun, _children() - used, done.stdout


def favour(redis: Any) -> None:
    """Let the server run before all other programs, if this user may: its times are more exact."""
    with suppress(PermissionError):
        pid = int(redis.info("server")["process_id"])
        os.sched_setscheduler(pid, os.SCHED_FIFO, os.sched_param(1))


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


#: Commands of `regworker`.
COMMANDS = (
    "providers list",
    "providers list --json",
    "jobs --state registered",
    "jobs --state queued",
    "jobs --provider open2b",
    "jobs --provider open2b --account {store}",
    "jobs --provider open2b --account {store} --state queued",
    "jobs --key nobody",
    "review list",
    "deliveries list",
    "deliveries endpoints",
    "top --once",
    "stats",
    "doctor --offline",
)

#: Pages of `regworker serve`.
PAGES = (
    "/",
    "/jobs",
    "/jobs?sort=oldest",
    "/jobs?state=queued",
    "/jobs?account=open2b%2F{store}",
    "/jobs?state=registered&account=open2b%2F{store}&age=1h",
    "/jobs?state=unfinished&account=open2b%2F{store}",
    "/jobs?state=queued&reason=nonsense",
    "/jobs?state=registered&reason=nonsense",
    "/jobs?state=queued&metadata=shop%3D7",
    "/jobs/{queued}",
    "/reviews",
    "/accounts",
    "/deliveries",
    "/workers",
)


def main() -> None:
    """Fill, measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--accounts", type=int, default=5000, help="accounts (5000)")
    parser.add_argument("--records", type=int, default=1_000_000, help="finished jobs (1000000)")
    parser.add_argument("--rounds", type=int, default=5, help="times that each is measured (5)")
    parser.add_argument("--only", default="", help="those whose name contains this")
    options = parser.parse_args()
    with ExitStack() as running:
        running.enter_context(stack.ending_by_signal())
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        valkey = running.enter_context(stack.valkey(folder / "valkey", fsync="no"))
        ledger = SyncLedger(valkey.connection_url)
        running.callback(ledger.close)
        values = {"redis_url": valkey.connection_url, "sealing_keys": KEYS}
        names = {
            "queued": fill(ledger, Settings.load(**values), options.accounts, options.records),
            "store": f"store{options.accounts // 2:05}",
        }
        config = folder / "regworker.toml"
        config.write_text("".join(STORE.format(number=one) for one in range(options.accounts)))
        environment = {f"REGWORKER_{name.upper()}": value for name, value in values.items()}
        environment |= {"REGWORKER_CONFIG": str(config), "PYTHONPATH": str(stage.ROOT)}
        environment["REGWORKER_SERVE_PASSWORD"] = PASSWORD
        bench, server = Bench(folder, environment, ledger), Server(ledger.redis)
        favour(ledger.redis)
        url, pid = running.enter_context(exporter(folder, environment))
        client, serving = running.enter_context(served(folder, environment))
        series: list[int] = []
        measured: dict[str, Callable[[], tuple[float, float]]] = {
            "worker ready": bench.worker,
            "Producer()": bench.producer,
            "a scrape": scraper(url, pid, series),
        }
        for command in (one.format(**names) for one in COMMANDS):
            measured[command] = partial(bench.command, *command.split())
        for path in (one.format(**names) for one in PAGES):
            measured[f"page {path}"] = partial(bench.page, client, serving, path)
        print("| command or page | seconds | CPU | slowest at the ledger | ms | at most |")
        print("|---|---:|---:|---|---:|---:|")
        for name, measure in measured.items():
            if options.only not in name:
                continue
            taken, held = [], []
            for _ in range(options.rounds):
                server.slowest()
                taken.append(measure())
                held.append(server.slowest())
            seconds, cpu = median(one for one, _ in taken), median(one for _, one in taken)
            (calm, script), (most, _) = min(held), max(held)
            print(
                f"| {name} | {seconds:.2f} | {cpu:.2f} | {script} | {calm:.1f} | {most:.1f} |",
                flush=True,
            )
        if series:
            print(f"series in a scrape: {series[0]}")


if __name__ == "__main__":
    main()

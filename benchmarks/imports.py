"""`python -m benchmarks.imports`: an import of 100,000 jobs, with live jobs beside it.

`regworker submit --lane bulk` of a file, two worker processes, and five live jobs a second
meanwhile: how long until the provider receives the live jobs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import quantiles

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.support import stage
from benchmarks.support.contest import Bench
from benchmarks.support.jobs import registration
from benchmarks.support.single import OURS, ours
from benchmarks.support.watch import STREAM
from regworker.producer import Producer
from regworker.settings import Settings

#: Live jobs per second.
RATE = 5.0


def job(word: str, number: int) -> dict[str, object]:
    """A job whose call is recognized by its word and number."""
    email = f"{word}{number}@example.com"
    return {
        "provider": "skypostal",
        "idempotency_key": f"{word}-{number}",
        "registration": {**registration(number), "customer_email": email},
    }


def submit(bench: Bench, provider: stage.Stub, file: Path) -> subprocess.Popen[bytes]:
    """Start `regworker submit` of the file."""
    environment = {**os.environ, **stage.environment_of(OURS, _url(bench), provider.url)}
    command = [sys.executable, "-m", "worker.cli", "submit", "--lane", "bulk", str(file)]
    with file.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def alongside(producer: Producer, bench: Bench, count: int, bar: Progress) -> dict[str, float]:
    """Enqueue live jobs, one after another, until the import is over; return when each was due."""
    task = bar.add_task("import", total=count)
    sent: dict[str, float] = {}
    begun = time.time()
    # The last of the live jobs may still be under way.
    while (done := bench.server.xlen(STREAM) - len(sent)) < count - 1:
        bar.update(task, completed=done)
        number = len(sent)
        due = begun + number / RATE
        time.sleep(max(0.0, due - time.time()))
        producer.enqueue(job("live", number))
        sent[f"live{number}"] = due
    return sent


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=100_000, help="jobs in the file (100000)")
    options = parser.parse_args()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with (
        ours(2) as (bench, provider),
        tempfile.TemporaryDirectory() as name,
        Progress(*columns, console=Console(stderr=True), transient=True) as bar,
        Producer(Settings.load(redis_url=_url(bench), sealing_keys=stage.KEYS)) as producer,
    ):
        file = Path(name) / "customers.ndjson"
        with file.open("w") as out:
            for number in range(options.jobs):
                out.write(json.dumps(job("bulk", number)) + "\n")
        producer.enqueue(job("first", 0))
        started = time.monotonic()
        importing = submit(bench, provider, file)
        try:
            sent = alongside(producer, bench, options.jobs + 1, bar)
            seconds = time.monotonic() - started
            if importing.wait() != 0:
                sys.exit(file.with_suffix(".log").read_text())
        finally:
            importing.kill()
            importing.wait()
        calls = provider.calls("live")
        called = provider.count("registrations")
    # The last few may still be under way.
    delays = [(calls[name][0] - due) * 1000 for name, due in sent.items() if name in calls]
    cuts = quantiles(delays, n=100, method="inclusive")
    print(
        f"{options.jobs} jobs by `regworker submit --lane bulk`: {seconds:.0f} s on two processes, "
        f"{options.jobs / seconds:.0f} jobs/s; {called} calls in all"
    )
    print(
        f"{len(delays)} live jobs beside them: from enqueue to the provider "
        f"p50 {cuts[49]:.0f} ms, p99 {cuts[98]:.0f} ms"
    )


def _url(bench: Bench) -> str:
    kwargs = bench.server.connection_pool.connection_kwargs
    return f"redis://{kwargs['host']}:{kwargs['port']}/0"


if __name__ == "__main__":
    main()

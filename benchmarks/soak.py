"""`python -m benchmarks.soak`: whether a worker stays as it is over very many jobs.

One worker process gets a million jobs, while a small share of the provider's calls and of the
webhooks fail (`benchmarks.support.faulty`), a consumer group reads and acknowledges the results,
and finished records expire after half a minute. Every few seconds it samples the worker and the
ledger.
The exit code is 1 if the last quarter's median is above the second's, by more than the limit of
each value; if the worker has more tasks, objects or open files at rest than after the first
jobs; if keys are left in the ledger at the end; or if a job is lost or doubled.
"""

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.support import stage
from benchmarks.support.curves import Curve, svg
from benchmarks.support.jobs import HOOK_EVERY, job
from benchmarks.support.single import OURS
from regworker.domain.event import Event, EventType
from regworker.ledger import SyncLedger
from regworker.ledger.transitions import job_key
from regworker.producer import Producer, Receipt
from regworker.results import ResultConsumer
from regworker.settings import Settings
from worker.cli.local import stack

#: Jobs that are accepted together, and jobs under way from which the feeder waits.
BATCH, BACKLOG = 200, 2000

#: The first jobs, which open connections and create the ledger's lasting keys: no samples.
WARM_UP = 500

#: Seconds without a result after which a job counts as lost: a fault takes some seconds, and
#: several in a row take some more.
PATIENCE = 120.0

#: The worker's settings, in seconds: a lost answer is settled soon.
PACE = {"call_budget": 2, "settle_delay": 5, "retry_cap": 5}

#: The most by which the median of the last quarter may be above that of the second: a share, and a
#: number.
LIMITS = {"rss": (0.02, 0), "threads": (0, 1), "lasting": (0, BATCH)}

#: The same for what a worker has at rest, after the first jobs and at the end. Under load these
#: depend on the calls that are under way in the moment. Rare faults fill caches with some hundred
#: objects; one object a thousand jobs would be a leak.
AT_REST = {"tasks": (0, 0), "objects": (0, 1000), "files": (0, 2)}


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at the worker and the ledger."""

    seconds: float
    done: int
    """Jobs with a result."""
    rss: int
    """Bytes of the worker's memory: resident, and of those what it shares with nobody."""
    uss: int
    tasks: int
    objects: int
    """What Python's garbage collector follows."""
    threads: int
    files: int
    """Open descriptors."""
    keys: int
    lasting: int
    """Keys that do not expire, without the records of the jobs that are under way."""
    used: int
    """Bytes of the ledger's memory."""


class Books:
    """What was sent and what came back."""

    def __init__(self, jobs: int, end: float) -> None:
        """`end`: the time (`time.monotonic`) after which no more jobs are sent."""
        self.last = jobs
        """The number of the last job to be sent."""
        self.sent = 0
        self.done = 0
        """Jobs with a result."""
        self.events = bytearray(jobs + 1)
        """Results of each job's number."""
        self.odd = 0
        """Results that report no customer."""
        self.over = threading.Event()
        self._end = end

    def feed(self, producer: Producer) -> None:
        """Enqueue the jobs up to the last one, never more at a time than the backlog."""
        while self.sent < self.last and not self.over.is_set():
            if time.monotonic() > self._end:
                self.last = self.sent
            elif self.sent - self.done > BACKLOG:
                self.over.wait(0.02)
            else:
                numbers = range(self.sent + 1, min(self.sent + BATCH, self.last) + 1)
                for one in producer.enqueue_many([job(number) for number in numbers]):
                    assert isinstance(one, Receipt), one
                self.sent = numbers[-1]

    def read(self, consumer: ResultConsumer) -> None:
        """Read and acknowledge results."""
        while not self.over.is_set():
            results = consumer.receive(0.5)
            for one in results:
                event = one.event
                assert isinstance(event, Event)
                number = int(str(event.data.idempotency_key).removeprefix("bench-"))
                self.done += not self.events[number]
                self.events[number] += 1
                self.odd += event.type is not EventType.REGISTERED
            consumer.ack(*results)


class Soak:
    """A running installation, and the samples of it."""

    def __init__(
        self, books: Books, worker: int, server: Any, provider: stage.Stub, counts: Path
    ) -> None:
        """`worker`: its pid; `counts`: the file of its probe."""
        self._books = books
        self._worker = psutil.Process(worker)
        self._server = server
        self._provider = provider
        self._counts = counts

    def watch(self, feeding: Future[None], every: float) -> Iterator[Sample]:
        """Yield a sample every so many seconds, until all jobs up to the last have a result.

        Also ends if no result comes for `PATIENCE` seconds: then jobs are lost.
        """
        began = moved = time.monotonic()
        done, over = self._books.done, False
        while not over:
            time.sleep(every)
            if feeding.done():
                feeding.result()
            if self._books.done > done:
                moved, done = time.monotonic(), self._books.done
            # Before the last sample, which is to show all that came.
            over = self._books.done >= self._books.last or time.monotonic() > moved + PATIENCE
            yield self._sample(time.monotonic() - began)

    def rest(self, most: int | None = None) -> int:
        """Wait for the last webhooks, and until all records have expired; return the keys left.

        Keys that expire, such as heartbeats, do not count. `most`: waits until there are no more
        keys than this, since some exist only for a moment.
        """
        hooks, records = self._books.sent // HOOK_EVERY, job_key("*")
        with suppress(stack.StackError):
            stack.until(lambda: self._provider.count("hooks") >= hooks, "the webhooks", PATIENCE)
            stack.until(
                lambda: not any(self._server.scan_iter(records, count=1000)), "the end", PATIENCE
            )
        if most is not None:
            with suppress(stack.StackError):
                stack.until(lambda: keys_of(self._server)[1] <= most, "the keys", PATIENCE)
        return keys_of(self._server)[1]

    def sample_at_rest(self) -> Sample:
        """A sample for which the worker has counted anew, twice: once might have been before."""
        resting = self._counts.with_name("resting")
        resting.touch()
        for _ in range(2):
            self._await_counts(self._counts.stat().st_mtime_ns)
        resting.unlink()
        return self._sample(0)

    def _await_counts(self, seen: int) -> None:
        stack.until(lambda: self._counts.stat().st_mtime_ns > seen, "the worker's counts")

    def _sample(self, seconds: float) -> Sample:
        memory = self._worker.memory_full_info()
        keys, lasting = keys_of(self._server)
        return Sample(
            seconds=round(seconds, 1),
            done=self._books.done,
            rss=memory.rss,
            uss=memory.uss,
            threads=self._worker.num_threads(),
            files=self._worker.num_fds(),
            keys=keys,
            lasting=lasting - (self._books.sent - self._books.done),
            used=self._server.info("memory")["used_memory"],
            **json.loads(self._counts.read_text()),
        )


def keys_of(server: Any) -> tuple[int, int]:
    """All keys, and those of them that do not expire."""
    found = server.info("keyspace").get("db0", {"keys": 0, "expires": 0})
    return found["keys"], found["keys"] - found["expires"]


@contextmanager
def installation(
    folder: Path, books: Books, options: argparse.Namespace
) -> Iterator[tuple[Soak, Settings, stage.Stub]]:
    """A Valkey, the provider, and one worker."""
    probe = folder / "counts.json"
    environment = {
        "PYTHONPATH": f"{stage.ROOT / 'benchmarks' / 'probe'}{os.pathsep}{stage.ROOT}",
        "SOAK_COUNTS": str(probe),
        "SOAK_EVERY": str(options.every),
        "SOAK_RETENTION": str(options.retention),
    }
    results = {
        "endpoints__results__kind": "stream",
        "endpoints__results__retention": options.retention,
    }
    with (
        stack.valkey(folder / "valkey") as valkey,
        stage.stub(folder, "benchmarks.support.faulty", "--jobs", str(options.jobs)) as provider,
        stage.worker(
            replace(OURS, environment=environment),
            valkey.connection_url,
            provider,
            folder,
            log_level="warning",
            **PACE,
            **results,
        ) as child,
        closing(SyncLedger(valkey.connection_url)) as ledger,
    ):
        stack.wait_for_worker(ledger, child)
        soak = Soak(books, child.pid, ledger.redis, provider, probe)
        yield (
            soak,
            Settings.load(redis_url=valkey.connection_url, sealing_keys=stage.KEYS),
            provider,
        )


@dataclass(frozen=True, slots=True)
class Found:
    """What a run showed."""

    jobs: int
    samples: Sequence[Sample]
    resting: Sequence[Sample]
    """After the first jobs, and at the end."""
    lost: int
    """Jobs without a result."""
    doubled: int
    """Jobs with two customers at the provider, or with two results."""
    odd: int
    """Jobs that ended without a customer."""
    left: int
    """Keys that the jobs left in the ledger for good."""
    calls: Mapping[str, int]
    """The provider's answers to registrations, by their fault."""

    def quarter(self, which: int) -> Sample:
        """The medians of the samples in a quarter of the jobs, from 1 to 4."""
        first, last = (which - 1) * self.jobs, which * self.jobs
        inside = [astuple(one) for one in self.samples if first < 4 * one.done <= last]
        if not inside:
            raise RuntimeError(f"no sample in quarter {which}: more --jobs, or a shorter --every")
        return Sample(*map(median, zip(*inside, strict=True)))

    def rows(self) -> Iterator[tuple[str, float, float, bool]]:
        """Each value with a limit: its name, before and after, and whether it grew.

        Before and after are medians of the second and the last quarter, or what was there at rest.
        """
        first, end = self.resting
        for limits, begins, ends, when in (
            (LIMITS, self.quarter(2), self.quarter(4), ""),
            (AT_REST, first, end, " at rest"),
        ):
            for name, (share, number) in limits.items():
                before, after = getattr(begins, name), getattr(ends, name)
                yield name + when, before, after, after > before * (1 + share) + number

    def problems(self) -> list[str]:
        """What must not be."""
        counts = {name: getattr(self, name) for name in ("lost", "doubled", "odd", "left")}
        return [f"{name} grew" for name, _, _, grew in self.rows() if grew] + [
            f"{name}: {count}" for name, count in counts.items() if count
        ]


def run(options: argparse.Namespace, folder: Path, console: Console) -> Found:
    """Run all jobs."""
    books = Books(options.jobs, time.monotonic() + 60 * options.minutes)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    samples: list[Sample] = []
    left: list[int] = []
    resting: list[Sample] = []
    with (
        installation(folder, books, options) as (soak, settings, provider),
        Producer(settings) as producer,
        ResultConsumer("soak", settings=settings) as consumer,
        ThreadPoolExecutor() as threads,
        Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar,
    ):
        task = bar.add_task("", total=options.jobs)
        try:
            reading = threads.submit(books.read, consumer)
            for books.last in (WARM_UP, options.jobs):
                feeding = threads.submit(books.feed, producer)
                samples.clear()
                for one in soak.watch(feeding, options.every):
                    if reading.done():
                        reading.result()
                    samples.append(one)
                    said = f"{one.done} of {options.jobs} jobs, {one.rss / 1e6:.0f} MB"
                    bar.update(task, completed=one.done, description=said)
                left.append(soak.rest(*left))
                resting.append(soak.sample_at_rest())
        finally:
            books.over.set()
        counts = provider.counts()
    return Found(
        books.last,
        samples,
        resting,
        lost=books.last - min(books.done, counts["customers"]),
        doubled=counts["doubled"] + sum(count > 1 for count in books.events),
        odd=books.odd,
        left=max(0, left[1] - left[0]),
        calls=counts["calls"],
    )


def chart(found: Found) -> str:
    """The curves of a run, as an SVG."""

    def curve(title: str, name: str, unit: float = 1) -> Curve:
        return Curve(title, [(one.done, getattr(one, name) / unit) for one in found.samples])

    curves = [
        curve("memory of the worker (RSS, MB)", "rss", 1e6),
        curve("Python's objects (thousands)", "objects", 1000),
        curve("asyncio tasks", "tasks"),
        curve("open files and sockets", "files"),
        curve("keys in the ledger", "keys"),
        curve("memory of the ledger (MB)", "used", 1e6),
    ]
    return svg(f"{found.jobs:,} jobs through one worker, with faults", curves, found.jobs)


def document(found: Found) -> dict[str, Any]:
    """All of it as JSON."""
    return {
        "jobs": found.jobs,
        "seconds": found.samples[-1].seconds,
        "lost": found.lost,
        "doubled": found.doubled,
        "odd": found.odd,
        "left": found.left,
        "calls": found.calls,
        "values": {name: {"before": a, "after": b} for name, a, b, _ in found.rows()},
        "problems": found.problems(),
        "samples": [asdict(one) for one in found.samples],
    }


def main() -> int:
    """Run and print; 1 if anything grew, or a job was lost or doubled."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1_000_000, help="jobs (1000000)")
    parser.add_argument(
        "--minutes", type=float, default=600, help="no new jobs after so many minutes (600)"
    )
    parser.add_argument("--every", type=float, default=5, help="seconds between samples (5)")
    parser.add_argument(
        "--retention", type=float, default=30, help="seconds for which records are kept (30)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, with all samples")
    parser.add_argument("--write", action="store_true", help="write docs/soak.svg")
    options = parser.parse_args()
    if options.jobs < 4 * WARM_UP:
        parser.error(f"--jobs is a number from {4 * WARM_UP}")
    with (
        stack.ending_by_signal(),
        tempfile.TemporaryDirectory(prefix="bench-") as name,
    ):
        found = run(options, Path(name), Console(stderr=True))
    if options.write:
        (stage.ROOT / "docs" / "soak.svg").write_text(chart(found))
    problems = found.problems()
    if options.json:
        print(json.dumps(document(found)))
        return bool(problems)
    faults = ", ".join(f"{kind} {count}" for kind, count in sorted(found.calls.items()))
    print(f"{found.jobs} jobs in {found.samples[-1].seconds:.0f} s; calls by fault: {faults}")
    print("| | before | after | change |\n|---|---:|---:|---:|")
    for what, before, after, grew in found.rows():
        change = f"{(after - before) / (before or 1):+.1%}{' !' * grew}"
        print(f"| {what} | {before:.0f} | {after:.0f} | {change} |")
    print("; ".join(problems) or "nothing grew, nothing was lost or doubled, nothing was left")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())

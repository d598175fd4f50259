"""One contestant's round: a new Valkey, a worker, its client; fill the queue, release, measure."""

import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import redis

from benchmarks.contestants import SLOTS, Contestant
from benchmarks.support import meter, stage
from benchmarks.support.allocator import jemalloc
from benchmarks.support.watch import LOOK, Alive, Keys, Stream, Watch
from regworker.ledger import SyncLedger
from regworker.ledger.snapshot import snapshot
from worker.cli.local import stack

#: Unmeasured jobs at the start: they open connections and import modules.
WARM_UP = 3 * SLOTS

#: Jobs per second when idle: everything comes to rest in between.
IDLE_RATE = 10.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to measure."""

    jobs: int
    latency: bool = False
    singles: int = 60
    """Jobs one after another, for the latency when idle."""
    load: float = 0.7
    """The share of its maximum rate, for the latency under load."""
    seconds: float = 5.0
    """Jobs under that load."""


@dataclass(frozen=True, slots=True)
class Round:
    """The results; `idle` and `busy` in milliseconds, from enqueue to the stored result."""

    name: str
    kind: str
    jobs: int
    seconds: float
    cpu: float
    enqueue_seconds: float = 0.0
    megabytes: float = 0.0
    again: int = 0
    """Calls beyond one per job: a queue that retries without a lookup makes some."""
    idle: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Jobs per second."""
        return self.jobs / self.seconds

    @property
    def cpu_ms(self) -> float:
        """Milliseconds of CPU per job."""
        return self.cpu / self.jobs * 1000


def run(contestant: Contestant, provider: stage.Stub, folder: Path, plan: Plan) -> Round:
    """Measure a contestant once."""
    folder.mkdir(parents=True)
    if contestant.kind == "floor":
        return _floor(contestant, provider, folder, plan)
    with set_up(contestant, provider, folder) as bench:
        bench.warm_up()
        called = provider.count("registrations")
        found = bench.burst(max(SLOTS, round(plan.jobs * contestant.share)))
        called = provider.count("registrations") - called
        if called < found.jobs or (contestant.kind == "ours" and called > found.jobs):
            raise RuntimeError(f"{contestant.title}: {called} calls for {found.jobs} jobs")
        found = replace(found, again=called - found.jobs)
        if plan.latency:
            found.idle.extend(bench.latencies(plan.singles, IDLE_RATE))
            rate = found.rate * plan.load
            found.busy.extend(bench.latencies(max(1, round(rate * plan.seconds)), rate))
        return found


@contextmanager
def set_up(
    contestant: Contestant,
    provider: stage.Stub,
    folder: Path,
    workers: int = 1,
    replicas: int = 0,
    **settings: object,
) -> Iterator["Bench"]:
    """Start a Valkey with so many replicas, workers and their client; ours with additional
    settings."""
    with ExitStack() as running:
        with jemalloc():  # for all contestants, as in production
            valkey = running.enter_context(stack.valkey(folder / "valkey"))
            for number in range(replicas):
                running.enter_context(stage.replica(folder / f"replica-{number}", valkey.port))
        url = valkey.connection_url
        started = []
        for number in range(workers):
            own = folder / f"worker-{number}"
            own.mkdir()
            started.append(
                running.enter_context(stage.worker(contestant, url, provider, own, **settings))
            )
        server = running.enter_context(redis.Redis.from_url(url))
        watch: Watch
        if contestant.kind == "ours":
            ledger = SyncLedger(url)
            running.callback(ledger.close)
            stack.wait_for_worker(ledger, started[0])
            # Each sends its first heartbeat when it takes jobs.
            looked = snapshot()
            stack.until(
                lambda: len(ledger(looked).workers) == workers, f"{workers} workers that work"
            )
            watch = Stream(server, provider)
        else:
            watch = Keys(server, contestant.results)
        client = running.enter_context(stage.client(contestant, url, provider, folder))
        yield Bench(contestant, started, client, watch, server)


class Bench:
    """Running workers and their client."""

    def __init__(
        self,
        contestant: Contestant,
        workers: Sequence[subprocess.Popen[bytes]],
        client: stage.Client,
        watch: Watch,
        server: redis.Redis,
    ) -> None:
        self.contestant = contestant
        self.workers = workers
        self.worker = workers[0]
        self.client = client
        self.watch = watch
        self.server = server

    def warm_up(self) -> None:
        """Run some jobs, unmeasured."""
        sent, _, _ = self.client.enqueue(WARM_UP if self.contestant.share == 1 else SLOTS)
        self._wait(sent)

    def burst(self, count: int) -> Round:
        """Fill the queue while the workers are stopped, then let them work it off.

        `megabytes` is the memory of the first worker.
        """
        with stage.frozen(*self.pids):
            sent, enqueue_seconds, _ = self.client.enqueue(count)
            before = sum(map(meter.cpu, self.pids))
        with meter.PeakMemory(self.worker.pid) as peak:
            started = time.monotonic()
            self._wait(sent)
            seconds = time.monotonic() - started
            cpu = sum(map(meter.cpu, self.pids)) - before
        name, kind = self.contestant.title, self.contestant.kind
        return Round(name, kind, count, seconds, cpu, enqueue_seconds, peak.megabytes)

    def latencies(self, count: int, rate: float) -> list[float]:
        """Enqueue at a rate; return milliseconds until each job's result."""
        return [(there - due) * 1000 for due, there in self.arrivals(count, rate)]

    def arrivals(self, count: int, rate: float) -> list[tuple[float, float]]:
        """Enqueue at a rate; return for each job when it was due to be sent, and when its result
        came."""
        seen: dict[str, float] = {}
        over = threading.Event()
        watcher = threading.Thread(target=self.watch.arrivals, args=(over, seen))
        watcher.start()
        try:
            while not seen:
                # The watcher misses what comes before it listens.
                sent, _, _ = self.client.enqueue(1)
                self._wait(sent)
            sent, _, _ = self.client.enqueue(count, rate)
            self._wait(sent)
            alive = self.alive()
            while not all(key in seen for key, _ in sent):
                alive()
                time.sleep(LOOK)
        finally:
            over.set()
            watcher.join()
        return [(at, seen[key]) for key, at in sent]

    @property
    def pids(self) -> list[int]:
        """The workers'."""
        return [one.pid for one in self.workers]

    def _wait(self, sent: list[tuple[str, float]]) -> None:
        self.watch.wait([key for key, _ in sent], self.alive())

    def alive(self) -> Alive:
        """Checks the contestant during a wait."""
        return Alive(self.worker, self.contestant.title)


def _floor(contestant: Contestant, provider: stage.Stub, folder: Path, plan: Plan) -> Round:
    with stage.caller(contestant, provider, folder) as child:
        _call(child, WARM_UP)
        before = meter.cpu(child.pid)
        with meter.PeakMemory(child.pid) as peak:
            started = time.monotonic()
            _call(child, plan.jobs)
            seconds = time.monotonic() - started
            cpu = meter.cpu(child.pid) - before
    name, kind = contestant.title, contestant.kind
    return Round(name, kind, plan.jobs, seconds, cpu, megabytes=peak.megabytes)


def _call(child: subprocess.Popen[bytes], count: int) -> None:
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(f"{count}\n".encode())
    child.stdin.flush()
    if child.stdout.readline() != b"done\n":
        raise RuntimeError("the bare loop ended")

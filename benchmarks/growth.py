"""`python -m benchmarks.growth`: whether a job costs the same in a full ledger.

Two installations, one of them full, are measured in turns. The full one has real records, copied
within the server: finished jobs with their events on the stream, queued jobs, and jobs with a retry
and its alarm, due tomorrow. It also prints the size of each kind of record.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import redis
from rich.console import Console
from rich.progress import track

from benchmarks.support import stage
from benchmarks.support.allocator import jemalloc
from benchmarks.support.contest import Bench, set_up
from benchmarks.support.single import OURS
from benchmarks.support.watch import STREAM, Stream
from regworker.ledger import SyncLedger
from regworker.ledger.records import Claim
from regworker.ledger.transitions import (
    ALARMS,
    ClaimRules,
    Decision,
    SettleRules,
    claim,
    job_key,
    settle,
)
from worker.cli.local import stack

#: Copies made by one script: some milliseconds.
BATCH = 5000

#: Seconds from now until the alarms of the copies are due.
TOMORROW = 86400.0

#: Seconds for the append-only file to be written at the end.
PATIENCE = 300.0

#: The rules of the worker that postpones the copied job.
CLAIM = ClaimRules("growth:1", lease=60, settle_delay=60, max_attempts=12, probe=20)
SETTLE = SettleRules(settle_delay=60, breaker_threshold=5, breaker_pause=30, retention=7 * TOMORROW)

#: Copies a record under ids of the same length, with its entries in sorted sets a millisecond
#: apart.
#: KEYS: record; ARGV: first, last, then sorted set, score, ...
COPY = """
local prefix = KEYS[1]:sub(1, #KEYS[1] - 36)
for number = tonumber(ARGV[1]), tonumber(ARGV[2]) do
  local id = string.format('%08x-0000-8000-8000-%012x', number, number)
  redis.call('COPY', KEYS[1], prefix .. id)
  for i = 3, #ARGV, 2 do redis.call('ZADD', ARGV[i], ARGV[i + 1] + number, id) end
end
"""

#: Adds an event repeatedly. KEYS: stream; ARGV: first, last, event
TELL = """
for number = tonumber(ARGV[1]), tonumber(ARGV[2]) do
  redis.call('XADD', KEYS[1], '*', 'event', ARGV[3])
end
"""


@contextmanager
def installation() -> Iterator[Bench]:
    """A Valkey, the provider, our worker and its client."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        with (
            stage.stub(folder) as provider,
            set_up(OURS, provider, folder) as bench,
        ):
            yield bench


def places(server: redis.Redis, job_id: str) -> list[str | float]:
    """The sorted sets that contain a job, and its score in each; its alarm is due tomorrow."""
    found: list[str | float] = []
    for key in server.scan_iter("{reg}:*", count=1000, _type="zset"):
        score = server.zscore(key, job_id)
        if score is not None:
            name = key.decode()
            found += [name, (time.time() + TOMORROW) * 1000 if name == ALARMS else score]
    return found


class Filling:
    """Copies records within a ledger, each under a new number."""

    def __init__(self, server: redis.Redis) -> None:
        self._server = server
        self._next = 0

    def __call__(self, what: str, job_id: str, count: int) -> float:
        """Copy a job's record so many times; return the bytes of each copy."""
        at = places(self._server, job_id)
        return self._repeat(f"{count} {what}", COPY, job_key(job_id), count, at)

    def tell(self, count: int) -> float:
        """Add the stream's last event so many times; return the bytes of each."""
        last: Any = self._server.xrevrange(STREAM, count=1)
        return self._repeat(f"{count} events", TELL, STREAM, count, [last[0][1][b"event"]])

    def _repeat(self, what: str, script: str, key: str, count: int, args: list[Any]) -> float:
        run = self._server.register_script(script)
        first, self._next = self._next, self._next + count
        before = self._server.info("memory")["used_memory"]
        batches = range(first, self._next, BATCH)
        for start in track(batches, what, console=Console(stderr=True), transient=True):
            run(keys=[key], args=[start, min(start + BATCH, self._next) - 1, *args])
        taken: int = self._server.info("memory")["used_memory"] - before
        return taken / max(1, count)


def put_off(bench: Bench, ledger: SyncLedger) -> str:
    """A job that was tried and will be retried tomorrow; returns its id."""
    [(job_id, _)], _, _ = bench.client.enqueue(1)
    held = ledger(claim(job_id, CLAIM, 0))
    assert isinstance(held, Claim)
    ledger(settle(held, Decision("retry", "asked to wait", delay=TOMORROW), SETTLE, None))
    return job_id


def fill(bench: Bench, finished: int, queued: int, later: int) -> list[str]:
    """Fill a ledger; print the size of each kind of record."""
    server = bench.server
    filling = Filling(server)
    url = f"redis://127.0.0.1:{server.connection_pool.connection_kwargs['port']}/0"
    # Written once, at the end.
    server.config_set("appendonly", "no")
    sent, _, _ = bench.client.enqueue(1)
    bench.watch.wait([key for key, _ in sent], bench.alive())
    over = sent[0][0]
    each = filling("finished", over, finished)
    sealed: Any = server.hstrlen(job_key(over), "event")
    lines = [
        f"a finished job: {each:.0f} bytes, {sealed} of them what it keeps of its event, sealed; "
        f"its event on the stream {filling.tell(finished):.0f}"
    ]
    with stage.frozen(bench.worker.pid):
        # It is copied while it is queued.
        waiting, _, _ = bench.client.enqueue(1)
        each = filling("queued", waiting[0][0], queued)
        lines.append(f"a queued job: {each:.0f} bytes, with its places in the indices")
        ledger = SyncLedger(url)
        each = filling("put off", put_off(bench, ledger), later)
        ledger.close()
        lines.append(f"one that is put off: {each:.0f} bytes")
    assert isinstance(bench.watch, Stream)
    bench.watch.skip(finished)
    bench.watch.wait([key for key, _ in waiting], bench.alive())
    _written(server)
    return lines


def _written(server: redis.Redis) -> None:
    """Wait until the append-only file is on, and no background write runs."""
    server.config_set("auto-aof-rewrite-percentage", 0)
    server.config_set("appendonly", "yes")
    end = time.monotonic() + PATIENCE
    while True:
        seen = server.info("persistence")
        if not seen["aof_rewrite_in_progress"] and not seen["aof_rewrite_scheduled"]:
            return
        if time.monotonic() > end:
            raise RuntimeError(f"the append-only file is not written within {PATIENCE:g} s")
        time.sleep(0.2)


def measured(bench: Bench, jobs: int) -> tuple[float, float]:
    """A burst: milliseconds of CPU per job, of the worker and of the server."""
    before = bench.server.info("cpu")
    found = bench.burst(jobs)
    after = bench.server.info("cpu")
    names = ("used_cpu_user_main_thread", "used_cpu_sys_main_thread")
    return found.cpu_ms, sum(after[name] - before[name] for name in names) / jobs * 1000


def compared(what: str, empty: Sequence[float], full: Sequence[float]) -> str:
    """The medians of both, and the ratio."""
    ratio = median(full) / median(empty)
    return (
        f"{what}: {median(empty):.3f} ms of CPU a job when empty, {median(full):.3f} when full: "
        f"{ratio:.2f} times as much"
    )


def main() -> None:
    """Fill, measure in turns, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--finished", type=int, default=1_000_000, help="finished records (1000000)"
    )
    parser.add_argument("--queued", type=int, default=100_000, help="queued jobs (100000)")
    parser.add_argument("--later", type=int, default=10_000, help="jobs put off (10000)")
    parser.add_argument("--jobs", type=int, default=1000, help="jobs a measurement (1000)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each (5)")
    options = parser.parse_args()
    with ExitStack() as running:
        running.enter_context(stack.ending_by_signal())
        with jemalloc() as allocator:
            pass  # only for its name: `set_up` starts the servers with it
        benches = [running.enter_context(installation()) for _ in range(2)]
        empty, full = benches
        for bench in benches:
            bench.warm_up()
        _written(empty.server)
        lines = fill(full, options.finished, options.queued, options.later)
        costs: list[list[tuple[float, float]]] = [[], []]
        for number in range(options.rounds):
            # Each is first equally often.
            for which in (0, 1) if number % 2 else (1, 0):
                costs[which].append(measured(benches[which], options.jobs))
        alarms = full.server.zcard(ALARMS)
    print("\n".join(lines))
    print(
        f"full: {options.finished} finished jobs, {options.queued} queued, "
        f"{options.later} put off, {alarms} alarms; the server uses {allocator}"
    )
    for part, what in enumerate(("worker", "Valkey")):
        print(compared(what, *([cost[part] for cost in side] for side in costs)))


if __name__ == "__main__":
    main()

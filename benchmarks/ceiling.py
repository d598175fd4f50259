"""`python -m benchmarks.ceiling`: what a job costs one Valkey, and how many it can handle.

Computed from a burst through a worker, and measured: a few clients accept, claim and settle as fast
as possible, and call no provider. It also prints how many calls the provider's stub can handle, to
show that the stub is not the limit.
"""

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import redis

from benchmarks.support import jobs, meter, stage
from benchmarks.support.allocator import jemalloc
from benchmarks.support.single import ours
from benchmarks.support.watch import STREAM
from regworker.acceptance import Intake
from regworker.domain.job import Job
from regworker.domain.outcome import Registered
from regworker.event_builder import EventBuilder
from regworker.ledger import SyncLedger
from regworker.ledger.admin import Limits, announce
from regworker.ledger.calls import MOST, call
from regworker.ledger.records import Claim, Settled
from regworker.ledger.transitions import (
    ClaimRules,
    Command,
    Decision,
    Publication,
    SettleRules,
    accept,
    claim,
    settle,
)
from regworker.sealing import seals
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from worker.cli.local import stack
from worker.providers.registry import Registry

#: Commands that a client sends together, and how many of them in one call.
TOGETHER, EACH = 50, 5

CLAIM = ClaimRules("ceiling:1", lease=12, settle_delay=60, max_attempts=12, probe=20)
SETTLE = SettleRules(settle_delay=60, breaker_threshold=5, breaker_pause=30, retention=604800)
DONE = Decision("registered", health="ok")

#: The keys with which the clients wait for each other; seconds.
READY, GO, PATIENCE = "ready", "go", 60

#: Commands that fewer jobs call are not shown by name.
SHOWN = 0.02

#: The share of the server's one core from which the server is the limit.
SATURATED = 0.9


@dataclass(frozen=True, slots=True)
class Usage:
    """What a server has used so far: seconds of CPU of its main thread, and so on."""

    cpu: float
    commands: int
    calls: Mapping[str, int]
    """By the command's name; those within scripts included."""
    bytes_in: int
    bytes_out: int

    @property
    def scripts(self) -> int:
        """How many scripts it has run."""
        return self.calls.get("evalsha", 0)

    @classmethod
    def of(cls, server: redis.Redis) -> "Usage":
        """Read the present usage."""
        seen: dict[str, Any] = server.info("all")
        return cls(
            seen["used_cpu_user_main_thread"] + seen["used_cpu_sys_main_thread"],
            seen["total_commands_processed"],
            {
                name.removeprefix("cmdstat_"): said["calls"]
                for name, said in seen.items()
                if name.startswith("cmdstat_")
            },
            seen["total_net_input_bytes"],
            seen["total_net_output_bytes"],
        )

    def since(self, before: "Usage", count: int) -> str:
        """What each of `count` jobs has used since then."""
        return (
            f"{(self.commands - before.commands) / count:.1f} commands, most of them within "
            f"{(self.scripts - before.scripts) / count:.1f} scripts; "
            f"{(self.bytes_in - before.bytes_in) / count / 1000:.1f} kB in, "
            f"{(self.bytes_out - before.bytes_out) / count / 1000:.1f} kB out; "
            f"{(self.cpu - before.cpu) / count * 1000:.3f} ms of CPU"
        )

    def each(self, before: "Usage", count: int) -> Mapping[str, float]:
        """How often each of `count` jobs has called each command since then, the most frequent
        first."""
        since = {name: calls - before.calls.get(name, 0) for name, calls in self.calls.items()}
        return {name: since[name] / count for name in sorted(since, key=since.__getitem__)[::-1]}


@dataclass(frozen=True, slots=True)
class Sample:
    """A job as in production: the copies of it are what the clients run."""

    payload: str
    held: Claim
    publication: Publication

    def copies(self, client: int, count: int) -> Iterator[tuple[Command[Any], ...]]:
        """Copies of jobs under other keys: their commands to accept, claim and settle."""
        for number in range(count):
            job = Job(provider="skypostal", idempotency_key=f"{client}-{number}", registration={})
            held = replace(self.held, record=replace(self.held.record, id=job.id))
            publication = replace(self.publication, event_id=f"{job.id}.registered")
            yield (
                accept(job, self.payload, ["bench:" + "0" * 64], 86400),
                claim(job.id, CLAIM, 0),
                settle(held, DONE, SETTLE, publication),
            )


def sample(ledger: SyncLedger) -> Sample:
    """Run a job."""
    keys = Keyring.parse(stage.KEYS)
    settings = Settings.load(sealing_keys=stage.KEYS)
    intake = Intake(Registry(settings.providers), keys, settings.deadline)
    job, registration = intake.check(jobs.job(1))
    ledger(intake.command(job, registration))
    held = ledger(claim(job.id, CLAIM, 0))
    assert isinstance(held, Claim)
    outcome = Registered({"customer_box_id": 811111, "customer_key": "0" * 36})
    publication = EventBuilder(settings, keys).registered(held.record, held.at, outcome)
    assert isinstance(ledger(settle(held, DONE, SETTLE, publication)), Settled)
    return Sample(keys.seal(registration, seals.payload(job)), held, publication)


def drive(url: str, client: int, one: Sample, count: int, each: int) -> tuple[float, float]:
    """Run so many jobs in a process of its own; return start and end.

    All commands are prepared before, and no answer is parsed: otherwise the Python clients would be
    the limit.
    """
    server: Any = redis.Redis.from_url(url)
    wire = server.connection_pool.get_connection()
    batches = []
    copies = one.copies(client, count)
    while batch := list(islice(copies, TOGETHER)):
        for step in zip(*batch, strict=True):
            calls = [call(step[at : at + each]) for at in range(0, len(step), each)]
            batches.append((wire.pack_commands(calls), len(calls)))
    server.incr(READY)
    server.blpop(GO, PATIENCE)
    began = time.time()
    for packed, answers in batches:
        wire.send_packed_command(packed)
        for _ in range(answers):
            wire.read_response()
    ended = time.time()
    server.close()
    return began, ended


def saturated(clients: int, count: int, each: int) -> str:
    """Drive a separate Valkey as fast as the clients can; return what it handled."""
    spawn = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        stack.valkey(Path(folder)) as valkey,
        ProcessPoolExecutor(clients, spawn) as pool,
    ):
        url = valkey.connection_url
        ledger = SyncLedger(url)
        ledger(announce([Limits("skypostal", "default", 0, 0, 1000)], ["results"]))
        one = sample(ledger)
        server: Any = ledger.redis
        runs = [pool.submit(drive, url, client, one, count, each) for client in range(clients)]
        stack.until(lambda: int(server.get(READY) or 0) == clients, "the clients", PATIENCE)
        before = Usage.of(server)
        server.lpush(GO, *range(clients))
        times = [run.result(timeout=PATIENCE) for run in runs]
        after = Usage.of(server)
        done = server.xlen(STREAM) - 1
        ledger.close()
    if done != clients * count:
        raise RuntimeError(f"{done} of {clients * count} jobs were done")
    took = max(end for _, end in times) - min(began for began, _ in times)
    cpu = after.cpu - before.cpu
    busy = cpu / took
    said = (
        f"one Valkey carried {done / took:.0f} jobs/s, {each} in each call (measured: {clients} "
        f"clients that call nobody), with {busy:.0%} of a core and "
        f"{cpu / done * 1000:.3f} ms of it a job"
    )
    if busy < SATURATED:
        said += f"; something else was the limit: with all of a core, {done / cpu:.0f} jobs/s"
    return said


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=3000, help="jobs through a worker (3000)")
    parser.add_argument("--clients", type=int, default=3, help="clients that call nobody (3)")
    parser.add_argument("--each", type=int, default=10_000, help="jobs of each of them (10000)")
    options = parser.parse_args()
    with ours() as (bench, provider):
        bench.warm_up()
        stub = meter.cpu(provider.pid)
        before = Usage.of(bench.server)
        bench.burst(options.jobs)
        after = Usage.of(bench.server)
        stub = (meter.cpu(provider.pid) - stub) / options.jobs * 1000
    cost = (after.cpu - before.cpu) / options.jobs * 1000
    print(f"Valkey, a job from enqueue to result: {after.since(before, options.jobs)}")
    calls = after.each(before, options.jobs)
    said = (f"{name} {number:.2f}" for name, number in calls.items() if number >= SHOWN)
    print(f"commands a job, by name: {', '.join(said)}")
    print(f"one Valkey carries at most {1000 / cost:.0f} jobs/s (computed: its CPU a job)")
    for each in (1, EACH, MOST):
        with stack.ending_by_signal(), jemalloc() as allocator:
            print(f"{saturated(options.clients, options.each, each)}; it uses {allocator}")
    print(
        f"the stub carries at most {1000 / stub:.0f} calls/s (computed: {stub:.2f} ms of CPU each)"
    )


if __name__ == "__main__":
    main()

"""`python -m benchmarks.replicas`: what waiting for replicas costs a job.

One worker process, a primary with two replicas on loopback, the same jobs with `REGWORKER_REPLICAS`
0 and 1 in turn: the worker's CPU time per job during a burst, and how soon single jobs start.
"""

import os
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import redis

from benchmarks.latency import show, start_delays
from tests.integration.installation import PATIENCE, Installation, installation
from tests.integration.jobs import open2b
from worker.cli.local import stack

#: Jobs of a burst; and bursts (and rounds of single jobs) with each setting, in turn.
BURST, ROUNDS = 300, 3

PACE: dict[str, Any] = {
    "call_budget": 20,
    "settle_delay": 60,
    "lease": 12,
    "lease_renewal": 4,
    "concurrency": 50,
}
FREE: dict[str, Any] = {"accounts__open2b__default__rate": 0}


def cpu(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def burst(here: Installation) -> float:
    """Milliseconds of the worker's CPU time per job."""
    worker = here.workers[0]
    before = cpu(worker.pid)
    receipts = list(here.producer.enqueue_many([open2b() for _ in range(BURST)]))
    for receipt in receipts:
        here.producer.wait(receipt.job_id, PATIENCE)  # type: ignore[union-attr]
    return (cpu(worker.pid) - before) / BURST * 1000


def measure(folder: Path, wanted: int) -> tuple[float, list[float]]:
    """CPU time per job (ms), and the delays of single jobs (ms), with so many replicas required."""
    with ExitStack() as running:
        here = running.enter_context(
            installation(folder, workers=0, broker_url="", replicas=wanted, **PACE, **FREE)
        )
        primary = redis.Redis(port=here.valkey.port)
        for _ in range(2):
            replica = stack.start_valkey(None, appendonly="yes")
            running.callback(replica.terminate)
            redis.Redis(port=replica.port).replicaof("127.0.0.1", here.valkey.port)
        stack.until(
            lambda: all(
                primary.info("replication").get(f"slave{i}", {}).get("state") == "online"
                for i in range(2)
            ),
            "both replicas",
            PATIENCE,
        )
        here.start_worker()
        here.wait_for_line("ready.")
        burst(here)  # warm-up
        return burst(here), start_delays(here, open2b)


def main() -> None:
    """Measure and print; a few minutes."""
    costs: dict[int, list[float]] = {0: [], 1: []}
    delays: dict[int, list[float]] = {0: [], 1: []}
    with tempfile.TemporaryDirectory() as name:
        began = time.strftime("%F")
        for number in range(ROUNDS):
            for wanted in costs:
                spent, started = measure(Path(name) / f"{number}-{wanted}", wanted)
                costs[wanted].append(spent)
                delays[wanted] += started
    print(f"{began}: {ROUNDS} rounds of {BURST} jobs and of single ones, each")
    for wanted, each in costs.items():
        print(f"REGWORKER_REPLICAS={wanted}: {median(each):.2f} ms of the worker's CPU a job")
        show(f"REGWORKER_REPLICAS={wanted}: from enqueue to the provider", delays[wanted], "ms")


if __name__ == "__main__":
    main()

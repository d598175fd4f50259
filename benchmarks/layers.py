"""`python -m benchmarks.layers`: the CPU time of a job by layer.

py-spy samples 250 times a second which code holds the interpreter; each sample counts for the
innermost frame that belongs to a layer. Shares refer to the CPU time of the burst, as measured by
the system.
"""

import argparse
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from benchmarks.support import meter, stage
from benchmarks.support.single import ours

#: Samples per second: not a divisor of the loop's own periods.
LOOKS = 251

#: The layers, and the files of each; the first match counts.
LAYERS = tuple(
    (name, re.compile(pattern))
    for name, pattern in (
        ("sealing (JWE)", r"cryptography|regworker/sealing"),
        ("models and JSON (pydantic)", r"pydantic|regworker/(domain|forms|event_builder)"),
        ("log lines", r"structlog|logging/__init__|worker/telemetry"),
        ("metrics, tracing", r"worker/monitoring|regworker/tracing|prometheus"),
        ("Celery: events", r"celery/events|worker/broker/event_dispatcher"),
        ("kombu: Redis transport", r"kombu/(transport|asynchronous)|worker/broker/redis"),
        ("kombu: messages", r"kombu/|worker/broker"),
        ("HTTP: httpx", r"httpx/|httpcore/"),
        ("HTTP: aiohttp", r"httpx_aiohttp|aiohttp|yarl/|multidict"),
        ("HTTP: ours", r"worker/(providers|publishers|http/)|standardwebhooks"),
        ("ledger client", r"regworker/ledger|worker/execution/(leases|alarms)"),
        ("Celery: tracing a task", r"celery/app/trace|worker/process/tasks"),
        ("Celery: consumer, requests", r"celery/|vine/|process/(consumer|message_check|wake_req)"),
        ("pool", r"worker/process/(pool|greenlets|priorities)|concurrent/futures"),
        ("attempt, decision, delivery", r"worker/|regworker/"),
        ("asyncio", r"asyncio/|selectors"),
    )
)

#: Two layers use redis-py: the caller decides which.
REDIS = re.compile(r"\(redis/")
BROKER = {"kombu: Redis transport", "kombu: messages", "Celery: events"}


def layer(frames: Iterable[str]) -> str:
    """The layer of a stack, the innermost frame last."""
    client = ""
    for frame in reversed(list(frames)):
        if REDIS.search(frame):
            client = "redis-py"
            continue
        for name, pattern in LAYERS:
            if pattern.search(frame):
                if client:
                    return f"{client}: {'broker' if name in BROKER else 'ledger'}"
                return name
    return client or "other"


def shares(stacks: str) -> Counter[str]:
    """The samples of each layer, from py-spy's collapsed stacks."""
    found: Counter[str] = Counter()
    for line in stacks.splitlines():
        stack, _, count = line.rpartition(" ")
        found[layer(stack.split(";"))] += int(count)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=8000, help="jobs (8000)")
    parser.add_argument("--keep", type=Path, help="write the stacks here, for a flame graph")
    options = parser.parse_args()
    spy = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    if spy is None:
        sys.exit("py-spy is not installed (pip install py-spy)")
    with tempfile.TemporaryDirectory() as name:
        out = options.keep or Path(name) / "stacks"
        with ours() as (bench, _):
            bench.warm_up()
            pid = bench.worker.pid
            command = [spy, "record", "-p", str(pid), "-r", str(LOOKS), "-d", "600", "-f", "raw"]
            with stage.frozen(pid):
                sent, _, _ = bench.client.enqueue(options.jobs)
                before = meter.cpu(pid)
            # Without stopping the process for each sample: a wrong sample now and then costs less.
            watcher = subprocess.Popen(
                [*command, "--gil", "--nonblocking", "-o", str(out)],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            try:
                bench.watch.wait([key for key, _ in sent], bench.alive())
            finally:
                watcher.send_signal(signal.SIGINT)
                watcher.wait()
            cpu = (meter.cpu(pid) - before) / options.jobs * 1000
        found = shares(out.read_text())
    total = found.total()
    print("| layer | share | ms a job |\n|---|---:|---:|")
    for name, looks in found.most_common():
        print(f"| {name} | {looks / total:.1%} | {cpu * looks / total:.3f} |")
    print(f"| all | | {cpu:.2f} |")


if __name__ == "__main__":
    main()

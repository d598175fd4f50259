"""`python -m benchmarks.latency`: how soon a job starts, its result arrives, and another worker
takes it over.

Real processes, default leases, one worker; from the provider's own log of the calls' times.
"""

import tempfile
import time
from pathlib import Path
from statistics import quantiles
from typing import Any

from benchmarks.support.contest import IDLE_RATE
from benchmarks.support.single import ours
from tests.integration.installation import Installation, installation
from tests.integration.jobs import email_of, open2b, skypostal
from worker.cli.local import stack

#: Jobs per measurement, one after another.
JOBS = 100

#: As in production.
LEASE: dict[str, Any] = {"lease": 12, "lease_renewal": 4, "clock_period": 1}


def idle() -> tuple[list[float], list[float]]:
    """Milliseconds until the provider has a job's call, and from its answer until a consumer has
    the result, with ten jobs a second.
    """
    with ours() as (bench, provider):
        bench.warm_up()
        arrivals = bench.arrivals(JOBS, IDLE_RATE)
        calls = provider.calls("customer")
        numbers = range(bench.client.next - JOBS, bench.client.next)
    started, published = [], []
    for number, (due, there) in zip(numbers, arrivals, strict=True):
        came, answered = calls[f"customer{number}"]
        started.append((came - due) * 1000)
        published.append((there - answered) * 1000)
    return started, published


def start_delays(here: Installation, make: Any) -> list[float]:
    """For each job, milliseconds from before `enqueue` until the provider received the call."""
    delays = []
    for _ in range(JOBS):
        job = make()
        before = time.time()
        here.producer.wait(here.producer.enqueue(job).job_id)
        [seen] = here.sandbox.requests.find(email=email_of(job))
        delays.append((seen.time - before) * 1000)
    return delays


def show(title: str, values: list[float], unit: str) -> None:
    """Print the median and the 99th percentile."""
    cuts = quantiles(values, n=100, method="inclusive")
    print(f"{title:<63} p50 {cuts[49]:7.1f} {unit}   p99 {cuts[98]:7.1f} {unit}")


def recovery(folder: Path) -> float:
    """Seconds from `kill -9` during a call until another worker continues the job."""
    with installation(folder, workers=2, call_budget=20, settle_delay=60, **LEASE) as here:
        job = skypostal()
        rule = {"kind": "hang", "commit": True, "email": email_of(job)}
        here.sandbox.faults.configure({"script": [rule]})
        job_id = here.producer.enqueue(job).job_id
        stack.until(lambda: here.made(email_of(job)) > 0, "the call")
        holder = here.producer.status(job_id).timeline[-1][1].rsplit(":", 2)[1]
        [worker] = [one for one in here.workers if str(one.pid) == holder]
        worker.kill()
        killed = time.time()
        here.producer.wait(job_id, 60)
        asked = next(at for at, what in here.producer.status(job_id).timeline if "asking" in what)
        return asked.timestamp() - killed


def main() -> None:
    """Measure and print; about two minutes."""
    started, published = idle()
    show("idle: from enqueue to the provider's receipt", started, "ms")
    show("idle: from the provider's answer to the result at its consumer", published, "ms")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cap: dict[str, Any] = {"accounts__skypostal__default__max_in_flight": 10, "concurrency": 20}
        free: dict[str, Any] = {"accounts__open2b__default__rate": 0}
        pace: dict[str, Any] = {"call_budget": 30, "settle_delay": 60, **LEASE}
        with installation(folder / "a", **pace, **cap, **free) as here:
            here.run(open2b())
            rule = {"kind": "hang", "provider": "skypostal", "times": None}
            here.sandbox.faults.configure({"script": [rule]})
            list(here.producer.enqueue_many([skypostal() for _ in range(50)]))
            stack.until(
                lambda: len(here.sandbox.requests.find(provider="skypostal")) == 10, "ten hang"
            )
            title = "from enqueue while every call of the other provider hangs"
            show(title, start_delays(here, open2b), "ms")
            for worker in here.workers:
                worker.kill()
        seconds = [recovery(folder / f"b{number}") for number in range(5)]
        show("kill -9 in a call, until another worker goes on (5 times)", seconds, "s ")


if __name__ == "__main__":
    main()

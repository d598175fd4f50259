"""`python -m benchmarks.enqueue`: jobs per second of `enqueue_many`, including sealing, of a
`Producer` and of an `AsyncProducer`.

Each is one process, with a new ledger, while the worker is stopped; their rounds take turns.
"""

import argparse
from contextlib import ExitStack
from dataclasses import replace
from statistics import median

from benchmarks import stage
from benchmarks.single import OURS, ours

CLIENTS = {"Producer": OURS, "AsyncProducer": replace(OURS, module="ours_async")}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000, help="jobs a round (10000)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (3)")
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in CLIENTS}
    with ExitStack() as running:
        benches = {}
        for name, client in CLIENTS.items():
            bench, _ = running.enter_context(ours(contestant=client))
            running.enter_context(stage.frozen(bench.worker.pid))
            bench.client.enqueue(500)
            benches[name] = bench
        for _ in range(options.rounds):
            for name, bench in benches.items():
                _, seconds, cpu = bench.client.enqueue(options.jobs)
                found[name].append((options.jobs / seconds, cpu / options.jobs * 1e6))
    for name, rounds in found.items():
        rate, cost = (median(values) for values in zip(*rounds, strict=True))
        print(
            f"{name + '.enqueue_many:':27} {rate:.0f} jobs/s, {cost:.0f} us of CPU a job "
            f"(median of {options.rounds} rounds of {options.jobs})"
        )


if __name__ == "__main__":
    main()

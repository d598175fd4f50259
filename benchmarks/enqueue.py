"""`python -m benchmarks.enqueue`: jobs per second of `enqueue_many`, including sealing, of a
`Producer` and of an `AsyncProducer`.

Each is one process, with a new ledger, while the worker is stopped.
"""

import argparse
from dataclasses import replace
from statistics import median

from benchmarks.support import stage
from benchmarks.support.single import OURS, ours

CLIENTS = {"Producer": OURS, "AsyncProducer": replace(OURS, module="ours_async")}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000, help="jobs a round (10000)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (3)")
    options = parser.parse_args()
    for name, client in CLIENTS.items():
        rates, costs = [], []
        with ours(contestant=client) as (bench, _), stage.frozen(bench.worker.pid):
            bench.client.enqueue(500)
            for _ in range(options.rounds):
                _, seconds, cpu = bench.client.enqueue(options.jobs)
                rates.append(options.jobs / seconds)
                costs.append(cpu / options.jobs * 1e6)
        print(
            f"{name + '.enqueue_many:':27} {median(rates):.0f} jobs/s, {median(costs):.0f} us of "
            f"CPU a job (median of {options.rounds} rounds of {options.jobs})"
        )


if __name__ == "__main__":
    main()

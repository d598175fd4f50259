"""`python -m benchmarks.enqueue`: jobs per second of `Producer.enqueue_many`, including sealing.

One producer process, into a new ledger, while the worker is stopped.
"""

import argparse
from statistics import median

from benchmarks import stage
from benchmarks.single import ours


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000, help="jobs a round (10000)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (3)")
    options = parser.parse_args()
    rates, costs = [], []
    with ours() as (bench, _), stage.frozen(bench.worker.pid):
        bench.client.enqueue(500)
        for _ in range(options.rounds):
            _, seconds, cpu = bench.client.enqueue(options.jobs)
            rates.append(options.jobs / seconds)
            costs.append(cpu / options.jobs * 1e6)
    print(
        f"enqueue_many: {median(rates):.0f} jobs/s, {median(costs):.0f} us of CPU a job "
        f"(median of {options.rounds} rounds of {options.jobs})"
    )


if __name__ == "__main__":
    main()

"""`python -m benchmarks.scale`: whether two worker processes do twice the work of one.

Each process has few slots, so that the provider's 50 ms are the limit, not the cores, which a
provider, a Valkey and a client share. If a job costs no more CPU time with two processes, they do
not slow each other down.
"""

import argparse
from statistics import median

from benchmarks.support.contest import Round
from benchmarks.support.single import ours


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slots", type=int, default=15, help="jobs at a time in a process (15)")
    parser.add_argument("--jobs", type=int, default=2000, help="jobs a process (2000)")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds (3)")
    options = parser.parse_args()
    rounds: dict[int, list[Round]] = {1: [], 2: []}
    for _ in range(options.rounds):
        for processes, found in rounds.items():
            with ours(processes, concurrency=options.slots) as (bench, _):
                bench.warm_up()
                found.append(bench.burst(options.jobs * processes))
    rates = {number: median(one.rate for one in found) for number, found in rounds.items()}
    costs = {number: median(one.cpu_ms for one in found) for number, found in rounds.items()}
    for number in rounds:
        print(
            f"{number} processes: {rates[number]:.0f} jobs/s, {costs[number]:.2f} ms of CPU a job"
        )
    print(
        f"two do {rates[2] / rates[1]:.2f} times one, at {costs[2] / costs[1]:.2f} of its CPU a job"
    )


if __name__ == "__main__":
    main()

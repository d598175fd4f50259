"""`python -m benchmarks.memory`: the most memory of one worker process, with 500 calls in
flight."""

import argparse

from benchmarks.support.single import ours


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slots", type=int, default=500, help="jobs at a time (500)")
    parser.add_argument("--jobs", type=int, default=3000, help="jobs in all (3000)")
    options = parser.parse_args()
    with ours(concurrency=options.slots) as (bench, _):
        bench.warm_up()
        found = bench.burst(options.jobs)
    print(f"{options.slots} in flight: {found.megabytes:.0f} MB at the most")


if __name__ == "__main__":
    main()

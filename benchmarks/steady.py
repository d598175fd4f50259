"""`python -m benchmarks.steady`: how long a job takes under a steady load, beside other queues.

First each contestant works off bursts. Then jobs come to each of them at the same two rates: a
share of what the best of the others can do, and the same share of what ours can do. Milliseconds
from the time when a job was due to be sent until its result is stored; the provider takes 50.
"""

import argparse
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median, quantiles

from benchmarks.__main__ import BEST
from benchmarks.contestants import CONTESTANTS
from benchmarks.support import contest, meter, stage
from benchmarks.support.report import OURS
from worker.cli.local import stack


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="ours and this one; repeatable"
    )
    parser.add_argument("--load", type=float, default=0.7, help="the share of a burst's rate (0.7)")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each steady load (8)")
    parser.add_argument("--rounds", type=int, default=5, help="turns (5)")
    parser.add_argument("--jobs", type=int, default=2000, help="jobs in a burst (2000)")
    parser.add_argument("--bursts", type=int, default=3, help="bursts of each (3)")
    options = parser.parse_args()
    names = {OURS, *(options.only or BEST)}
    with (
        stack.ending_by_signal(),
        tempfile.TemporaryDirectory(prefix="bench-") as name,
        ExitStack() as running,
    ):
        provider = running.enter_context(stage.stub(Path(name)))
        benches = {
            one.title: running.enter_context(
                contest.set_up(one, provider, _folder(Path(name), number))
            )
            for number, one in enumerate(CONTESTANTS)
            if one.title in names
        }
        rates = _rates(benches, options.bursts, options.jobs)
        others = [rate for name, rate in rates.items() if name != OURS]
        for rate in {max(others, default=rates[OURS]), rates[OURS]}:
            _steady(benches, rate * options.load, options.seconds, options.rounds)


def _folder(parent: Path, number: int) -> Path:
    made = parent / str(number)
    made.mkdir()
    return made


def _rates(benches: dict[str, contest.Bench], bursts: int, jobs: int) -> dict[str, float]:
    """Jobs a second of each in a burst: the median."""
    found: dict[str, list[float]] = defaultdict(list)
    for bench in benches.values():
        bench.warm_up()
    for _ in range(bursts):
        for name, bench in benches.items():
            found[name].append(bench.burst(jobs).rate)
    for name, rates in found.items():
        print(f"{name}: {median(rates):.0f} jobs/s in a burst")
    return {name: median(rates) for name, rates in found.items()}


def _steady(benches: dict[str, contest.Bench], rate: float, seconds: float, rounds: int) -> None:
    """Each in turns, one after another; medians of the turns' percentiles."""
    turns: dict[str, list[list[float]]] = defaultdict(list)
    costs: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        for name, bench in benches.items():
            jobs = max(2, round(rate * seconds))
            before = sum(map(meter.cpu, bench.pids))
            turns[name].append(bench.latencies(jobs, rate))
            costs[name].append((sum(map(meter.cpu, bench.pids)) - before) / jobs * 1000)
            sys.stderr.write(".")
            sys.stderr.flush()
    sys.stderr.write("\n")
    print(f"{rate:.0f} jobs/s:")
    for name, found in turns.items():
        p50, p99 = ([percentile(one, share) for one in found] for share in (50, 99))
        print(
            f"  {name}: p50 {median(p50):.1f} ms, p99 {median(p99):.1f} ms, "
            f"{median(costs[name]):.2f} ms of CPU a job "
            f"(single turns: {_span(p50)}; {_span(p99)})"
        )


def percentile(values: Sequence[float], share: int) -> float:
    """Of at least two values."""
    return quantiles(values, n=100, method="inclusive")[share - 1]


def _span(values: Iterable[float]) -> str:
    return " ".join(f"{one:.0f}" for one in sorted(values))


if __name__ == "__main__":
    main()

"""`python -m benchmarks.turns NAME=PYTHON[:CHECKOUT] ...`: the worker's CPU a job, or that of the
client in `enqueue_many`, with several Pythons or versions of the code.

    python -m benchmarks.turns 3.11=python3.11 3.13=python3.13
    python -m benchmarks.turns before=.venv/bin/python:../before after=.venv/bin/python
    python -m benchmarks.turns --client ours --jobs 5000 before=... after=...

Each Python has what `requirements/bench.txt` names. All stacks run at the same time, and work off
bursts in turns, so that a machine that becomes slower does so for all. The ratios are to the first.
"""

import argparse
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

from benchmarks.support import stage

#: A stack of its own: it answers a number of jobs with the milliseconds of CPU a job.
STACK = """
import sys
from benchmarks.support.single import ours
with ours() as (bench, _):
    bench.warm_up()
    print(flush=True)
    for line in sys.stdin:
        print(bench.burst(int(line)).cpu_ms, flush=True)
"""

#: The same for the client, named by its module, while the worker is stopped.
CLIENT = """
import sys
from dataclasses import replace
from benchmarks.support import stage
from benchmarks.support.single import OURS, ours
with ours(contestant=replace(OURS, module=sys.argv[1])) as (bench, _):
    with stage.frozen(bench.worker.pid):
        bench.client.enqueue(500)
        print(flush=True)
        for line in sys.stdin:
            print(bench.client.enqueue(int(line))[2] / int(line) * 1000, flush=True)
"""


class Stack:
    """A worker with its own Valkey, provider and client, in a Python and a checkout."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._line()

    def burst(self, jobs: int) -> float:
        """Milliseconds of CPU a job."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{jobs}\n")
        self._process.stdin.flush()
        return float(self._line())

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("a stack ended")
        return line


@contextmanager
def stack(place: str, client: str | None) -> Iterator[Stack]:
    """Start the stack of `PYTHON[:CHECKOUT]`; `client`: to measure this one."""
    python, _, checkout = place.partition(":")
    root = Path(checkout or stage.ROOT).resolve()
    path = os.pathsep.join([str(root), str(root / "client")])
    process = subprocess.Popen(
        [python, "-P", "-c", *([CLIENT, client] if client else [STACK])],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        yield Stack(process)
        assert process.stdin is not None
        process.stdin.close()


def show(name: str, costs: Sequence[float], first: Sequence[float]) -> None:
    """Print one row: milliseconds, and the ratios to the first by three measures."""
    pairs = median(one / other for one, other in zip(costs, first, strict=True))
    print(
        f"{name:<12} {sum(costs) / len(costs):.3f} ms of CPU a job (least {min(costs):.3f}); "
        f"to the first: sums {sum(costs) / sum(first):.3f}, median of turns {pairs:.3f}, "
        f"least {min(costs) / min(first):.3f}"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("places", nargs="+", metavar="NAME=PYTHON[:CHECKOUT]")
    parser.add_argument("--turns", type=int, default=12, help="bursts of each (12)")
    parser.add_argument("--jobs", type=int, default=400, help="jobs a burst (400)")
    parser.add_argument("--client", choices=["ours", "ours_async"], help="measure this client")
    options = parser.parse_args()
    places = dict(one.split("=", 1) for one in options.places)
    found: dict[str, list[float]] = {name: [] for name in places}
    with ExitStack() as running:
        stacks = {
            name: running.enter_context(stack(place, options.client))
            for name, place in places.items()
        }
        for turn in range(options.turns):
            # Each is first as often as the others.
            names = list(stacks)[turn % len(stacks) :] + list(stacks)[: turn % len(stacks)]
            for name in names:
                found[name].append(stacks[name].burst(options.jobs))
    first = next(iter(found.values()))
    for name, costs in found.items():
        show(name, costs, first)


if __name__ == "__main__":
    main()

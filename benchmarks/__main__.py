"""`python -m benchmarks`: all task queues side by side, in interleaved rounds.

make bench              all of them, half an hour; writes docs/benchmarks.{json,md,svg}
make bench QUICK=1      ours, the two best and the floor, in less than a minute
"""

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.contestants import CONTESTANTS, Contestant
from benchmarks.support import contest, plot, report, stage
from worker.cli.local import stack

DOCS = stage.ROOT / "docs"

#: The quick contestants if nothing was measured yet.
BEST = ("dramatiq (tuned)", "taskiq (tuned)")

#: Seconds after which no further round begins: together with the longest round, less than a minute.
QUICK_SECONDS = 45.0


def main() -> int:
    """Measure, and print the results."""
    options = _options()
    everybody = list(_chosen(options))
    missing = [one for one in everybody if not _installed(one)]
    chosen = [one for one in everybody if one not in missing]
    progress = Console(stderr=True)
    for one in missing:
        progress.print(f"left out, since it is not installed (make bench does): {one.title}")
    if not chosen:
        progress.print("nobody is left to be measured", style="red")
        return 1
    try:
        with stack.ending_by_signal():
            rounds = list(_measure(chosen, options, progress))
    except KeyboardInterrupt:
        progress.print("interrupted; everything that was started is stopped")
        return 130
    except (RuntimeError, stack.StackError) as error:
        progress.print(f"[red]{error}[/red]")
        return 1
    summaries = report.summarize(rounds)
    if options.write:
        report.write(rounds, DOCS, plot.svg(summaries))
    if options.json:
        print(json.dumps(report.document(rounds)))
        return 0
    Console(width=None if sys.stdout.isatty() else 160).print(report.table(summaries))
    for note in report.notes(summaries):
        print(note)
    print(report.last_line(summaries))
    return 0


def _measure(
    chosen: Sequence[Contestant], options: argparse.Namespace, console: Console
) -> Iterator[contest.Round]:
    started = time.monotonic()
    longest = 0.0
    with tempfile.TemporaryDirectory(prefix="bench-") as name, _progress(console) as progress:
        folder = Path(name)
        bar = progress.add_task("", total=options.rounds * len(chosen))
        with stage.stub(folder) as provider:
            for number in range(options.rounds):
                begun = time.monotonic()
                if options.quick and begun - started + longest > QUICK_SECONDS:
                    break
                # The latencies take longer than everything else, and vary less.
                plan = contest.Plan(options.jobs, latency=options.latency and number == 0)
                for one in chosen:
                    progress.update(bar, description=f"round {number + 1}: {one.title}")
                    place = folder / f"{number}-{CONTESTANTS.index(one)}"
                    try:
                        yield contest.run(one, provider, place, plan)
                    except RuntimeError as error:
                        if one.kind == "ours":
                            raise
                        # Its failure must not lose half an hour of the others' results.
                        console.print(f"left out of round {number + 1}: {error}")
                    progress.advance(bar)
                longest = max(longest, time.monotonic() - begun)


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description:<40}"), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True)


def _chosen(options: argparse.Namespace) -> Iterator[Contestant]:
    wanted = options.only or ([report.OURS, *_best(), report.FLOOR] if options.quick else [])
    for one in CONTESTANTS:
        if not wanted or one.title in wanted:
            yield one


def _best() -> Sequence[str]:
    """The two tuned peers that were cheapest in the last complete measurement."""
    page = DOCS / "benchmarks.json"
    if not page.is_file():
        return BEST
    found = json.loads(page.read_text())["results"]
    return [one["name"] for one in found if one["kind"] == "tuned"][:2]


def _installed(contestant: Contestant) -> bool:
    return Path(contestant.python).exists() and all(
        importlib.util.find_spec(name) is not None for name in contestant.needs
    )


def _options() -> argparse.Namespace:
    titles = ", ".join(one.title for one in CONTESTANTS)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="CPU a job, throughput, memory and latency: ours beside other task queues.",
        epilog=f"Contestants: {titles}.",
    )
    parser.add_argument("--quick", action="store_true", help="ours, the two best, and the floor")
    parser.add_argument("--jobs", type=int, help="jobs a round (5000; quick: 1000)")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds (3)")
    parser.add_argument("--only", action="append", metavar="NAME", help="only this one; repeatable")
    parser.add_argument("--no-latency", dest="latency", action="store_false", help="leave it out")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.*")
    parser.add_argument("--json", action="store_true", help="print JSON instead")
    options = parser.parse_args()
    options.jobs = options.jobs or (1000 if options.quick else 5000)
    options.latency = options.latency and not options.quick
    unknown = set(options.only or ()) - {one.title for one in CONTESTANTS}
    if unknown:
        parser.error(f"nobody is called {', '.join(sorted(unknown))}; there are: {titles}")
    if options.jobs < 1 or options.rounds < 1:
        parser.error("--jobs and --rounds are numbers from 1")
    return options


if __name__ == "__main__":
    sys.exit(main())

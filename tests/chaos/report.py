"""The result of a run, counted and printed."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.chaos.checks import KINDS, Violation
from tests.chaos.collect import Seen, parsed
from tests.chaos.failovers import Failovers
from tests.chaos.processes import Kill

#: The most violations that are listed; more are only counted.
MOST = 20

#: Milliseconds. Longer than it takes until another worker claims a dead worker's job.
RECOVERY = 10_000.0


@dataclass
class Report:
    """The figures of one run."""

    seed: int
    broker: str
    duration: float
    accepted: int = 0
    repeats: int = 0
    conflicts: int = 0
    registered: int = 0
    rejected: int = 0
    abandoned: int = 0
    cancelled: int = 0
    review: int = 0
    recovered: int = 0
    accounts: int = 0
    events: int = 0
    webhooks_wanted: int = 0
    webhooks_delivered: int = 0
    webhook_calls: int = 0
    provider_calls: int = 0
    attempts_unknown: int = 0
    seconds_to_quiet: float = 0.0
    clock_moved: float = 0.0
    """How far the ledger's clock was observed to jump, at least; seconds."""
    nemesis: dict[str, int] = field(default_factory=dict)
    faults_at_provider: dict[str, int] = field(default_factory=dict)
    lies: dict[str, int] = field(default_factory=dict)
    """How often the proxy of one account lied, by kind."""
    workers_killed: int = 0
    brokers_killed: int = 0
    starts_refused: int = 0
    jobs_of_killed_workers: int = 0
    recovery_p50: float | None = None
    recovery_p99: float | None = None
    failovers: int = 0
    doubted: int = 0
    """Jobs that were looked up first, because the ledger may have lost a call."""
    failover_p50: float | None = None
    failover_p99: float | None = None
    failover_max: float | None = None
    """Seconds from the loss of a primary that a replica replaced until a job is registered that was
    claimed after it."""
    whole_p50: float | None = None
    whole_p99: float | None = None
    whole_max: float | None = None
    """Of these, seconds until all servers followed one primary again: commands that wait for every
    replica can only then continue."""
    forgotten: list[str] = field(default_factory=list)
    """Receipts that the ledger lost, where this is allowed."""
    lost: int = 0
    duplicates: int = 0
    unpublished: int = 0
    unsound: int = 0

    @property
    def good(self) -> bool:
        """Whether all invariants held."""
        return not (self.lost or self.duplicates or self.unpublished or self.unsound)

    @property
    def last_line(self) -> str:
        """The summary."""
        return f"lost {self.lost} duplicates {self.duplicates} unpublished {self.unpublished}"

    def count(self, seen: Seen, kills: Sequence[Kill]) -> None:
        """Count everything except violations."""
        events = parsed(seen.ledger.events)
        states = Counter(job.get("state", "") for job in seen.ledger.jobs.values())
        for state in ("registered", "rejected", "abandoned", "cancelled", "review"):
            setattr(self, state, states[state])
        self.accepted = len(seen.accepted)
        self.accounts = len(seen.accounts)
        self.events = len(events)
        self.recovered = sum(bool(event["data"].get("recovered")) for event in events)
        self.webhooks_wanted = sum(one.webhook for one in seen.accepted)
        self.webhook_calls = len(seen.hooks)
        self.webhooks_delivered = len(
            {hook["webhook_id"] for hook in seen.hooks if 200 <= hook["status"] < 300}
        )
        self.provider_calls = len(seen.requests)
        faults = Counter(one["fault"] for one in seen.requests if one["fault"])
        self.faults_at_provider = dict(faults.most_common())
        self.attempts_unknown = sum(
            int(job.get("unknowns", 0)) for job in seen.ledger.jobs.values()
        )
        times = recoveries(kills, (job.get("log", "") for job in seen.ledger.jobs.values()))
        self.jobs_of_killed_workers = len(times)
        if times:
            self.recovery_p50 = round(percentile(times, 50) / 1000, 2)
            self.recovery_p99 = round(percentile(times, 99) / 1000, 2)

    def fail_over(self, done: Failovers, seen: Seen, forgotten: Iterable[Violation]) -> None:
        """Count the results of failovers."""
        self.failovers = done.failovers
        self.nemesis |= {f"ledger: {kind}": count for kind, count in done.done.most_common()}
        self.forgotten = [f"{one.job} {one.text}" for one in forgotten]
        jobs = seen.ledger.jobs.values()
        self.doubted = sum("may have forgotten a call" in job.get("log", "") for job in jobs)
        losses = [one for one in done.losses if one.promoted and one.whole]
        gaps = gaps_of([one.at for one in losses], jobs)
        if gaps:
            for name, percent in (("p50", 50), ("p99", 99), ("max", 100)):
                setattr(self, f"failover_{name}", round(percentile(gaps, percent), 2))
                whole = percentile([(one.whole - one.at) / 1000 for one in losses], percent)
                setattr(self, f"whole_{name}", round(whole, 2))

    def judge(self, violations: Iterable[Violation]) -> None:
        """Count violations."""
        counts = Counter(one.kind for one in violations)
        self.lost, self.duplicates, self.unpublished, self.unsound = (
            counts[kind] for kind in KINDS
        )

    def show(self, console: Console, violations: Sequence[Violation]) -> None:
        """Print the report."""
        table = Table(title=f"Chaos on {self.broker}, seed {self.seed}", title_justify="left")
        table.add_column("what")
        table.add_column("figure", justify="right")
        for name, value in vars(self).items():
            if name in {"seed", "broker"} or isinstance(value, dict | list):
                continue
            table.add_row(name.replace("_", " "), "-" if value is None else f"{value:g}")
        for title, counts in (
            ("nemesis", self.nemesis),
            ("provider", self.faults_at_provider),
            ("proxy", self.lies),
        ):
            table.add_section()
            for name, count in counts.items():
                table.add_row(f"{title}: {name.replace('_', ' ')}", str(count))
        console.print(table)
        if self.forgotten:
            console.print(f"receipts lost by the ledger: {len(self.forgotten)}")
        for text in self.forgotten[:MOST]:
            console.print(f"forgotten: {text}", markup=False, highlight=False)
        for one in violations[:MOST]:
            console.print(f"{one.kind}: {one.job} {one.text}", markup=False, highlight=False)
        if len(violations) > MOST:
            console.print(f"... and {len(violations) - MOST} more")


def measurable(kills: Sequence[Kill], jumps: Sequence[float]) -> list[Kill]:
    """The kills after which the ledger's clock was not set, since it dates the next claim."""
    return [
        kill
        for kill in kills
        if not any(0 <= jump - (kill.at - kill.ahead) < RECOVERY for jump in jumps)
    ]


_CLAIMED = re.compile(r"(\d+) (?:calling|asking) by [^:]*:(\d+)(?::\w+)?$")


def recoveries(kills: Sequence[Kill], logs: Iterable[str]) -> list[float]:
    """Milliseconds from each kill until another worker claimed each job that the dead one held."""
    at_of = {kill.pid: kill.at for kill in kills}
    times = []
    for log in logs:
        lines = log.splitlines()
        claims: list[Any] = [_CLAIMED.match(line) for line in lines]
        for number, claim in enumerate(claims):
            if claim is None or int(claim[2]) not in at_of:
                continue
            at = at_of[int(claim[2])]
            after = number + 1
            # Settled before the worker was killed?
            if after < len(lines) and float(lines[after].partition(" ")[0]) <= at:
                continue
            again = next((other for other in claims[after:] if other), None)
            if again is not None and float(again[1]) > at:
                times.append(float(again[1]) - at)
    return times


def gaps_of(losses: Sequence[float], jobs: Iterable[Mapping[str, str]]) -> list[float]:
    """Seconds from each of these moments until a job is registered that was claimed after it."""
    spans = []
    for job in jobs:
        claims = [
            found for line in job.get("log", "").splitlines() if (found := _CLAIMED.match(line))
        ]
        if claims and job.get("state") == "registered":
            spans.append((float(job["finished_at"]), float(claims[-1][1])))
    spans.sort()
    ends = (next((end for end, claimed in spans if claimed > at), None) for at in losses)
    return [(end - at) / 1000 for end, at in zip(ends, losses, strict=True) if end is not None]


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def as_json(report: Report, violations: Sequence[Violation]) -> dict[str, Any]:
    """As JSON."""
    shown = [{"kind": one.kind, "job": one.job, "text": one.text} for one in violations[:MOST]]
    return {**vars(report), "violations": shown}

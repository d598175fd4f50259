"""The tables of `regworker top` and `stats`, in a size that fits the terminal."""

from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from worker.cli import time_arguments
from worker.cli.output import new_table, plain
from worker.monitoring import doctor
from worker.monitoring.totals import finished

if TYPE_CHECKING:
    from regworker.ledger.snapshot import AccountSnapshot, Beat, EndpointSnapshot, Snapshot
    from worker.monitoring.overview import Overview

#: Seconds over which outcomes are counted, once the screen has run for that long.
WINDOW = 60.0

#: The most rows of a table: an installation may have thousands of accounts.
ROWS = 50

#: Lines that every screen has: the title, the lanes with their heading, the outcomes,
#: three headings and the blanks above them.
FIXED = 11

Row = Sequence[str | Text]
T = TypeVar("T")


class Screen:
    """Draws overviews one after another, and keeps what it needs to compute rates."""

    def __init__(self) -> None:
        self._seen: deque[tuple[int, dict[str, int]]] = deque()

    def whole(self, found: "Overview", note: str = "") -> Group:
        """All lines; of a table, the first `ROWS`."""
        return self._drawn(found, None, note)

    def fitting(self, found: "Overview", height: int, note: str = "") -> Group:
        """As much as fits into `height` lines, and the number of rows left out."""
        return self._drawn(found, height, note)

    def _drawn(self, found: "Overview", height: int | None, note: str) -> Group:
        g = found.snapshot
        lately = self._lately(g)
        calls = _attention(found)
        sections: list[_Section[Any]] = [
            _Section(_ACCOUNTS, _failing_first(g), _account),
            _Section(_ENDPOINTS, g.endpoints, lambda one: _endpoint(one, g)),
            _Section(_WORKERS, _worst_first(g), lambda one: _worker(one, g.at)),
        ]
        if height is not None:
            notes = 1 if note else 0
            calls = calls[: max(1, height // 6)]
            _share(height - FIXED - len(calls) - notes, sections)
        parts: list[RenderableType] = [_title(found), *calls, _lanes(g), _outcomes(g, lately)]
        for section in sections:
            parts += [Text(), section.table()]
        if note:
            parts.append(Text(note, style="dim", overflow="ellipsis", no_wrap=True))
        return Group(*parts)

    def _lately(self, g: "Snapshot") -> tuple[int, dict[str, int]] | None:
        """Seconds, and the counts in them, as far back as this screen has run."""
        now = {"accepted": g.stats.get("accepted", 0), **finished(g)}
        self._seen.append((g.at, now))
        while len(self._seen) > 2 and g.at - self._seen[1][0] >= WINDOW * 1000:
            self._seen.popleft()
        at, before = self._seen[0]
        if g.at <= at:
            return None
        return -(-(g.at - at) // 1000), {name: n - before.get(name, 0) for name, n in now.items()}


class _Section(Generic[T]):
    """A table that may show only its first rows."""

    def __init__(self, headings: Sequence[str], rows: Sequence[T], row: Callable[[T], Row]) -> None:
        self.headings, self.rows, self.row = headings, rows, row
        self.most = min(ROWS, len(rows) or 1)

    def table(self) -> Table:
        """The rows that fit; the heading shows the total if there are more."""
        table = new_table()
        first, *others = self.headings
        cut = f" ({len(self.rows)})" if len(self.rows) > self.most else ""
        for heading in (f"{first}{cut}", *others):
            right = heading in _NUMBERS
            table.add_column(
                heading,
                justify="right" if right else "left",
                no_wrap=True,
                overflow="ellipsis",
                min_width=len(heading) if right else None,
            )
        for row in self.rows[: self.most]:
            table.add_row(*self.row(row))
        if not self.rows:
            table.add_row(Text("none", style="dim"))
        return table


_NUMBERS = {"in flight", "waiting", "calls/s", "pace", "pending", "dead", "oldest", "jobs", "up",
            "seen"}  # fmt: skip
_ACCOUNTS = ("account", "in flight", "waiting", "calls/s", "pace", "breaker", "reason")
_ENDPOINTS = ("endpoint", "pending", "dead", "oldest", "state")
_WORKERS = ("worker", "jobs", "up", "seen", "condition")


def _share(lines: int, sections: Sequence[_Section[Any]]) -> None:
    """Give each section at least one line, and share the other lines in turn."""
    wanted = [section.most for section in sections]
    for section in sections:
        section.most = 1
    left = lines - len(sections)
    while left > 0 and any(s.most < w for s, w in zip(sections, wanted, strict=True)):
        for section, most in zip(sections, wanted, strict=True):
            if left > 0 and section.most < most:
                section.most += 1
                left -= 1


def _title(found: "Overview") -> Text:
    g, server = found.snapshot, found.server
    at = datetime.fromtimestamp(g.at / 1000, UTC)
    conditions = [one.condition(g.at) for one in g.workers]
    well = conditions.count("well")
    workers = _many(well, "worker")
    memory = "" if server.memory is None else f"{server.memory / 2**20:.0f} MiB"
    if server.memory_limit:
        memory += f" of {server.memory_limit / 2**20:.0f}"
    queued = sum((found.queues or {}).values())
    broker = "broker away" if found.queues is None else f"broker {_number(queued)} waiting"
    return Text.assemble(
        (f"{at:%H:%M:%S}Z", "bold"),
        f"  {workers}  {broker}  {server.version} {memory}",
        overflow="ellipsis",
        no_wrap=True,
    )


def _attention(found: "Overview") -> list[Text]:
    """What needs a person's attention, the worst first."""
    g = found.snapshot
    dead = sum(g.dead.values())
    bad = [one for one in g.workers if one.condition(g.at) != "well"]
    said = [
        (not g.workers, "no worker sends a heartbeat"),
        (bad, f"{_many(len(bad), 'worker')} stuck or silent: regworker health --worker NAME"),
        (g.shares_broker, "another installation uses the broker, too: regworker doctor"),
        (found.queues is None, "the broker does not answer: only the alarm clock wakes jobs"),
        (
            g.overdue_by > 60,
            f"alarms are {time_arguments.length(g.overdue_by)} late: no worker's alarm clock "
            "rings them",
        ),
        (
            found.server.written is False,
            "the ledger's append-only file is not written: regworker doctor",
        ),
        (
            (found.server.memory_used or 0) > doctor.NEARLY_FULL,
            f"the ledger's memory is {found.server.memory_used or 0:.0%} full; at 100% it takes no "
            "jobs: regworker doctor",
        ),
        (
            not found.server.primary,
            "the ledger's server is a replica, which takes no writes: regworker doctor",
        ),
        (
            g.unreadable,
            f"{_many(len(g.unreadable), 'record')} of the ledger cannot be read: regworker doctor",
        ),
        (
            g.reviews,
            f"{_many(g.reviews, 'job')} in review, the first for "
            f"{time_arguments.length(_ago(g.review_since, g.at))}: regworker review list",
        ),
        (dead, f"{dead} dead deliveries: regworker deliveries list --state dead"),
        (
            g.quarantine,
            f"{_many(g.quarantine, 'message')} in quarantine: regworker quarantine list",
        ),
    ]
    return [
        Text(f"! {what}", style="bold yellow", overflow="ellipsis", no_wrap=True)
        for wanted, what in said
        if wanted
    ]


def _lanes(g: "Snapshot") -> Table:
    table = new_table()
    table.add_column("lane")
    for heading in ("queued", "due", "calling", "unknown", "review", "oldest"):
        table.add_column(heading, justify="right", min_width=7, no_wrap=True)
    for lane in ("live", "bulk"):
        found = {one.state: one for one in g.jobs if one.lane == lane}
        queued = found["queued"]
        # Jobs in review are shown under what needs attention.
        oldest = [one.oldest for one in found.values() if one.oldest and one.state != "review"]
        table.add_row(
            lane,
            _number(queued.count),
            _number(queued.count - queued.put_off),
            _number(found["calling"].count),
            _number(found["unknown"].count, "yellow"),
            _number(found["review"].count, "bold yellow"),
            time_arguments.length(_ago(min(oldest), g.at)) if oldest else "–",
        )
    return table


def _outcomes(g: "Snapshot", lately: tuple[int, dict[str, int]] | None) -> Text:
    totals = {"accepted": g.stats.get("accepted", 0), **finished(g)}
    names = ("accepted", "registered", "rejected", "abandoned", "cancelled")
    if lately is None:
        shown = [f"{name} {_number(totals[name])}" for name in names]
        return Text("in all: " + "  ".join(shown), overflow="ellipsis", no_wrap=True)
    seconds, counts = lately
    shown = [f"{name} {_number(counts[name])}" for name in names]
    return Text(f"last {seconds} s: " + "  ".join(shown), overflow="ellipsis", no_wrap=True)


def _account(one: "AccountSnapshot") -> Row:
    state = Text("paused", style="yellow") if one.paused else _breaker(one.breaker)
    most = f"/{one.max_in_flight}" if one.max_in_flight else ""
    return (
        f"{one.provider}/{one.account}",
        f"{one.in_flight}{most}",
        _number(one.waiting),
        f"{one.rate:.1f}" if one.rate else "–",
        f"{one.pace_used:.0%}" if one.rate else "–",
        state,
        Text(plain(one.reason), style="dim"),
    )


def _breaker(breaker: str) -> Text:
    return Text(breaker, style="green" if breaker == "closed" else "bold red")


def _endpoint(one: "EndpointSnapshot", g: "Snapshot") -> Row:
    if one.disabled:
        state = Text("disabled", style="bold red")
    elif one.failing_since:
        state = Text(
            f"fails for {time_arguments.length(_ago(one.failing_since, g.at))}", style="yellow"
        )
    else:
        state = Text("accepts all", style="green")
    oldest = time_arguments.length(_ago(one.oldest, g.at)) if one.oldest else "–"
    dead = _number(g.dead.get(one.name, 0), "bold red")
    return (one.name, _number(one.pending), dead, oldest, state)


def _failing_first(g: "Snapshot") -> list["AccountSnapshot"]:
    return sorted(g.accounts, key=lambda one: one.breaker == "closed" and not one.paused)


def _worst_first(g: "Snapshot") -> list["Beat"]:
    return sorted(g.workers, key=lambda one: (one.condition(g.at) == "well", one.name))


def _worker(one: "Beat", at: int) -> Row:
    condition = one.condition(at)
    text = condition if condition != "stuck" else f"stuck: {', '.join(one.silent(at))}"
    return (
        plain(one.name),
        f"{one.in_flight}/{one.slots}",
        time_arguments.length(one.up + one.since(at)),
        time_arguments.length(one.since(at)),
        Text(text, style="green" if condition == "well" else "bold red"),
    )


def _many(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _number(number: int, style: str = "") -> Text:
    return Text(f"{number:,}".replace(",", " "), style=style if number else "")


def _ago(at: int, now: int) -> float:
    return max(0.0, (now - at) / 1000) if at else 0.0

"""Small line charts as SVG, of one size: computed here, drawn by a template."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from worker.gateway.pages.history import Point
from worker.gateway.pages.render import length, number

WIDTH, HEIGHT = 240, 48

#: The most points of a line: more than one for each two pixels would not be visible.
MOST = 60


@dataclass(frozen=True, slots=True)
class Chart:
    """One line over the last hour. `line`, `area`: SVG paths; empty without any data."""

    title: str
    now: str
    most: str
    line: str
    area: str

    @property
    def words(self) -> str:
        """The same as text, for screen readers."""
        return f"{self.title}: {self.now} now, at most {self.most} in the last hour"


@dataclass(frozen=True, slots=True)
class AccountCharts:
    """The charts of one account."""

    name: str
    charts: tuple[Chart, ...]


def by_account(points: Sequence[Point], names: Sequence[str]) -> list[AccountCharts]:
    """Outcomes per minute, latency and waiting jobs of each account."""
    return [
        AccountCharts(
            name,
            (
                _chart("Outcomes a minute", _speeds(points, name), number),
                _chart("Median time to registered", _latency(points, name), _took),
                _chart("Waiting", [(p.at, p.waiting.get(name, 0)) for p in points], number),
            ),
        )
        for name in names
    ]


def _took(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 60 else length(seconds)


def _latency(points: Sequence[Point], name: str) -> list[tuple[int, float]]:
    return [(p.at, p.latency[name]) for p in points if name in p.latency]


def _speeds(points: Sequence[Point], name: str) -> list[tuple[int, float]]:
    found = []
    for before, after in pairwise(points):
        minutes = max(1, after.at - before.at) / 60_000
        found.append((after.at, after.ended.get(name, 0) / minutes))
    return found


def _chart(title: str, values: Sequence[tuple[int, float]], words: Callable[[float], str]) -> Chart:
    if not values:
        return Chart(title, "–", "–", "", "")
    most = max(value for _, value in values)
    now, peak = words(values[-1][1]), words(most)
    values = _thinned(values)
    if len(values) < 2:
        return Chart(title, now, peak, "", "")
    first, last = values[0][0], values[-1][0]
    places = [
        (
            (at - first) / max(1, last - first) * WIDTH,
            HEIGHT - 2 - (value / most if most else 0) * (HEIGHT - 6),
        )
        for at, value in values
    ]
    line = "M" + " L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    return Chart(title, now, peak, line, f"{line} L{WIDTH} {HEIGHT} L0 {HEIGHT} Z")


def _thinned(values: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most `MOST` points, each the maximum of its neighbours, so that a short peak stays
    visible."""
    size = -(-len(values) // MOST)
    groups = [values[i : i + size] for i in range(0, len(values), size)]
    return [(group[-1][0], max(value for _, value in group)) for group in groups]

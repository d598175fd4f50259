"""Curves over the jobs of a run, one small chart each, in one SVG, made without a library."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

#: Pixels: of each chart with its margins, and of the margins.
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 410, 170, 62, 18, 34, 26

#: Charts side by side.
COLUMNS = 2

#: A point for each pixel is enough.
MOST = WIDTH - LEFT - RIGHT

INK, LINE, SHADE = "#222222", "#2a9d5c", "#eef4ee"


@dataclass(frozen=True, slots=True)
class Curve:
    """What one chart shows."""

    title: str
    points: Sequence[tuple[float, float]]
    """Jobs, and the value."""


def svg(title: str, curves: Sequence[Curve], jobs: int) -> str:
    """Draw them, each from 0 up, with its second and its last quarter shaded."""
    rows = -(-len(curves) // COLUMNS)
    size = f"{COLUMNS * WIDTH} {TOP + rows * HEIGHT}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" '
            'font-family="system-ui, sans-serif" font-size="12">',
            '<rect width="100%" height="100%" fill="#ffffff"/>',
            f'<text x="12" y="24" font-size="16" font-weight="600" fill="{INK}">'
            f"{escape(title)}</text>",
            *(_chart(number, curve, jobs) for number, curve in enumerate(curves)),
            "</svg>\n",
        ]
    )


def _chart(number: int, curve: Curve, jobs: int) -> str:
    x, y = number % COLUMNS * WIDTH, TOP + number // COLUMNS * HEIGHT
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    points = curve.points[:: len(curve.points) // MOST + 1]
    top = 1.2 * max((value for _, value in points), default=0.0) or 1.0
    line = " ".join(
        f"{at / jobs * wide:.1f},{high - value / top * high:.1f}" for at, value in points
    )
    shades = "".join(
        f'<rect x="{quarter / 4 * wide:.1f}" width="{wide / 4:.1f}" height="{high}" '
        f'fill="{SHADE}"/>'
        for quarter in (1, 3)
    )
    return (
        f'<g transform="translate({x + LEFT} {y + TOP})">{shades}'
        f'<text y="-8" font-weight="600" fill="{INK}">{escape(curve.title)}</text>'
        f'<text x="-8" y="10" text-anchor="end" fill="#555555">{top:,.0f}</text>'
        f'<text x="-8" y="{high}" text-anchor="end" fill="#555555">0</text>'
        f'<text x="{wide}" y="{high + 16}" text-anchor="end" fill="#555555">{jobs:,} jobs</text>'
        f'<path d="M0 0V{high}H{wide}" fill="none" stroke="#9a9a9a"/>'
        f'<polyline points="{line}" fill="none" stroke="{LINE}" stroke-width="1.5"/></g>'
    )

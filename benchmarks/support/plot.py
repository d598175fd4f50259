"""The plot: CPU time per job of each contestant, as bars in an SVG, made without a library."""

from collections.abc import Sequence
from html import escape

from benchmarks.support.report import Summary

#: Pixels.
WIDTH, LABELS, BAR, GAP, TOP = 820, 230, 18, 8, 64

#: The longest bar: with a longer scale, the slowest would leave the others no room; numbers show
#: the value.
MOST_MS = 8.0

COLOURS = {"ours": "#2a9d5c", "tuned": "#5b8dbf", "peer": "#b3c7dc", "floor": "#9a9a9a"}
LEGEND = {
    "ours": "ours, all guarantees on",
    "tuned": "tuned",
    "peer": "as documented",
    "floor": "bare loop, no queue",
}


def svg(summaries: Sequence[Summary]) -> str:
    """Draw them, the cheapest on top."""
    height = TOP + len(summaries) * (BAR + GAP) + GAP
    rows = [_row(number, one) for number, one in enumerate(summaries)]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            'font-family="system-ui, sans-serif" font-size="13">',
            f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
            '<text x="12" y="24" font-size="16" font-weight="600" fill="#222222">'
            "CPU a job of the worker process, in milliseconds (less is better)</text>",
            *_legend(),
            *rows,
            "</svg>\n",
        ]
    )


def _legend() -> list[str]:
    parts, x = [], 12
    for kind, words in LEGEND.items():
        parts.append(f'<rect x="{x}" y="38" width="11" height="11" fill="{COLOURS[kind]}"/>')
        parts.append(f'<text x="{x + 16}" y="48" fill="#555555">{words}</text>')
        x += 40 + 7 * len(words)
    return parts


def _row(number: int, one: Summary) -> str:
    y = TOP + number * (BAR + GAP)
    room = WIDTH - LABELS - 80
    length = max(1.0, min(one.cpu_ms, MOST_MS) / MOST_MS * room)
    weight = 600 if one.kind == "ours" else 400
    cut = " …" if one.cpu_ms > MOST_MS else ""
    return (
        f'<text x="{LABELS - 8}" y="{y + 13}" text-anchor="end" font-weight="{weight}" '
        f'fill="#222222">{escape(one.name)}</text>'
        f'<rect x="{LABELS}" y="{y}" width="{length:.0f}" height="{BAR}" rx="2" '
        f'fill="{COLOURS[one.kind]}"/>'
        f'<text x="{LABELS + length + 6:.0f}" y="{y + 13}" fill="#222222">'
        f"{one.cpu_ms:.2f}{cut}</text>"
    )

"""Draws the diagrams of the documentation: `docs/images/NAME.svg` from `docs/diagrams/NAME.toml`.

`make diagrams` writes them; `python docs/diagrams/draw.py FOLDER` writes them into another folder.

A diagram has a `title`, a `size`, and lists of

box    `name`, `at` (left, top), `size`, `text`, maybe `note` (lines under it), `kind` (its colour)
text   `at` (left, baseline), `text`
legend what a colour means: a kind, or more words after it = where (left, baseline)
arrow  `from` and `to`: a box and a side, `ledger:e+20` is its right side, 20 below the middle;
       maybe `via` (points on the way), `text` (above the longest part), `kind`, `dashed`, `number`

The diagram of states takes its boxes and arrows from `regworker.domain.states`; its file says only
where they are. A state or an edge without a place is an error.
"""

import re
import sys
import tomllib
from html import escape
from itertools import pairwise
from math import dist
from pathlib import Path
from typing import Any

from regworker.domain.states import EDGES, FINAL, PARKED, State

HERE = Path(__file__).parent

#: Fill and line of boxes, by kind.
BOXES = {
    "": ("#ffffff", "#64748b"),
    "ours": ("#e0f2fe", "#0369a1"),
    "store": ("#ede9fe", "#6d28d9"),
    "outside": ("#f1f5f9", "#64748b"),
    "good": ("#dcfce7", "#15803d"),
    "waits": ("#fef9c3", "#a16207"),
    "person": ("#ffedd5", "#c2410c"),
    "frame": ("none", "#cbd5e1"),
}
#: Lines of arrows, by kind. Arrows of states are coloured by the script that takes them.
ARROWS = {
    "": "#334155",
    "answer": "#64748b",
    "lost": "#b91c1c",
    "claim": "#0369a1",
    "settle": "#15803d",
    "resolve": "#c2410c",
    "redrive": "#c2410c",
    "cancel": "#64748b",
    "abandon": "#64748b",
}
Point = tuple[float, float]


def draw(diagram: dict[str, Any]) -> str:
    """The diagram as SVG."""
    width, height = diagram["size"]
    boxes = {box["name"]: box for box in diagram.get("box", [])}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
        f' width="{width}" height="{height}" role="img">',
        f"<title>{escape(diagram['title'])}</title>",
        f"<style>\n{(HERE / 'style.css').read_text('utf-8')}</style>",
        f'<rect width="{width}" height="{height}" rx="12" fill="#fff"/>',
        *(_head(kind, colour) for kind, colour in ARROWS.items()),
        *(_arrow(arrow, boxes) for arrow in diagram.get("arrow", [])),
        *(_box(box) for box in boxes.values()),
        *(_text(text["at"], text["text"], "n", "start") for text in diagram.get("text", [])),
        *(_dot(at, name) for name, at in diagram.get("legend", {}).items()),
    ]
    return "\n".join([*parts, "</svg>\n"])


def _head(kind: str, colour: str) -> str:
    return (
        f'<marker id="head-{kind}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" '
        f'markerHeight="8" orient="auto"><path d="M0 1 10 5 0 9z" fill="{colour}"/></marker>'
    )


def _text(at: Point, text: str, style: str, anchor: str = "middle") -> str:
    where = f'x="{at[0]:g}" y="{at[1]:g}" text-anchor="{anchor}"'
    return f'<text {where} class="{style}">{escape(text)}</text>'


def _dot(at: Point, name: str) -> str:
    """A line of the legend: what a colour means."""
    colour = ARROWS[re.split(r"\W", name)[0]]
    circle = f'<circle cx="{at[0]}" cy="{at[1] - 5}" r="6" fill="{colour}"/>'
    return circle + _text((at[0] + 14, at[1]), name, "n", "start")


def _box(box: dict[str, Any]) -> str:
    (x, y), (width, height) = box["at"], box["size"]
    fill, line = BOXES[box.get("kind", "")]
    notes = box.get("note", "").splitlines()
    top = y + 26 if box.get("top") else y + height / 2 + 5 - 9 * len(notes)
    lines = [_text((x + width / 2, top), box["text"], "t")]
    lines += [_text((x + width / 2, top + 18 * n), note, "n") for n, note in enumerate(notes, 1)]
    where = f'x="{x}" y="{y}" width="{width}" height="{height}" rx="8"'
    return f'<rect {where} class="box" fill="{fill}" stroke="{line}"/>' + "".join(lines)


def _port(where: str, boxes: dict[str, Any]) -> Point:
    """`name:side+shift` as a point on the box's edge."""
    found = re.fullmatch(r"([\w-]+):([nesw])([+-]\d+)?", where)
    if found is None or found[1] not in boxes:
        raise ValueError(f"no such box and side: {where}")
    (x, y), (width, height) = boxes[found[1]]["at"], boxes[found[1]]["size"]
    shift = int(found[3] or 0)
    middle = (x + width / 2 + shift, y + height / 2 + shift)
    return {
        "n": (middle[0], y),
        "s": (middle[0], y + height),
        "e": (x + width, middle[1]),
        "w": (x, middle[1]),
    }[found[2]]


def _arrow(arrow: dict[str, Any], boxes: dict[str, Any]) -> str:
    kind = arrow.get("kind", "")
    via = [tuple(point) for point in arrow.get("via", [])]
    points: list[Point] = [_port(arrow["from"], boxes), *via, _port(arrow["to"], boxes)]
    path = f"M{points[0][0]:g} {points[0][1]:g}"
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        a, b = _near(corner, before), _near(corner, after)
        path += f" L{a[0]:g} {a[1]:g} Q{corner[0]:g} {corner[1]:g} {b[0]:g} {b[1]:g}"
    path += f" L{points[-1][0]:g} {points[-1][1]:g}"
    style = f'class="way{" dashed" if arrow.get("dashed") else ""}" stroke="{ARROWS[kind]}"'
    line = f'<path d="{path}" {style} marker-end="url(#head-{kind})"/>'
    a, b = max(pairwise(points), key=lambda part: dist(*part))
    share = arrow.get("label", 0.5)
    middle = (a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share)
    if number := arrow.get("number"):
        circle = f'<circle cx="{middle[0]:g}" cy="{middle[1]:g}" r="10" fill="{ARROWS[kind]}"/>'
        return line + circle + _text((middle[0], middle[1] + 4), str(number), "c")
    return line + _text((middle[0], middle[1] - 7), arrow.get("text", ""), "l")


def _near(corner: Point, other: Point) -> Point:
    """A point 10 from the corner, where its rounding begins."""
    share = min(0.5, 10 / max(dist(corner, other), 1))
    return corner[0] + (other[0] - corner[0]) * share, corner[1] + (other[1] - corner[1]) * share


def of_states(places: dict[str, Any]) -> dict[str, Any]:
    """The diagram of states: all that there are, and every edge, numbered as in `EDGES`."""
    at, ways = places.pop("at"), places.pop("way")
    boxes = [
        {"name": state, "text": state, "at": at[state], "size": (150, 64), "kind": _kind(state)}
        for state in State
    ]
    arrows = [
        {**ways[f"{a} {b}"], "number": number, "kind": re.split(r" |:", why)[0]}
        for number, ((a, b), why) in enumerate(EDGES.items(), 1)
    ]
    if unknown := set(ways) - {f"{a} {b}" for a, b in EDGES}:
        raise ValueError(f"no such edges: {unknown}")
    for arrow, (a, b) in zip(arrows, EDGES, strict=True):
        arrow["from"], arrow["to"] = f"{a}:{arrow['from']}", f"{b}:{arrow['to']}"
    return {**places, "box": [*boxes, *places.get("box", [])], "arrow": arrows}


def _kind(state: State) -> str:
    if state in FINAL:
        return "good" if state is State.REGISTERED else "outside"
    return "person" if state in PARKED else "waits" if state is State.UNKNOWN else "ours"


def table() -> str:
    """Every edge, numbered as in the diagram."""
    rows = ["| | from | to | taken by | when |", "|---:|---|---|---|---|"]
    for number, ((before, after), why) in enumerate(EDGES.items(), 1):
        script, _, when = why.partition(": ")
        rows.append(f"| {number} | `{before}` | `{after}` | {script} | {when} |")
    return "\n".join(rows)


def main(folder: Path) -> None:
    """Draw all of them, and write the table of edges into its page."""
    for file in sorted(HERE.glob("*.toml")):
        diagram = tomllib.loads(file.read_text("utf-8"))
        diagram = of_states(diagram) if file.stem == "states" else diagram
        (folder / f"{file.stem}.svg").write_text(draw(diagram), "utf-8")
    page = (HERE.parent / "states.md").read_text("utf-8")
    before, _, rest = page.partition("<!-- edges -->\n")
    _, _, after = rest.partition("<!-- /edges -->")
    written = f"{before}<!-- edges -->\n{table()}\n<!-- /edges -->{after}"
    (folder.parent / "states.md").write_text(written, "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parent / "images")

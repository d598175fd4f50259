"""The columns of a CSV file and the meaning of their cells, derived from the JSON Schemas.

A column is a path into the job, with dots; a number is a position in a list. The field's type
decides how a cell is read: a text stays exactly as it is (`0123`, `true`, blanks at its ends); a
cell is read as a number or as true/false only if the field has that type.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from regworker.domain.errors import Problem

Schema = Mapping[str, Any]

#: The cell for an empty text: an empty cell omits its field.
EMPTY = "''"

_REGISTRATION = "registration"
_INDEX = re.compile(r"0|[1-9]\d{0,3}", re.ASCII)
_INTEGER = re.compile(r"-?(0|[1-9]\d{0,17})", re.ASCII)
_NUMBER = re.compile(r"-?(0|[1-9]\d{0,17})(\.\d{1,17})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Column:
    """Where a column's cells go, and what they may contain. A number in `path` is a position in a
    list."""

    name: str
    path: tuple[str | int, ...]
    types: frozenset[str]


class Columns:
    """The possible columns of a job. `registrations`: each provider's schema, by its name."""

    def __init__(self, job: Schema, registrations: Mapping[str, Schema]) -> None:
        self._job = job
        self._registrations = registrations
        # A file has a few columns and many rows.
        self.find = cache(self._find)

    def problems(self, names: Sequence[str]) -> list[Problem]:
        """The errors of a header."""
        return [
            problem
            for number, name in enumerate(names, 1)
            if (problem := self._problem(number, name, names))
        ]

    def job(
        self, names: Sequence[str], cells: Sequence[str], provider: str | None
    ) -> tuple[dict[str, Any], list[Problem]]:
        """The job of a row. `provider`: for rows without a provider column."""
        given = dict(zip(names, cells, strict=True))
        provider = given.get("provider") or provider
        problems: list[Problem] = []
        job: dict[str | int, Any] = {}
        for name, cell in given.items():
            if not cell:
                continue
            column = self.find(name, provider if provider in self._registrations else None)
            if column is None:
                problems.append(Problem("invalid", name, f"is not a field of {provider}'s jobs"))
                continue
            value = _value(cell, column)
            if isinstance(value, Problem):
                problems.append(value)
            else:
                _put(job, column.path, value)
        return _with_lists(job, "", problems), problems

    def _find(self, name: str, provider: str | None) -> Column | None:
        first, *rest = name.split(".")
        if first != _REGISTRATION:
            return _column(name, self._job, [first, *rest], ())
        known = [self._registrations[provider]] if provider else self._registrations.values()
        for schema in known:
            if column := _column(name, schema, rest, (first,)):
                return column
        return None

    def _problem(self, number: int, name: str, names: Sequence[str]) -> Problem | None:
        if not name:
            return Problem("invalid", "", f"column {number} has no name; give it one, or delete it")
        if Counter(names)[name] > 1:
            return Problem("invalid", name, "there are two columns of this name; delete one")
        if inside := next((other for other in names if name.startswith(f"{other}.")), None):
            return Problem(
                "invalid", name, f"this column is a part of another, {inside}; delete one"
            )
        if column := self.find(name, None):
            if column.types <= {"array", "object", "null"}:
                what = f"takes a column for each of its parts, as in {name}.0 or {name}.part"
                return Problem("invalid", name, what)
            return None
        what = "is no column of a job"
        if self.find(f"{_REGISTRATION}.{name}", None):
            what += f"; is it {_REGISTRATION}.{name}?"
        return Problem("invalid", name, what)


def _column(
    name: str, schema: Schema, parts: Sequence[str], path: tuple[str | int, ...]
) -> Column | None:
    nodes = list(_alternatives(schema, schema))
    for part in parts:
        found: list[Schema] = []
        place: str | int = part
        for node in nodes:
            step = _step(node, part)
            if step is not None:
                place, inner = step
                found.extend(_alternatives(inner, schema))
        if not found or not part:
            return None
        nodes, path = found, (*path, place)
    types = frozenset(type_ for node in nodes for type_ in _types(node))
    return Column(name, path, types) if path else None


def _alternatives(node: Schema, root: Schema) -> Iterator[Schema]:
    if ref := node.get("$ref"):
        yield from _alternatives(root["$defs"][ref.rpartition("/")[2]], root)
    elif inner := node.get("anyOf") or node.get("oneOf") or node.get("allOf"):
        for one in inner:
            yield from _alternatives(one, root)
    else:
        yield node


def _step(node: Schema, part: str) -> tuple[str | int, Schema] | None:
    if node.get("type") == "array":
        if not _INDEX.fullmatch(part):
            return None
        index = int(part)
        first: Sequence[Schema] = node.get("prefixItems", ())
        if index < len(first):
            return index, first[index]
        items = node.get("items")
        return (index, items) if isinstance(items, Mapping) else None
    if part in node.get("properties", {}):
        return part, node["properties"][part]
    # Free content (metadata) may have any column below it, down to a text.
    more = node.get("additionalProperties", None if "type" in node else {})
    return (part, more) if isinstance(more, Mapping) else None


def _types(node: Schema) -> Iterator[str]:
    type_ = node.get("type", "string")
    yield from [type_] if isinstance(type_, str) else type_


def _value(cell: str, column: Column) -> Any:
    types, bare = column.types, cell.strip()
    if "string" in types:
        return "" if cell == EMPTY else cell
    if "null" in types and bare == "null":
        return None
    if "boolean" in types and bare.lower() in {"true", "false"}:
        return bare.lower() == "true"
    if types & {"integer", "number"} and _INTEGER.fullmatch(bare):
        return int(bare)
    if "number" in types and _NUMBER.fullmatch(bare):
        return float(bare)
    wanted = [word for type_, word in _WORDS.items() if type_ in types]
    return Problem("invalid", column.name, f"the cell is not {' or '.join(wanted) or 'its parts'}")


_WORDS = {
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
}


def _put(node: dict[str | int, Any], path: Sequence[str | int], value: Any) -> None:
    for part in path[:-1]:
        node = node.setdefault(part, {})
    node[path[-1]] = value


def _with_lists(node: Any, path: str, problems: list[Problem]) -> Any:
    """The tree, with each group of numbered parts turned into a list."""
    if not isinstance(node, dict):
        return node
    made = {
        part: _with_lists(inner, f"{path}.{part}" if path else str(part), problems)
        for part, inner in node.items()
    }
    if not any(isinstance(part, int) for part in made):
        return made
    places = sorted(made)
    for expected, place in enumerate(places):
        if place != expected:
            # Closing the gap would change which phone is the first.
            what = f"is left out, while {path}.{place} is given"
            problems.append(Problem("missing", f"{path}.{expected}", what))
            break
    return [made[place] for place in places]

"""Whether a schema is compatible with an older one of the same contract.

Input: everything that the older schema accepted must still be accepted. Output: everything that
may come now must have been allowed before, and no field may be missing. The comparison is by
structure, and careful: it reports whatever it cannot prove to be harmless."""

import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]

_LOWER = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_UPPER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")


def breaks_senders(old: Schema, new: Schema) -> list[str]:
    """What the older schema allows and the newer one doesn't."""
    return sorted(set(_narrowed(old, new, old, new, "", frozenset())))


def breaks_readers(old: Schema, new: Schema) -> list[str]:
    """What the newer schema allows and the older one doesn't, and fields that are gone."""
    return sorted(
        {
            *_narrowed(new, old, new, old, "", frozenset()),
            *(f"{path}: gone" for path in _fields(old, old) - _fields(new, new)),
        }
    )


def _narrowed(
    wide: Schema,
    narrow: Schema,
    wide_root: Schema,
    narrow_root: Schema,
    at: str,
    seen: frozenset[Any],
) -> Iterator[str]:
    """What `wide` allows and `narrow` doesn't."""
    pair = (wide.get("$ref"), narrow.get("$ref"))
    if any(pair):
        if pair in seen:
            return
        seen |= {pair}
    ones, others = _alternatives(wide, wide_root), _alternatives(narrow, narrow_root)
    if len(ones) == len(others) == 1:
        yield from _narrower(ones[0], others[0], wide_root, narrow_root, at, seen)
        return
    for one in ones:
        # Compared with the schema of the same name, if there is one; that it also fits a looser one
        # does not help.
        title = one.get("title", ())
        chosen = [other for other in others if other.get("title") == title] or others
        found = [list(_narrowed(one, other, wide_root, narrow_root, at, seen)) for other in chosen]
        if all(found):
            yield from min(found, key=len)


def _narrower(
    wide: Schema,
    narrow: Schema,
    wide_root: Schema,
    narrow_root: Schema,
    at: str,
    seen: frozenset[Any],
) -> Iterator[str]:
    def inner(one: Schema, other: Schema, where: str) -> Iterator[str]:
        return _narrowed(one, other, wide_root, narrow_root, where, seen)

    types, allowed = _types(wide), _types(narrow)
    if allowed and not (types and types <= allowed):
        yield f"{at}: of type {', '.join(sorted(types or {'any'}))}"
    if (values := _values(narrow)) is not None:
        for value in _values(wide) or ["any other"]:
            if value not in values:
                yield f"{at}: {value!r}"
    for name in _LOWER:
        if narrow.get(name, float("-inf")) > wide.get(name, float("-inf")):
            yield f"{at}: below {name} {narrow[name]}"
    for name in _UPPER:
        if narrow.get(name, float("inf")) < wide.get(name, float("inf")):
            yield f"{at}: above {name} {narrow[name]}"
    for name in ("pattern", "format"):
        if name in narrow and narrow[name] != wide.get(name):
            if name == "pattern" and _within(wide.get(name, ""), narrow[name]):
                continue
            yield f"{at}: not of {name} {narrow[name]}"
    for name in sorted(set(narrow.get("required", ())) - set(wide.get("required", ()))):
        yield f"{at}.{name}: left out"
    fields, known = wide.get("properties", {}), narrow.get("properties", {})
    closed = narrow.get("additionalProperties") is False
    for name, field in fields.items():
        if name in known:
            yield from inner(field, known[name], f"{at}.{name}")
        elif closed:
            yield f"{at}.{name}: given"
    if closed and "object" in types and wide.get("additionalProperties") is not False:
        yield f"{at}: with other fields"
    for name in ("items", "additionalProperties"):
        one, other = wide.get(name, {}), narrow.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from inner(one, other, f"{at}[]")
    yield from _rules(wide, narrow, inner, at)


def _rules(wide: Schema, narrow: Schema, inner: Any, at: str) -> Iterator[str]:
    """The rules in `allOf` with `if` and `then`, and in `oneOf` beside a type."""
    for rule in narrow.get("allOf", ()):
        same = [one for one in wide.get("allOf", ()) if one.get("if") == rule.get("if")]
        if not same:
            yield f"{at}: against a rule that is new"
        for one in same:
            yield from inner(one.get("then", {}), rule.get("then", {}), at)
    if "type" in narrow and narrow.get("oneOf") not in (None, wide.get("oneOf")):
        yield f"{at}: against a choice that is new"


def _alternatives(node: Schema, root: Schema) -> list[Schema]:
    if ref := node.get("$ref"):
        return _alternatives(root["$defs"][ref.rpartition("/")[2]], root)
    if inner := node.get("anyOf"):
        return [found for one in inner for found in _alternatives(one, root)]
    return [node]


def _types(node: Schema) -> set[str]:
    given = node.get("type", [])
    types = {given} if isinstance(given, str) else set(given)
    return types | {"integer"} if "number" in types else types


def _values(node: Schema) -> list[Any] | None:
    if "const" in node:
        return [node["const"]]
    return node.get("enum")


def _fields(
    node: Schema, root: Schema, at: str = "", seen: frozenset[str] = frozenset()
) -> set[str]:
    """The paths of all fields."""
    if node.get("$ref") in seen:
        return set()
    seen |= {node["$ref"]} if "$ref" in node else frozenset()
    found: set[str] = set()
    for one in _alternatives(node, root):
        for name, field in one.get("properties", {}).items():
            found |= {f"{at}.{name}"} | _fields(field, root, f"{at}.{name}", seen)
        if isinstance(one.get("items"), Mapping):
            found |= _fields(one["items"], root, f"{at}[]", seen)
    return found


_ONE_CLASS = re.compile(r"\^\[[^\]]+\]\+\$")


def _within(old: str, new: str) -> bool:
    """Whether every text of the old pattern fits a new one; for patterns of one character class."""
    if not (_ONE_CLASS.fullmatch(old) and _ONE_CLASS.fullmatch(new)):
        return False
    every = "".join(map(chr, range(sys.maxunicode + 1)))
    taken = "".join(re.findall(old[1:-2], every))
    return re.fullmatch(new[1:-1], taken) is not None

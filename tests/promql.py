"""As much of PromQL as our alerts need, evaluated over real scrapes: which of them would fire.

Expressions are parsed by Prometheus' grammar; what is not understood here is refused, never
guessed.
"""

import math
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import promql_parser as promql
from prometheus_client.parser import text_string_to_metric_families

Labels = frozenset[tuple[str, str]]
Vector = dict[Labels, float]
Samples = Mapping[str, Vector]

_ARITHMETIC: dict[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": lambda a, b: a / b if b else math.nan,
}
_COMPARING: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
}
_TOGETHER: dict[str, Callable[[Iterable[float]], float]] = {"sum": sum, "max": max, "min": min}


def scrape(*texts: str) -> Samples:
    """The samples of metrics pages, by name."""
    found: dict[str, Vector] = {}
    for text in texts:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value
    return found


def names(text: str) -> set[str]:
    """Every name that a metrics page can have samples of, also of what has not happened yet."""
    found = set()
    for family in text_string_to_metric_families(text):
        match family.type:
            case "counter":
                found.add(f"{family.name}_total")
            case "histogram":
                found |= {f"{family.name}_{part}" for part in ("bucket", "count", "sum")}
            case _:
                found.add(family.name)
    return found


def parse(expression: str) -> Any:
    """Parse; Grafana's own interval stands for one that Prometheus knows."""
    return promql.parse(expression.replace("$__rate_interval", "5m"))


def selected(expression: str) -> set[str]:
    """The names of the metrics that an expression looks at."""
    return {one.name for one in _selectors(parse(expression))}


def evaluate(expression: str, now: Samples, before: Samples | None = None) -> Vector:
    """What an expression comes to; an alert of it fires for each that is left.

    `before`: an earlier scrape, for `increase`, whatever its range.
    """
    found = _of(parse(expression), now, before or {})
    assert isinstance(found, dict), "a scalar is no alert"
    return found


def _selectors(node: Any) -> Iterator[Any]:
    if isinstance(node, promql.VectorSelector):
        yield node
    for name in ("expr", "lhs", "rhs", "vector_selector"):
        if name in dir(node):
            yield from _selectors(getattr(node, name))
    for argument in getattr(node, "args", []):
        yield from _selectors(argument)


def _of(node: Any, now: Samples, before: Samples) -> Vector | float:
    match node:
        case promql.NumberLiteral():
            return float(node.val)
        case promql.ParenExpr():
            return _of(node.expr, now, before)
        case promql.VectorSelector():
            return _selected(node, now)
        case promql.AggregateExpr():
            return _aggregated(node, now, before)
        case promql.BinaryExpr():
            return _combined(node, now, before)
        case promql.Call():
            return _called(node, now, before)
        case _:
            raise NotImplementedError(str(node))


def _selected(node: Any, samples: Samples) -> Vector:
    return {
        labels: value
        for labels, value in samples.get(node.name, {}).items()
        if all(_matches(one, dict(labels)) for one in node.matchers.matchers)
    }


def _matches(matcher: Any, labels: Mapping[str, str]) -> bool:
    value = labels.get(matcher.name, "")
    match str(matcher.op):
        case "MatchOp.Equal":
            return value == str(matcher.value)
        case "MatchOp.NotEqual":
            return value != str(matcher.value)
        case "MatchOp.Re":
            return re.fullmatch(matcher.value, value) is not None
        case "MatchOp.NotRe":
            return re.fullmatch(matcher.value, value) is None
        case other:
            raise NotImplementedError(other)


def _aggregated(node: Any, now: Samples, before: Samples) -> Vector:
    inner = _of(node.expr, now, before)
    assert isinstance(inner, dict)
    kept = set(node.modifier.labels) if node.modifier else set()
    groups: dict[Labels, list[float]] = {}
    for labels, value in inner.items():
        key = frozenset((name, text) for name, text in labels if name in kept)
        groups.setdefault(key, []).append(value)
    return {labels: _TOGETHER[str(node.op)](values) for labels, values in groups.items()}


def _combined(node: Any, now: Samples, before: Samples) -> Vector | float:
    left, right, op = _of(node.lhs, now, before), _of(node.rhs, now, before), str(node.op)
    if op == "or":
        assert isinstance(left, dict)
        assert isinstance(right, dict)
        return {**right, **left}
    assert isinstance(left, dict), "a vector stands on the left in all of ours"
    if isinstance(right, dict):
        pairs = {labels: (left[labels], right[labels]) for labels in left.keys() & right.keys()}
    else:
        pairs = {labels: (value, right) for labels, value in left.items()}
    if op in _COMPARING:
        return {labels: a for labels, (a, b) in pairs.items() if _COMPARING[op](a, b)}
    return {labels: _ARITHMETIC[op](a, b) for labels, (a, b) in pairs.items()}


def _called(node: Any, now: Samples, before: Samples) -> Vector:
    [argument] = node.args
    match node.func.name:
        case "absent":
            return {} if _of(argument, now, before) else {frozenset(): 1.0}
        case "increase":
            latest = _selected(argument.vector_selector, now)
            earlier = _selected(argument.vector_selector, before)
            return {labels: n - earlier.get(labels, 0.0) for labels, n in latest.items()}
        case other:
            raise NotImplementedError(other)

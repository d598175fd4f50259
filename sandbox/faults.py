"""Faults: what can go wrong with a call, and which calls they affect."""

import random
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

from sandbox import checks
from sandbox.checks import BadControl

Kind = Literal[
    "none",  # a normal answer: lets calls pass before the next rule, or exempts them from the rates
    "drop_before_commit",  # reads the request, does nothing, closes the connection
    "commit_then_drop",  # carries out the call, closes the connection without an answer
    "late_commit",  # answers nothing; carries out the call `delay` seconds after the request
    "slow",  # carries out the call `delay` seconds after the request, then answers
    "too_many",  # 429, with or without Retry-After
    "server_error",  # 500, 502, 503 or 504
    "html",  # 200 with a page instead of JSON
    "truncated",  # promises the whole body, sends half of it, closes the connection
    "missing_key",  # Open2b: ok without X-Customer-Key; SkyPostal: the odd shape
    "reset",  # a TCP RST instead of an answer
    "unauthorized",  # 401
    "forbidden",  # 403
    "hang",  # never answers; holds the connection until the client leaves
    "repeated",  # answers, and sends the same bytes again `delay` seconds later; 0: together
    "bomb",  # 988 bytes that become 1.1 GB (`content-encoding: gzip, gzip`)
]

KINDS: tuple[Kind, ...] = get_args(Kind)

#: The parameters of each kind, besides those that select the call.
PARAMETERS: Mapping[Kind, frozenset[str]] = {
    "none": frozenset(),
    "drop_before_commit": frozenset(),
    "commit_then_drop": frozenset(),
    "late_commit": frozenset({"delay", "hold"}),
    "slow": frozenset({"delay"}),
    "too_many": frozenset({"retry_after", "retry_after_date"}),
    "server_error": frozenset({"status", "commit", "retry_after", "retry_after_date"}),
    "html": frozenset({"commit"}),
    "truncated": frozenset({"commit"}),
    "missing_key": frozenset({"commit"}),
    "reset": frozenset({"commit"}),
    "unauthorized": frozenset(),
    "forbidden": frozenset(),
    "hang": frozenset({"commit"}),
    "repeated": frozenset({"delay"}),
    "bomb": frozenset({"commit"}),
}
#: Kinds in which the call is carried out, unless `status` says otherwise.
COMMITS_BY_DEFAULT = frozenset({"truncated", "missing_key"})
PROVIDERS = ("skypostal", "open2b")


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault with its parameters."""

    kind: Kind
    #: Seconds from the request until it is carried out (`late_commit`, `slow`), or from the answer
    #: to its repetition (`repeated`).
    delay: float = 1.0
    #: `late_commit`: seconds until the connection is dropped; None: when the client disconnects.
    hold: float | None = None
    #: Whether the call is carried out although its answer is spoilt.
    commit: bool = False
    #: `server_error` only.
    status: int = 500
    #: The header's value: seconds, or an HTTP date, as given.
    retry_after: str | None = None
    #: The header as an HTTP date, this many seconds from the answer.
    retry_after_date: float | None = None

    @classmethod
    def parse(cls, value: Mapping[str, Any], where: str) -> "Fault":
        """Read a fault from JSON; `BadControl` names what is wrong."""
        kind = next((kind for kind in KINDS if kind == value.get("kind")), None)
        if kind is None:
            raise BadControl(f"{where}.kind must be one of {', '.join(KINDS)}.")
        given: dict[str, Any] = {"commit": kind in COMMITS_BY_DEFAULT}
        for name in value:
            if name == "kind":
                continue
            if name not in PARAMETERS[kind]:
                takes = ", ".join(sorted(PARAMETERS[kind])) or "no parameters"
                raise BadControl(f"{where}.{name} is unknown; {kind} takes {takes}.")
            given[name] = _PARSERS[name](value[name], f"{where}.{name}")
        return cls(kind=kind, **given)

    def public(self) -> dict[str, Any]:
        """The fault as JSON that `parse` reads."""
        return {"kind": self.kind} | {
            item.name: getattr(self, item.name)
            for item in fields(self)
            if item.name in PARAMETERS[self.kind] and getattr(self, item.name) is not None
        }


@dataclass(frozen=True, slots=True)
class Match:
    """The calls that a rule affects; None matches everything."""

    provider: str | None = None
    call: str | None = None
    email: str | None = None

    @classmethod
    def parse(cls, value: Mapping[str, Any], where: str) -> "Match":
        """Parse the match of a rule from JSON."""
        given = {
            name: checks.text(value[name], f"{where}.{name}")
            for name in MATCH
            if value.get(name) is not None
        }
        if given.get("provider", PROVIDERS[0]) not in PROVIDERS:
            raise BadControl(f"{where}.provider must be one of {', '.join(PROVIDERS)}.")
        return cls(**given)

    def covers(self, provider: str, call: str, email: str | None) -> bool:
        """Whether this call matches. E-mails are compared without case."""
        return (
            self.provider in (None, provider)
            and self.call in (None, call)
            and (
                self.email is None
                or (email is not None and email.casefold() == self.email.casefold())
            )
        )

    def public(self) -> dict[str, Any]:
        """Describe the match as JSON."""
        return {name: getattr(self, name) for name in MATCH if getattr(self, name) is not None}


MATCH = ("provider", "call", "email")


@dataclass(frozen=True, slots=True)
class Rule:
    """A line of the script: this fault affects the next `times` calls that match."""

    fault: Fault
    match: Match = field(default_factory=Match)
    #: None: for ever.
    times: int | None = 1

    @classmethod
    def parse(cls, value: object, where: str) -> "Rule":
        """Parse a rule from JSON: the fault's, the match's members and `times` in one object."""
        rule = checks.mapping(value, where)
        times = rule.get("times", 1)
        return cls(
            fault=Fault.parse(_without(rule, (*MATCH, "times")), where),
            match=Match.parse(rule, where),
            times=None if times is None else checks.whole(times, f"{where}.times", 1),
        )

    def public(self) -> dict[str, Any]:
        """The rule as JSON that `parse` reads."""
        return {**self.fault.public(), **self.match.public(), "times": self.times}


@dataclass(frozen=True, slots=True)
class Rate:
    """This fault affects a matching call with this probability."""

    fault: Fault
    match: Match
    probability: float

    @classmethod
    def parse(cls, kind: str, value: object, where: str) -> "Rate":
        """Parse a rate: a probability, or an object with it and the fault's parameters and
        match."""
        if not isinstance(value, Mapping):
            value = {"probability": value}
        return cls(
            fault=Fault.parse({"kind": kind} | _without(value, (*MATCH, "probability")), where),
            match=Match.parse(value, where),
            probability=checks.probability(value.get("probability"), f"{where}.probability"),
        )

    def public(self) -> dict[str, Any]:
        """The rate as JSON that `parse` reads."""
        fault = _without(self.fault.public(), ("kind",))
        return {**fault, **self.match.public(), "probability": self.probability}


class Faults:
    """The faults: a script first (the first rule that matches, until used up), then rates."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._script: list[Rule] = []
        self._rates: dict[str, Rate] = {}
        self._seed = 1
        self._random = random.Random(self._seed)  # noqa: S311 - repeatable on purpose

    def take(self, provider: str, call: str, email: str | None) -> Fault | None:
        """Decide on a fault for this call; uses up the rule that decided."""
        with self._lock:
            for index, rule in enumerate(self._script):
                if rule.match.covers(provider, call, email):
                    self._spend(index, rule)
                    return rule.fault
            return self._draw(provider, call, email)

    def configure(self, value: object) -> None:
        """Replace script, rates and seed; an omitted value is empty (seed: 1).

        All or nothing: on `BadControl` everything stays unchanged.
        """
        given = checks.mapping(value, "faults")
        checks.known(given, ("script", "rates", "seed"), "faults")
        lines = given.get("script") or []
        if not isinstance(lines, Sequence) or isinstance(lines, str):
            raise BadControl("faults.script must be a list of rules.")
        script = [Rule.parse(line, f"faults.script[{i}]") for i, line in enumerate(lines)]
        rates = {
            kind: Rate.parse(kind, rate, f"faults.rates.{kind}")
            for kind, rate in checks.mapping(given.get("rates") or {}, "faults.rates").items()
        }
        if sum(rate.probability for rate in rates.values()) > 1 + 1e-9:
            raise BadControl("faults.rates must add up to 1 at most.")
        seed = checks.whole(given.get("seed", 1), "faults.seed")
        with self._lock:
            self._script, self._rates, self._seed = script, rates, seed
            self._random = random.Random(seed)  # noqa: S311 - repeatable on purpose

    def public(self) -> dict[str, Any]:
        """The rest of the script, the rates and the seed."""
        with self._lock:
            return {
                "script": [rule.public() for rule in self._script],
                "rates": {kind: rate.public() for kind, rate in self._rates.items()},
                "seed": self._seed,
            }

    def _spend(self, index: int, rule: Rule) -> None:
        if rule.times == 1:
            del self._script[index]
        elif rule.times is not None:
            self._script[index] = replace(rule, times=rule.times - 1)

    def _draw(self, provider: str, call: str, email: str | None) -> Fault | None:
        if not self._rates:
            return None
        drawn = self._random.random()  # one number per call, so that a seed gives one sequence
        for rate in self._rates.values():
            if rate.match.covers(provider, call, email):
                drawn -= rate.probability
                if drawn < 0:
                    return rate.fault
        return None


def _without(value: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: item for name, item in value.items() if name not in names}


def _hold(value: object, where: str) -> float | None:
    return None if value is None else checks.seconds(value, where)


def _status(value: object, where: str) -> int:
    if value not in (500, 502, 503, 504):
        raise BadControl(f"{where} must be 500, 502, 503 or 504.")
    return checks.whole(value, where)


def _retry_after(value: object, where: str) -> str:
    return value if isinstance(value, str) else str(checks.whole(value, where))


_PARSERS = {
    "delay": checks.seconds,
    "hold": _hold,
    "commit": checks.boolean,
    "status": _status,
    "retry_after": _retry_after,
    "retry_after_date": checks.seconds,
}

"""How much of everything is in the ledger, in one read: for monitoring.

It costs the same with one job and with a million: an index that each transition updates (`set()` in
`_lib.lua`) counts jobs, and all other values are lengths.
If there are more than `PAGE` accounts, endpoints or streams, each script reads some of them, so
that none holds up the ledger (`whole`).
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal, Self, TypeVar

from regworker.domain.liveness import silent
from regworker.domain.states import State
from regworker.ledger.client import SyncLedger
from regworker.ledger.records import UNREADABLE, text
from regworker.ledger.scans import scanned
from regworker.ledger.transitions import (
    ALARMS,
    CONFIGURED,
    PREFIX,
    REVIEWS,
    STATS,
    STREAMS,
    Argument,
    Command,
    announced,
    endpoint_name,
    ms,
    were_announced,
)

T = TypeVar("T")

OPEN = f"{PREFIX}open"
"""Every unfinished job, by `place()`."""
LATER = f"{PREFIX}later"
"""Queued jobs with a retry delay, by lane and the time of the retry."""
WORKERS = f"{PREFIX}workers"
"""Names of workers, by their last heartbeat (ms)."""

#: As in `_lib.lua`: the states' ranks in the index, and the distance between them.
RANKS = {State.QUEUED: 0, State.CALLING: 2, State.UNKNOWN: 4, State.REVIEW: 6}
RANK = 10**13

#: The most workers that one snapshot lists.
MOST_WORKERS = 500

#: Index entries of each state and lane that one call compares with the jobs' records.
COMPARED = 10

#: Accounts and endpoints that one script reads: the ledger runs no other command meanwhile.
PAGE = 100


def place(state: State, lane: str, at: int) -> int:
    """The score of a job in the index; `at` in milliseconds."""
    return (RANKS[state] + (lane == "bulk")) * RANK + at


@dataclass(frozen=True, slots=True)
class Jobs:
    """The jobs of a lane in a state. `oldest`: when the first of them was accepted (ms; 0: none).

    `put_off`: queued ones whose retry is not due yet.
    """

    state: str
    lane: str
    count: int
    oldest: int
    put_off: int


@dataclass(frozen=True, slots=True)
class AccountSnapshot:
    """An account, as shared by all workers. Times in ms."""

    provider: str
    account: str
    breaker: str
    """`closed`, `open` (faults; probed by itself) or `refused` (until an operator resumes it)."""
    paused: bool
    paused_until: int
    """When the pause ends by itself; 0: when an operator resumes it."""
    reason: str
    failures: int
    in_flight: int
    max_in_flight: int
    waiting: int
    interval: float
    """Milliseconds per call, by the account's pace; 0: no limit."""
    burst: float
    """Milliseconds of pace that may be used up at once."""
    booked: float
    """Milliseconds of pace that are used up."""
    own_pace: str
    """The pace that an operator has set, which overrides the setting; '': none."""
    retry_at: int
    """When an open breaker allows the next call; 0: it is not open."""
    stray_at: int
    """When it first sent unrequested bytes; 0: never."""

    @property
    def rate(self) -> float:
        """Calls per second that the pace allows; 0: no limit."""
        return 1000 / self.interval if self.interval else 0.0

    @property
    def pace_used(self) -> float:
        """How much of the burst is used up: from 1 on, calls wait for their slots."""
        return self.booked / self.burst if self.burst else 0.0


@dataclass(frozen=True, slots=True)
class EndpointSnapshot:
    """An endpoint for deliveries. Times in ms; 0: none."""

    name: str
    disabled: bool
    failing_since: int
    """Since when all deliveries have failed."""
    pending: int
    oldest: int
    """When the oldest pending delivery was created."""
    trying: int
    in_line: int
    stray_at: int
    """When it first sent unrequested bytes."""


@dataclass(frozen=True, slots=True)
class Group:
    """A consumer group of a results stream. `lag`: unread entries; None: unknown."""

    name: str
    lag: int | None
    pending: int


@dataclass(frozen=True, slots=True)
class Stream:
    """A results stream."""

    name: str
    length: int
    groups: tuple[Group, ...]


Condition = Literal["well", "stuck", "silent"]
"""The condition of a worker: one part may be `stuck`, or the whole worker `silent`."""


BrokerOf = Literal["this", "other", "unknown"]
"""Whose broker a worker uses: this installation's, another one's too, or it may not look."""


@dataclass(frozen=True, slots=True)
class Beat:
    """A worker process's last heartbeat. `parts`: seconds since each last worked, and the allowed
    maximum; `at`: the server's time (ms)."""

    name: str
    host: str
    pid: int
    version: str
    pool: str
    slots: int
    up: float
    """Seconds since it started."""
    in_flight: int
    metrics: str
    """The address of its metrics, as host:port; empty: none."""
    parts: Mapping[str, tuple[float, float]]
    at: int
    lacks: tuple[str, ...] = ()
    """What jobs and deliveries needed lately and this worker lacks: `account:...`, `endpoint:...`,
    `key:...`."""
    broker: str = "this"
    """Whose broker it uses (`BrokerOf`); '': one of an older version does not say."""

    def fields(self) -> tuple[Argument, ...]:
        """The arguments of `beat.lua`."""
        return (
            *("host", self.host),
            *("pid", self.pid),
            *("version", self.version),
            *("pool", self.pool),
            *("slots", self.slots),
            *("up", f"{self.up:.3f}"),
            *("in_flight", self.in_flight),
            *("metrics", self.metrics),
            *("parts", json.dumps(dict(self.parts))),
            *("lacks", json.dumps(self.lacks)),
            *("broker", self.broker),
        )

    def since(self, at: int) -> float:
        """Seconds since its last heartbeat, at a time (ms)."""
        return max(0.0, (at - self.at) / 1000)

    def silent(self, at: int) -> dict[str, float]:
        """The parts that are silent for too long, at a time (ms); with the seconds of each."""
        return silent(self.parts, self.since(at))

    def condition(self, at: int) -> Condition:
        """Its condition at a time (ms)."""
        if self.since(at) > self.parts["loop"][1]:
            return "silent"
        return "stuck" if self.silent(at) else "well"

    @classmethod
    def read(cls, found: Mapping[str, str]) -> Self:
        """Parse a worker's hash."""
        return cls(
            name=found["name"],
            host=found["host"],
            pid=int(found["pid"]),
            version=found["version"],
            pool=found["pool"],
            slots=int(found["slots"]),
            up=_finite(found["up"]),
            in_flight=int(found["in_flight"]),
            metrics=found["metrics"],
            parts=_parts(json.loads(found["parts"])),
            at=int(found["at"]),
            lacks=tuple(map(_word, json.loads(found.get("lacks", "[]")))),
            broker=found.get("broker", ""),
        )


def _parts(found: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, float]]:
    """The parts of a worker; each has a loop, by which it is judged."""
    parts = {name: (_finite(age), _finite(limit)) for name, (age, limit) in found.items()}
    if "loop" not in parts:
        raise ValueError("a worker without a loop")
    return parts


def _finite(value: Any) -> float:
    """A number that JSON can hold."""
    found = float(value)
    if not math.isfinite(found):
        raise ValueError("not finite")
    return found


def _word(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


#: Keys without which jobs are not accepted, or not processed, or not counted.
INDEXES = frozenset({OPEN, LATER, ALARMS, REVIEWS, CONFIGURED, STREAMS})


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything, at one moment: `at`, the server's time in ms."""

    at: int
    jobs: tuple[Jobs, ...]
    accounts: tuple[AccountSnapshot, ...]
    endpoints: tuple[EndpointSnapshot, ...]
    streams: tuple[Stream, ...]
    workers: tuple[Beat, ...]
    alarms: int
    overdue: int
    """Alarms that are due and have not rung."""
    overdue_by: float
    """Seconds by which the first of them is late."""
    reviews: int
    review_since: int
    """Since when the oldest job is in review (ms; 0: none)."""
    dead: Mapping[str, int]
    """Dead deliveries, by endpoint; if there are very many, the oldest are under no name."""
    quarantine: int
    stats: Mapping[str, int]
    """The counters: `accepted`, `registered:<provider>:<account>`, ..."""
    unreadable: tuple[str, ...]
    """Keys of a wrong type or with invalid content: they count as empty."""
    partial: bool = False
    """There are too many accounts, endpoints or streams for one script: they and `stats` are
    missing."""

    @property
    def shares_broker(self) -> bool:
        """Whether a live worker has found another installation at its broker."""
        return any(
            one.broker == "other" and one.condition(self.at) != "silent" for one in self.workers
        )

    @property
    def broken(self) -> list[str]:
        """The indexes among what is unreadable: the ledger cannot be used as it is."""
        return sorted(INDEXES.intersection(self.unreadable))


@dataclass(frozen=True, slots=True)
class Part:
    """Some of the accounts and endpoints, at one moment."""

    accounts: tuple[AccountSnapshot, ...]
    endpoints: tuple[EndpointSnapshot, ...]
    unreadable: tuple[str, ...]


def snapshot() -> Command[Snapshot]:
    """Read everything at once; without accounts, endpoints and their streams, if there are more
    than `PAGE`."""
    return Command("snapshot", (OPEN, LATER, ALARMS, REVIEWS), (MOST_WORKERS, PAGE), _read)


def part(names: Iterable[str]) -> Command[Part]:
    """Read some of the accounts and endpoints, by the names that workers announce."""
    return Command("accounts", (CONFIGURED,), tuple(names), _read_part)


def parts(ledger: SyncLedger, names: Sequence[str], patience: float = 10.0) -> Part:
    """Read accounts and endpoints, some at a time."""
    found = [ledger(part(names[at : at + PAGE]), patience) for at in range(0, len(names), PAGE)]
    return Part(
        tuple(one for some in found for one in some.accounts),
        tuple(one for some in found for one in some.endpoints),
        tuple(one for some in found for one in some.unreadable),
    )


def whole(ledger: SyncLedger, patience: float = 10.0) -> Snapshot:
    """Read everything: at once, or very many accounts and endpoints some at a time."""
    found = ledger(snapshot(), patience)
    if not found.partial:
        return found
    served = set(ledger.ask(announced, patience))
    # Endpoints that no worker announces any more may still have deliveries.
    were = [
        name
        for name in ledger.ask(were_announced, patience)
        if name.startswith(endpoint_name("")) and name not in served
    ]
    rest = parts(ledger, [*sorted(served), *were], patience)
    stats = ledger.ask(lambda redis: scanned(redis, "hscan", STATS), patience)
    forms = ledger.ask(lambda redis: scanned(redis, "hscan", STREAMS), patience)
    more = {text(form).partition(" ")[2] for form in forms.values()}
    keys = sorted(more - {one.name for one in found.streams})
    pages = [
        ledger(read_streams(keys[at : at + PAGE]), patience) for at in range(0, len(keys), PAGE)
    ]
    unreadable = [*found.unreadable, *rest.unreadable]
    return replace(
        found,
        streams=tuple(sorted((*found.streams, *chain(*pages)), key=lambda one: one.name)),
        accounts=rest.accounts,
        endpoints=rest.endpoints,
        stats=_counters(stats, unreadable),
        unreadable=tuple(unreadable),
        partial=False,
    )


def read_streams(keys: Sequence[str]) -> Command[list[Stream]]:
    """Read some of the results streams, by their keys."""
    return Command(
        "streams",
        (STREAMS,),
        tuple(keys),
        lambda answer: [_stream(one) for one in json.loads(answer)],
    )


def repair() -> Command[int]:
    """Correct the oldest index entries by the jobs' records; return how many were wrong."""
    return Command("repair", (OPEN, LATER), (COMPARED,), int)


def beat(one: Beat, keep: float) -> Command[int]:
    """Announce that a worker is alive. `keep`: seconds for which it is listed after its last
    heartbeat."""
    return Command(
        "beat", (WORKERS, worker_key(one.name)), (one.name, ms(keep), *one.fields()), int
    )


def resign(name: str) -> Command[int]:
    """A worker stops cleanly, and must not be missed."""
    return Command("resign", (WORKERS, worker_key(name)), (name,), int)


def worker_key(name: str) -> str:
    """The key of a worker's last heartbeat."""
    return f"{PREFIX}worker:{name}"


def _read(answer: Any) -> Snapshot:
    found = json.loads(text(answer))
    at = int(found["at"])
    alarms, overdue, first = found["alarms"]
    unreadable = list(found["unreadable"])
    accounts, endpoints = _described(found, unreadable)
    workers = _each(Beat.read, found["workers"], "worker", unreadable)
    return Snapshot(
        at=at,
        jobs=tuple(
            sorted(
                (Jobs(state, lane, n, int(old), off) for state, lane, n, old, off in found["jobs"]),
                key=lambda one: (list(RANKS).index(State(one.state)), one.lane == "bulk"),
            )
        ),
        accounts=accounts,
        endpoints=endpoints,
        streams=tuple(sorted(map(_stream, found["streams"]), key=lambda one: one.name)),
        workers=tuple(sorted(workers, key=lambda one: one.name)),
        alarms=alarms,
        overdue=overdue,
        overdue_by=(at - first) / 1000 if overdue else 0.0,
        reviews=found["reviews"][0],
        review_since=int(found["reviews"][1]),
        dead=dict(found["dead"]),
        quarantine=found["quarantine"],
        stats=_counters(dict(found["stats"]), unreadable),
        unreadable=tuple(dict.fromkeys(unreadable)),
        partial=found["partial"],
    )


def _read_part(answer: Any) -> Part:
    found = json.loads(text(answer))
    unreadable = list(found["unreadable"])
    return Part(*_described(found, unreadable), tuple(unreadable))


def _described(
    found: Mapping[str, Any], unreadable: list[str]
) -> tuple[tuple[AccountSnapshot, ...], tuple[EndpointSnapshot, ...]]:
    at = int(found["at"])
    accounts = _each(lambda one: _account(one, at), found["accounts"], "account", unreadable)
    endpoints = _each(
        lambda one: EndpointSnapshot(**one), found["endpoints"], "endpoint", unreadable
    )
    return (
        tuple(sorted(accounts, key=lambda one: (one.provider, one.account))),
        tuple(sorted(endpoints, key=lambda one: one.name)),
    )


def _each(
    read: Callable[[Any], T], found: Iterable[Any], kind: str, unreadable: list[str]
) -> list[T]:
    """Read each record; an incomplete one is reported, and the others are read."""
    whole = []
    for one in found:
        try:
            whole.append(read(one))
        except (*UNREADABLE, AttributeError):
            unreadable.append(f"{PREFIX}{kind}:{one.get('name', '?')}")
    return whole


def _counters(found: Mapping[Any, Any], unreadable: list[str]) -> dict[str, int]:
    whole = {}
    for name, count in found.items():
        try:
            whole[text(name)] = int(count)
        except ValueError:
            unreadable.append(f"{STATS} {text(name)}")
    return whole


def _account(found: Mapping[str, Any], at: int) -> AccountSnapshot:
    provider, account = found["name"].split(":", 1)
    until, breaker = int(found.get("paused_until") or 0), found.get("breaker", "closed")
    paused = found.get("paused") == "1" and not 0 < until <= at
    return AccountSnapshot(
        provider=provider,
        account=account,
        breaker=breaker,
        paused=paused,
        paused_until=until if paused else 0,
        # That of a pause that has ended by itself is still in the record.
        reason=found.get("reason", "") if paused or breaker != "closed" else "",
        failures=int(found.get("failures") or 0),
        in_flight=found["in_flight"],
        max_in_flight=int(found.get("max_in_flight") or 0),
        waiting=found["waiting"],
        interval=_finite(found.get("own_interval") or found.get("interval") or 0),
        burst=_finite(found.get("own_burst") or found.get("burst") or 0),
        own_pace=str(found.get("own_pace") or ""),
        booked=max(0.0, _finite(found.get("tat") or 0) - at),
        retry_at=int(_finite(found.get("retry_at") or 0)),
        stray_at=int(found.get("stray_at") or 0),
    )


def _stream(found: Mapping[str, Any]) -> Stream:
    # If a server cannot tell the lag (entries were deleted), it returns nil, which is false in Lua.
    groups = tuple(
        Group(one["name"], None if one["lag"] is False else int(one["lag"]), one["pending"])
        for one in found["groups"]
    )
    return Stream(found["name"], found["length"], groups)

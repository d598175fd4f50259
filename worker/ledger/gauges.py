"""How much of everything there is in the ledger, in one look: for whoever watches, not for a job.

The look costs the same with one job and with a million: jobs are counted by an index that each
transition keeps (`set()` in `_lib.lua`), and all else by its length.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from worker.ledger.commands import ALARMS, PREFIX, REVIEWS, Argument, Command, ms
from worker.ledger.records import text
from worker.lifecycle import State
from worker.vitals import silent

OPEN = f"{PREFIX}open"
"""Every job that is not over, by `place()`."""
LATER = f"{PREFIX}later"
"""Queued jobs that are not to be tried before a time, by lane and that time."""
WORKERS = f"{PREFIX}workers"
"""Names of workers, by their last sign of life (ms)."""

#: As in `_lib.lua`: the states' places in the index, and how far they are apart.
RANKS = {State.QUEUED: 0, State.CALLING: 2, State.UNKNOWN: 4, State.REVIEW: 6}
RANK = 10**13

#: Workers that one look tells of; more are only counted by whoever started them.
MOST_WORKERS = 500


def place(state: State, lane: str, at: int) -> int:
    """The score of a job in the index; `at` in milliseconds."""
    return (RANKS[state] + (lane == "bulk")) * RANK + at


@dataclass(frozen=True, slots=True)
class Jobs:
    """The jobs of a lane in a state. `oldest`: when the first of them was accepted (ms; 0: none).

    `put_off`: of queued ones, those that are not to be tried yet.
    """

    state: str
    lane: str
    count: int
    oldest: int
    put_off: int


@dataclass(frozen=True, slots=True)
class Account:
    """An account as all workers share it. Times in ms."""

    provider: str
    account: str
    breaker: str
    """`closed`, `open` (faults; probed by itself) or `refused` (until an operator resumes it)."""
    paused: bool
    reason: str
    failures: int
    in_flight: int
    max_in_flight: int
    waiting: int
    interval: float
    """Milliseconds a call, by the account's pace; 0: no limit."""
    burst: float
    """Milliseconds of pace that may be used up at once."""
    booked: float
    """Milliseconds of pace that are used up."""

    @property
    def rate(self) -> float:
        """Calls a second that the pace allows; 0: no limit."""
        return 1000 / self.interval if self.interval else 0.0

    @property
    def pace_used(self) -> float:
        """How much of the burst is used up: from 1 on, calls wait for their slots."""
        return self.booked / self.burst if self.burst else 0.0


@dataclass(frozen=True, slots=True)
class EndpointGauges:
    """An endpoint that deliveries go to. Times in ms; 0: none."""

    name: str
    disabled: bool
    failing_since: int
    """Since when it has taken nothing, of what it was sent."""
    pending: int
    oldest: int
    """When the oldest pending delivery was made."""
    trying: int
    in_line: int


@dataclass(frozen=True, slots=True)
class Group:
    """A consumer group of a results stream. `lag`: entries it has not read; None: unknown."""

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
"""Of a worker: one of its parts may be `stuck`, or all of it `silent` for longer than it may be."""


@dataclass(frozen=True, slots=True)
class Beat:
    """A worker process's last sign of life. `parts`: seconds since each last did its work, and how
    long that may be; `at`: the server's time (ms)."""

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
    """Where its metrics are, as host:port; empty: nowhere."""
    parts: Mapping[str, tuple[float, float]]
    at: int

    def fields(self) -> tuple[Argument, ...]:
        """As `beat.lua` takes them."""
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
        )

    def since(self, at: int) -> float:
        """Seconds since its last sign of life, at a time (ms)."""
        return max(0.0, (at - self.at) / 1000)

    def silent(self, at: int) -> dict[str, float]:
        """Its parts that have done nothing for too long, at a time (ms); each one's seconds."""
        return silent(self.parts, self.since(at))

    def condition(self, at: int) -> Condition:
        """How it does at a time (ms)."""
        if self.since(at) > self.parts["loop"][1]:
            return "silent"
        return "stuck" if self.silent(at) else "well"

    @classmethod
    def read(cls, found: Mapping[str, str]) -> Self:
        """Read a worker's hash."""
        return cls(
            name=found["name"],
            host=found["host"],
            pid=int(found["pid"]),
            version=found["version"],
            pool=found["pool"],
            slots=int(found["slots"]),
            up=float(found["up"]),
            in_flight=int(found["in_flight"]),
            metrics=found["metrics"],
            parts={name: (age, limit) for name, (age, limit) in json.loads(found["parts"]).items()},
            at=int(found["at"]),
        )


@dataclass(frozen=True, slots=True)
class Gauges:
    """All of it, at one moment: `at`, the server's time in ms."""

    at: int
    jobs: tuple[Jobs, ...]
    accounts: tuple[Account, ...]
    endpoints: tuple[EndpointGauges, ...]
    streams: tuple[Stream, ...]
    workers: tuple[Beat, ...]
    alarms: int
    overdue: int
    """Alarms that are due and have not rung."""
    overdue_by: float
    """Seconds by which the first of them is late."""
    reviews: int
    review_since: int
    """Since when the first job waits for a person (ms; 0: none does)."""
    dead: Mapping[str, int]
    """Deliveries that nobody took, by endpoint; of very many, the oldest under no name."""
    quarantine: int
    stats: Mapping[str, int]
    """What was ever counted: `accepted`, `registered:<provider>:<account>`, ..."""
    astray: tuple[str, ...]
    """Jobs whose entry in the index is not as their record: to be mended."""


def gauges() -> Command[Gauges]:
    """Look at everything at once."""
    return Command("gauges", (OPEN, LATER, ALARMS, REVIEWS), (MOST_WORKERS,), _read)


def mend(job_ids: Iterable[str]) -> Command[int]:
    """Put jobs' entries in the index right, by their records; how many."""
    return Command("mend", (OPEN, LATER), tuple(job_ids), int)


def beat(one: Beat, keep: float) -> Command[int]:
    """Say that a worker lives. `keep`: seconds it is remembered if this was its last word."""
    return Command(
        "beat", (WORKERS, worker_key(one.name)), (one.name, ms(keep), *one.fields()), int
    )


def resign(name: str) -> Command[int]:
    """A worker stops in order, and is not to be missed."""
    return Command("resign", (WORKERS, worker_key(name)), (name,), int)


def worker_key(name: str) -> str:
    """The key of a worker's last sign of life."""
    return f"{PREFIX}worker:{name}"


def _read(answer: Any) -> Gauges:
    found = json.loads(text(answer))
    at = int(found["at"])
    alarms, overdue, first = found["alarms"]
    return Gauges(
        at=at,
        jobs=tuple(
            sorted(
                (Jobs(state, lane, n, int(old), off) for state, lane, n, old, off in found["jobs"]),
                key=lambda one: (list(RANKS).index(State(one.state)), one.lane == "bulk"),
            )
        ),
        accounts=tuple(
            sorted(
                (_account(one, at) for one in found["accounts"]),
                key=lambda one: (one.provider, one.account),
            )
        ),
        endpoints=tuple(
            sorted((EndpointGauges(**one) for one in found["endpoints"]), key=lambda one: one.name)
        ),
        streams=tuple(sorted(map(_stream, found["streams"]), key=lambda one: one.name)),
        workers=tuple(sorted(map(Beat.read, found["workers"]), key=lambda one: one.name)),
        alarms=alarms,
        overdue=overdue,
        overdue_by=(at - first) / 1000 if overdue else 0.0,
        reviews=found["reviews"][0],
        review_since=int(found["reviews"][1]),
        dead=dict(found["dead"]),
        quarantine=found["quarantine"],
        stats={name: int(n) for name, n in dict(found["stats"]).items()},
        astray=tuple(found["astray"]),
    )


def _account(found: Mapping[str, Any], at: int) -> Account:
    provider, account = found["name"].split(":", 1)
    return Account(
        provider=provider,
        account=account,
        breaker=found.get("breaker", "closed"),
        paused=found.get("paused") == "1",
        reason=found.get("reason", ""),
        failures=int(found.get("failures") or 0),
        in_flight=found["in_flight"],
        max_in_flight=int(found.get("max_in_flight") or 0),
        waiting=found["waiting"],
        interval=float(found.get("interval") or 0),
        burst=float(found.get("burst") or 0),
        booked=max(0.0, float(found.get("tat") or 0) - at),
    )


def _stream(found: Mapping[str, Any]) -> Stream:
    # A server that cannot tell (entries were deleted) says nothing, which Lua says as false.
    groups = tuple(
        Group(one["name"], None if one["lag"] is False else int(one["lag"]), one["pending"])
        for one in found["groups"]
    )
    return Stream(found["name"], found["length"], groups)

"""What the ledger's answers are read into."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Self

from worker.lifecycle import FINAL, State

Flat = list[Any]
"""A Redis hash as it travels: field, value, field, value, ..."""


@dataclass(frozen=True, slots=True)
class Record:
    """A job as the ledger has it. Times in milliseconds since 1970, by the server's clock."""

    id: str
    state: State
    provider: str
    account: str
    idempotency_key: str
    lane: str
    if_exists: str
    reply_to: tuple[str, ...]
    metadata: dict[str, Any]
    accepted_at: int
    deadline_at: int
    due_at: int
    attempts: int
    unknowns: int
    asks: int
    fence: int
    lease_until: int
    settle_until: int
    finished_at: int
    leased_by: str
    why: str
    log: str = field(default="", repr=False)
    """Its timeline as the ledger has it; a claim brings none."""
    trace: str = field(default="", repr=False)
    """What continues its producer's trace (`worker.tracing`)."""
    payload: str = field(default="", repr=False)
    """The registration, sealed; empty once the job is over."""
    event: str = field(default="", repr=False)
    """What the last event says beyond this record, sealed; empty while there is none.
    `worker.announcer` makes an event of the two."""

    @property
    def final(self) -> bool:
        """Whether the job is over."""
        return self.state in FINAL

    @property
    def timeline(self) -> tuple[tuple[int, str], ...]:
        """What became of it, step by step: when (ms), and what. The last 40 of them."""
        return tuple(_line(line) for line in self.log.split("\n") if line)

    @classmethod
    def read(cls, job_id: str, flat: Flat) -> Self:
        """Read a job's hash."""
        found = {**USUAL, **pairs(flat)}
        number = {name: int(float(found.get(name) or 0)) for name in _NUMBERS}
        return cls(
            id=job_id,
            state=State(found["state"]),
            provider=found["provider"],
            account=found["account"],
            idempotency_key=found["key"],
            lane=found["lane"],
            if_exists=found["if_exists"],
            reply_to=_endpoints(found["reply_to"]),
            metadata=_metadata(found["metadata"]),
            leased_by=found.get("leased_by", ""),
            why=found.get("why", ""),
            log=found.get("log", ""),
            trace=found.get("trace", ""),
            payload=found.get("payload", ""),
            event=found.get("event", ""),
            **number,
        )

    @classmethod
    def granted(cls, job_id: str, worker: str, values: Sequence[Any]) -> Self:
        """Read what `claim` gives to a worker: what an attempt needs, in the script's order."""
        state, provider, account, lane, fence, attempts, unknowns, asks, *values = values
        accepted_at, deadline_at, lease_until, settle_until, why, *values = values
        if_exists, reply_to, metadata, key, trace, payload = values
        return cls(
            id=job_id,
            state=_STATES[text(state)],
            provider=text(provider),
            account=text(account),
            idempotency_key=text(key),
            lane=text(lane),
            if_exists=text(if_exists),
            reply_to=_endpoints(text(reply_to)),
            metadata=_metadata(text(metadata)),
            accepted_at=accepted_at,
            deadline_at=deadline_at,
            due_at=0,
            attempts=attempts,
            unknowns=unknowns,
            asks=asks,
            fence=fence,
            lease_until=lease_until,
            settle_until=settle_until,
            finished_at=0,
            leased_by=worker,
            why=text(why),
            trace=text(trace) if trace else "",
            payload=text(payload),
        )


USUAL = {"lane": "live", "if_exists": "reject", "reply_to": '["results"]', "metadata": "{}"}
"""What most jobs say, which the record of one that is over leaves out; the same in `_lib.lua`."""

_STATES = {str(state): state for state in State}


_NUMBERS = (
    "accepted_at",
    "deadline_at",
    "due_at",
    "attempts",
    "unknowns",
    "asks",
    "fence",
    "lease_until",
    "settle_until",
    "finished_at",
)


@dataclass(frozen=True, slots=True)
class Wake:
    """Somebody to wake: a job (by its id and lane) or a delivery (lane `delivery`).

    `sure`: also while the lane is crowded; otherwise its wake-up may merely wait there.
    """

    member: str
    lane: str
    sure: bool = True


@dataclass(frozen=True, slots=True)
class Accepted:
    """A job is in. `repeat`: it was already, with the same content."""

    job_id: str
    state: State
    accepted_at: int
    repeat: bool


@dataclass(frozen=True, slots=True)
class Conflict:
    """The key is taken by a job with other content."""

    job_id: str


@dataclass(frozen=True, slots=True)
class Unconfigured:
    """No worker has announced these names (`account:...`, `endpoint:...`)."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Claim:
    """A lease on a job. Nothing has left yet; what leaves from now on must be settled.

    `asking`: an earlier call's outcome is unknown, so this one may only ask. `at`: server's time.
    `lost`: what became of the lease under which that call was made, where its worker died or hung.
    """

    record: Record
    asking: bool
    at: int
    lost: str = ""

    @property
    def id(self) -> str:
        """The job's id."""
        return self.record.id


@dataclass(frozen=True, slots=True)
class Spent:
    """A job past its deadline or its attempts: to be abandoned. `at`: the server's time."""

    record: Record
    at: int


@dataclass(frozen=True, slots=True)
class NotNow:
    """The job waits: for whom or what, and until when (ms). Its alarm is set."""

    why: str
    until: int


@dataclass(frozen=True, slots=True)
class Over:
    """Nothing to do: the job is final, in review, or gone."""

    state: str


@dataclass(frozen=True, slots=True)
class Settled:
    """The step is taken. `until`: when the job is due again (0: over); `wakes`: whom to wake."""

    state: State
    until: int
    wakes: tuple[Wake, ...]


@dataclass(frozen=True, slots=True)
class Stale:
    """The step is not taken: the job has moved on without the caller."""

    state: str


@dataclass(frozen=True, slots=True)
class Ring:
    """Alarms that were due. `next_at`: when the next one is (0: none); `at`: server's time."""

    wakes: tuple[Wake, ...]
    next_at: int
    at: int


@dataclass(frozen=True, slots=True)
class Delivery:
    """One try at delivering one event to one endpoint, leased. `event` is sealed."""

    member: str
    job_id: str
    event_id: str
    endpoint: str
    event: str = field(repr=False)
    tries: int
    fence: int
    created_at: int
    started_at: int
    """When its schedule began: when it was made, or replayed."""
    at: int
    provider: str = ""
    account: str = ""
    trace: str = field(default="", repr=False)

    @classmethod
    def read(cls, member: str, at: int, values: Sequence[Any]) -> Self:
        """Read what `deliver` gives to a worker, in the script's order."""
        job_id, event_id, endpoint, tries, fence, created_at, started_at, *values = values
        provider, account, trace, event = map(text, values)
        return cls(
            member=member,
            job_id=text(job_id),
            event_id=text(event_id),
            endpoint=text(endpoint),
            event=event,
            tries=tries,
            fence=fence,
            created_at=created_at,
            started_at=started_at,
            at=at,
            provider=provider,
            account=account,
            trace=trace,
        )


@dataclass(frozen=True, slots=True)
class Idle:
    """No try at a delivery now: it is `over`, `dead`, `busy` (tried, or not due) or waits (`full`).

    `why`: the state it is in, why it is dead, or until when (ms) it waits for its alarm.
    """

    state: str
    why: str


@dataclass(frozen=True, slots=True)
class Tried:
    """A try at a delivery is settled: `delivered`, `pending`, `dead`, `gone`, or not (`stale`).

    `failing`: for how many seconds its endpoint has done nothing but fail; `wakes`: who is next.
    """

    state: str
    failing: float
    wakes: tuple[Wake, ...] = ()


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A message that no task could be made of. Times in milliseconds; `size` in bytes."""

    id: str
    queue: str
    reason: str
    size: int
    whole: bool
    """Whether all of it is kept; of a very large one, only the beginning is."""
    times: int
    first_at: int
    at: int
    content: str = field(default="", repr=False)
    """Sealed; empty in a list."""

    @classmethod
    def read(cls, id_: str, flat: Flat) -> Self:
        """Read a hash of the quarantine."""
        found = pairs(flat)
        return cls(
            id=id_,
            queue=found["queue"],
            reason=found["reason"],
            size=int(found["size"]),
            whole=found["whole"] == "1",
            times=int(found["times"]),
            first_at=int(found["first_at"]),
            at=int(found["at"]),
            content=found.get("content", ""),
        )


def text(value: Any) -> str:
    """A reply as text: the clients of this package don't decode, others may."""
    return value.decode() if isinstance(value, bytes) else str(value)


def pairs(flat: Flat) -> dict[str, str]:
    """A flat hash as a dictionary."""
    return {text(flat[i]): text(flat[i + 1]) for i in range(0, len(flat), 2)}


@lru_cache(maxsize=256)
def _endpoints(names: str) -> tuple[str, ...]:
    # Most jobs of an installation name the same.
    return tuple(json.loads(names))


def _metadata(found: str) -> dict[str, Any]:
    # Most jobs have none. Never the same dictionary twice: it is its reader's.
    return {} if found == "{}" else dict(json.loads(found))


def _line(line: str) -> tuple[int, str]:
    at, _, what = line.partition(" ")
    return int(at), what

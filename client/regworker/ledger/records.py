"""The types of the ledger's answers."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Self

from regworker.domain.states import FINAL, State

Flat = list[Any]
"""A Redis hash in a reply: field, value, field, value, ..."""


@dataclass(frozen=True, slots=True)
class Record:
    """A job in the ledger. Times in milliseconds since 1970, by the server's clock."""

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
    unproved: int = 0
    """1: only the login has denied that the customer exists; it may. `TAKEN`: the provider has
    refused the job because the customer exists."""
    refusals: int = 0
    """How many calls and look-ups were refused by status, and held the account."""
    reopened: int = 0
    """How often a person had a job that was abandoned or in review tried again."""
    corrected: str = ""
    """`registered` or `rejected`: the published correction of a person's decision on its review; ''
    if there is none."""
    decided: str = ""
    """A person's decision on its review; '' if there is none."""
    forgotten_at: int = 0
    """When its data was erased (`regworker forget`); 0: never."""
    by: str = ""
    """The name of its HTTP token; a claim does not return it."""
    log: str = field(default="", repr=False)
    """Its timeline, as stored; a claim does not return it."""
    trace: str = field(default="", repr=False)
    """Continues its producer's trace (`regworker.tracing`)."""
    payload: str = field(default="", repr=False)
    """The registration, sealed; empty once the job has ended."""
    event: str = field(default="", repr=False)
    """The fields of the last event that are not in this record, sealed; empty if there is none yet.
    `regworker.event_builder` makes an event of both."""
    correction: str = field(default="", repr=False)
    """The same for its correction."""

    @property
    def final(self) -> bool:
        """Whether the job has ended."""
        return self.state in FINAL

    @property
    def timeline(self) -> tuple[tuple[int, str], ...]:
        """Its history, step by step: when (ms), and what. The last 40 steps."""
        return tuple(_line(line) for line in self.log.split("\n") if line)

    @classmethod
    def read(cls, job_id: str, flat: Flat) -> Self:
        """Parse a job's hash."""
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
            corrected=found.get("corrected", ""),
            decided=found.get("decided", ""),
            by=found.get("by", ""),
            log=found.get("log", ""),
            trace=found.get("trace", ""),
            payload=found.get("payload", ""),
            event=found.get("event", ""),
            correction=found.get("correction", ""),
            **number,
        )

    @classmethod
    def granted(cls, job_id: str, worker: str, values: Sequence[Any]) -> Self:
        """Parse the answer of `claim` to a worker: the fields for an attempt, in the script's
        order."""
        state, provider, account, lane, fence, reopened, attempts, *values = values
        unknowns, asks, accepted_at, deadline_at, lease_until, settle_until, why, *values = values
        unproved, refusals, if_exists, reply_to, metadata, key, trace, payload = values
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
            reopened=reopened,
            unproved=unproved,
            refusals=refusals,
            lease_until=lease_until,
            settle_until=settle_until,
            finished_at=0,
            leased_by=worker,
            why=text(why),
            trace=text(trace) if trace else "",
            payload=text(payload),
        )


#: A value of `Record.unproved`.
TAKEN = 2

#: What reading an answer raises if it is made of a record that none of us wrote.
UNREADABLE = (ArithmeticError, LookupError, RecursionError, TypeError, ValueError)

USUAL = {"lane": "live", "if_exists": "reject", "reply_to": '["results"]', "metadata": "{}"}
"""The values of most jobs, which their records omit; the same in `_lib.lua`."""

_STATES = {str(state): state for state in State}


_NUMBERS = (
    "accepted_at",
    "deadline_at",
    "due_at",
    "attempts",
    "unknowns",
    "asks",
    "fence",
    "reopened",
    "unproved",
    "refusals",
    "lease_until",
    "settle_until",
    "finished_at",
    "forgotten_at",
)


@dataclass(frozen=True, slots=True)
class Wake:
    """A job (by its id and lane) or a delivery (lane `delivery`) to wake.

    `sure`: also while the lane is full; otherwise its wake-up may only wait there.
    """

    member: str
    lane: str
    sure: bool = True


@dataclass(frozen=True, slots=True)
class Accepted:
    """A job is accepted. `repeat`: it was already, with the same content."""

    job_id: str
    state: State
    accepted_at: int
    repeat: bool


@dataclass(frozen=True, slots=True)
class Conflict:
    """The key is taken by a job with other content, or by one whose data was erased."""

    job_id: str
    forgotten: bool = False


@dataclass(frozen=True, slots=True)
class Unconfigured:
    """No worker has announced these `names` (`account:...`, `endpoint:...`, `key:...`)."""

    names: tuple[str, ...]
    known: tuple[str, ...] = ()
    """All names that workers have announced."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A lease on a job. Nothing was sent yet; what is sent from now on must be settled.

    `asking`: an earlier call's outcome is unknown, so this one may only look up. `at`: server's
    time. `lost`: what became of that call's lease, if its worker died or hung. `stray`: the account
    has sent unrequested bytes.
    """

    record: Record
    asking: bool
    at: int
    lost: str = ""
    stray: bool = False

    @property
    def id(self) -> str:
        """The job's id."""
        return self.record.id


@dataclass(frozen=True, slots=True)
class Spent:
    """A job past its deadline or out of attempts: to be abandoned. `at`: the server's time."""

    record: Record
    at: int


#: Texts for the reasons of a refused claim.
WAITS = {
    "due": "it waits for its retry delay",
    "pace": "the account's rate limit",
    "full": "the account has no free place for another call",
    "breaker": "the provider fails; one job at a time probes it",
    "refused": "the provider refuses the account's credentials: see the account's settings",
    "paused": "an operator has paused the account",
}


@dataclass(frozen=True, slots=True)
class NotNow:
    """The job waits: why, and until when (ms). Its alarm is set."""

    why: str
    until: int


@dataclass(frozen=True, slots=True)
class Over:
    """Nothing to do: the job is final, in review, or gone."""

    state: str


@dataclass(frozen=True, slots=True)
class Settled:
    """The step is done. `until`: when the job is due again (0: ended)."""

    state: State
    until: int


@dataclass(frozen=True, slots=True)
class Stale:
    """The step is not done: the job has changed since the caller read it."""

    state: str


@dataclass(frozen=True, slots=True)
class Ring:
    """Due alarms. `next_at`: the next alarm (0: none); `at`: server's time; `due`: how many.

    `wakes`: those that a worker must pass on to the broker.
    """

    wakes: tuple[Wake, ...]
    next_at: int
    at: int
    due: int
    unreadable: tuple[str, ...] = ()
    """Due members whose keys are no records: put off, and reported each time."""


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
    """When its retry schedule began: when it was created or replayed."""
    at: int
    provider: str = ""
    account: str = ""
    trace: str = field(default="", repr=False)
    stray: bool = False
    """Whether the endpoint has sent unrequested bytes."""
    disables: int = 0
    """How often its endpoint had been disabled when the try began."""

    @classmethod
    def read(cls, member: str, at: int, values: Sequence[Any]) -> Self:
        """Parse the answer of `deliver` to a worker, in the script's order."""
        job_id, event_id, endpoint, tries, fence, created_at, started_at, *values = values
        provider, account, trace, event, stray_at = map(text, values[:5])
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
            stray=bool(stray_at),
            disables=values[5],
        )


@dataclass(frozen=True, slots=True)
class Idle:
    """No try at a delivery now: it is `over`, `dead`, `busy` (tried, or not due) or waits (`full`).

    `why`: its state, why it is dead, or until when (ms) it waits for its alarm.
    """

    state: str
    why: str


@dataclass(frozen=True, slots=True)
class Tried:
    """A try at a delivery is settled: `delivered`, `pending`, `dead`, `gone`, or not (`stale`).

    `failing`: for how many seconds its endpoint has only failed.
    """

    state: str
    failing: float


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A message that could not be processed. Times in milliseconds; `size` in bytes."""

    id: str
    queue: str
    reason: str
    size: int
    whole: bool
    """Whether it is complete; of a very large one, only the beginning is kept."""
    times: int
    first_at: int
    at: int
    content: str = field(default="", repr=False)
    """Sealed; empty in a list."""

    @classmethod
    def read(cls, id_: str, flat: Flat) -> Self:
        """Parse a hash of the quarantine."""
        found = pairs(flat)
        return cls(
            id=id_,
            queue=found.get("queue", "?"),
            reason=found.get("reason", "?"),
            size=number(found.get("size")),
            whole=found.get("whole") == "1",
            times=number(found.get("times")),
            first_at=number(found.get("first_at")),
            at=number(found.get("at")),
            content=found.get("content", ""),
        )


def text(value: Any) -> str:
    """A reply as text: the clients of this package do not decode, others may.

    Invalid UTF-8 was not written by us; one such name must not make a whole answer unreadable.
    """
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def number(value: Any) -> int:
    """A number of a record for people; 0 for what is none: whoever wrote it, it must not make a
    whole list unreadable."""
    try:
        return int(float(text(value or 0)))
    except (ValueError, OverflowError):
        return 0


def pairs(flat: Flat) -> dict[str, str]:
    """A flat hash as a dictionary."""
    return {text(flat[i]): text(flat[i + 1]) for i in range(0, len(flat), 2)}


@lru_cache(maxsize=256)
def _endpoints(names: str) -> tuple[str, ...]:
    # Most jobs of an installation have the same value.
    return tuple(json.loads(names))


def _metadata(found: str) -> dict[str, Any]:
    # Most jobs have none. A new dictionary each time, since its reader may change it.
    return {} if found == "{}" else dict(json.loads(found))


def _line(line: str) -> tuple[int, str]:
    at, _, what = line.partition(" ")
    return int(at), what

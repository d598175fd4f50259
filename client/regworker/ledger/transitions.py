"""One function for each transition: what to send, and how to read the answer.

A `Command` is a value; `client` runs it. Every command is safe to repeat: a claim by its token, a
settle by its fence, an accept by its ticket. So the client can retry after a lost answer.
"""

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, Generic, TypeVar

from regworker.domain.actor import Actor, packed
from regworker.domain.job import Job
from regworker.domain.states import State
from regworker.ledger.records import (
    Accepted,
    Claim,
    Conflict,
    Delivery,
    Idle,
    NotNow,
    Over,
    Record,
    Ring,
    Settled,
    Spent,
    Stale,
    Tried,
    Unconfigured,
    Wake,
    text,
)
from regworker.ledger.scans import scanned
from regworker.sealing.random import nonce

PREFIX = "{reg}:"
ALARMS = f"{PREFIX}alarms"
STATS = f"{PREFIX}stats"
DEAD = f"{PREFIX}dead"
"""Dead deliveries, by the time when they were given up (ms)."""
REVIEWS = f"{PREFIX}reviews"
"""Jobs in review, by the time when they got there (ms)."""
AUDIT = f"{PREFIX}audit"
"""People's acts, each written by its own script (`record_act()` in `_lib.lua`)."""
CONFIGURED = f"{PREFIX}configured"
"""What workers have announced: `account:<provider>:<account>`, `endpoint:<name>`, and their keys,
`key:<kid>:<check>`."""
ANNOUNCED = f"{PREFIX}announced"
"""The same names, by when a worker last announced them (ms)."""

JOBS = f"{PREFIX}jobs"
"""The job stream: its entries are not processed yet. All workers read it as one group."""

STREAMS = f"{PREFIX}streams"
"""By the endpoint's name, the streams that workers have announced: `plain <key>`, `sealed
<key>`."""

WAKES, BULK_WAKES, URGENT_WAKES = f"{PREFIX}wakes", f"{PREFIX}wakes:bulk", f"{PREFIX}wakes:urgent"
"""Wake-ups that a worker must pass on to the broker: lists of `<lane> <member>`."""

#: If more wake-ups than this wait in a lane, no job in it gets another one: twice the default
#: number of a process's slots.
CROWD = 200

WAKING = f"{PREFIX}waking"
"""By lane, how to wake through the broker if it is the ledger's own server: its list, an
envelope."""

#: A key that does not exist, passed to each script that writes keys which it computes itself. While
#: a cluster moves our slot key by key, a node refuses a command if it lacks one of its keys.
#: Without this key, such a script would start, and stop halfway at the first key that has moved.
ABSENT = f"{PREFIX}absent"


Argument = str | bytes | int | float


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Command(Generic[T]):
    """A script to run: its name, KEYS, ARGV, and how to read its answer."""

    script: str
    keys: tuple[str, ...]
    args: tuple[Argument, ...] = field(repr=False)
    read: Callable[[Any], T] = field(repr=False)
    durable: bool = False
    """It counts only once as many replicas have it as workers require (`replication.py`)."""
    size: int = 0
    """Bytes of its arguments that may be large."""


@dataclass(frozen=True, slots=True)
class Publication:
    """An event to publish: in plain form, and sealed."""

    event_id: str
    type: str
    event: bytes = field(repr=False)
    sealed: str = field(repr=False)
    kept: str = field(repr=False)
    """What its job's record keeps of it, sealed; '' for an event without a job."""
    endpoints: tuple[str, ...] = ()
    """The endpoints that get it. The script knows which are streams, by the workers'
    announcement."""
    plain: bool = True
    """Whether any of them may be an unsealed stream. Otherwise the script does not get the plain
    event, whatever the ledger says about them."""

    @property
    def size(self) -> int:
        """What it adds to a call, in bytes; writing it for an endpoint counts as a KiB."""
        each = 1024 * len(self.endpoints)
        return len(self.event) + len(self.sealed) + len(self.kept) + each

    def args(self) -> tuple[Argument, ...]:
        """The arguments of `tell()` in `_lib.lua`."""
        event = self.event if self.plain else b""
        return (self.event_id, self.type, event, self.sealed, self.kept, *self.endpoints)


def job_key(job_id: str) -> str:
    """The key of a job's record."""
    return f"{PREFIX}job:{job_id}"


def account_key(provider: str, account: str) -> str:
    """The key of an account's pace and breaker."""
    return f"{PREFIX}account:{provider}:{account}"


def account_name(provider: str, account: str) -> str:
    """An account's name in the workers' announcements."""
    return f"account:{provider}:{account}"


def endpoint_name(endpoint: str) -> str:
    """An endpoint's name in the workers' announcements."""
    return f"endpoint:{endpoint}"


def done_channel(job_id: str) -> str:
    """The channel that notifies waiting clients of a job's end."""
    return f"{PREFIX}done:{job_id}"


def delivery_key(member: str) -> str:
    """The key of a delivery's record."""
    return f"{PREFIX}delivery:{member}"


def announced(redis: Any) -> list[str]:
    """The announced names, as a request for `SyncLedger.ask`."""
    return [text(name) for name in scanned(redis, "sscan", CONFIGURED)]


def were_announced(redis: Any) -> list[str]:
    """The names that were announced in the last 30 days, as a request for `SyncLedger.ask`."""
    return [text(name) for name in scanned(redis, "zscan", ANNOUNCED)]


def ms(seconds: float) -> int:
    """Whole milliseconds."""
    return round(seconds * 1000)


def look(job_id: str) -> Command[Record | None]:
    """Read a job's record; None if there is none."""
    return Command(
        "look",
        (job_key(job_id),),
        (),
        lambda answer: Record.read(job_id, answer) if answer else None,
    )


def accept(
    job: Job,
    payload: str,
    fingerprints: Sequence[str],
    deadline: float,
    entry: str = "",
    trace: str = "",
    key: str = "",
    by: str = "",
) -> Command[Accepted | Conflict | Unconfigured]:
    """-> queued. `deadline`: seconds from acceptance, used if the job names none.

    The script also wakes a worker. `entry`: the job's entry in the job stream, which the script
    removes. `trace`: continues its producer's trace; not part of the job. `key`: that which seals
    the payload, by its mark (`Keyring.marks`); a worker must have it. `by`: the name of its HTTP
    token.
    """

    job_id, ticket = job.id, nonce(6).hex()
    own = job.deadline
    metadata = json.dumps(job.metadata, separators=(",", ":")) if job.metadata else "{}"
    return Command(
        "accept",
        (job_key(job_id), ALARMS),
        (
            job_id,
            ticket,
            0 if own else ms(deadline),
            ms(own.timestamp()) if own else 0,
            entry,
            job.provider,
            job.account,
            job.idempotency_key,
            job.lane,
            job.if_exists,
            _names(job.reply_to),
            metadata,
            payload,
            trace,
            base64.b64encode(job_id.encode()),
            key,
            by,
            len(fingerprints),
            *fingerprints,
            *job.reply_to,
        ),
        # A function of its own would be four more objects for Python's garbage collector.
        partial(_admitted, job_id, ticket),
        durable=True,
        size=len(payload) + len(metadata),
    )


def _own(token: str, first: Any) -> str:
    """The first word of an answer. `ValueError` for the answer to another command: only a server or
    a proxy that loses an answer, or sends one twice, brings it here."""
    verdict, _, whose = text(first).partition(" ")
    if whose != token:
        raise ValueError("the answer to another command")
    return verdict


def _admitted(job_id: str, ticket: str, answer: Any) -> Accepted | Conflict | Unconfigured:
    verdict = _own(ticket, answer[0])
    if verdict == "unconfigured":
        return Unconfigured(*(tuple(map(text, names)) for names in answer[1:]))
    state, at = State(text(answer[1])), int(answer[2])
    if verdict in {"conflict", "forgotten"}:
        return Conflict(job_id, verdict == "forgotten")
    return Accepted(job_id, state, at, repeat=verdict == "repeat")


@lru_cache(maxsize=256)
def _names(endpoints: tuple[str, ...]) -> str:
    # Most jobs of an installation have the same value.
    return json.dumps(endpoints)


@dataclass(frozen=True, slots=True)
class ClaimRules:
    """The rules of a claim; seconds."""

    worker: str
    lease: float
    settle_delay: float
    max_attempts: int
    probe: float
    """How long the single probe of an open breaker keeps others waiting."""


def claim(job_id: str, rules: ClaimRules, chance: float) -> Command[Claim | Spent | NotNow | Over]:
    """queued -> calling, or a lease for a lookup. `chance`: a random number in [0, 1)."""

    token = nonce(8).hex()

    def read(answer: Any) -> Claim | Spent | NotNow | Over:
        verdict, at = _own(token, answer[0]), int(answer[1])
        match verdict:
            case "call" | "ask":
                record = Record.granted(job_id, rules.worker, answer[4:])
                return Claim(record, verdict == "ask", at, text(answer[2]), bool(answer[3]))
            case "spent":
                return Spent(Record.granted(job_id, "", answer[4:]), at)
            case "later":
                return NotNow(text(answer[2]), int(answer[3]))
            case _:
                return Over(text(answer[2]))

    return Command(
        "claim",
        (job_key(job_id), ALARMS),
        (
            job_id,
            token,
            rules.worker,
            ms(rules.lease),
            ms(rules.settle_delay),
            rules.max_attempts,
            chance,
            ms(rules.probe),
        ),
        read,
        durable=True,
    )


def renew(leases: Sequence[tuple[str, int]], lease: float) -> Command[tuple[bool, ...]]:
    """Renew leases (job id, fence); False for each that is lost."""
    flat = [part for one in leases for part in one]

    def read(answer: Any) -> tuple[bool, ...]:
        if len(answer) != len(leases) or not {0, 1}.issuperset(answer):
            raise ValueError("the answer to another command")
        return tuple(kept == 1 for kept in answer)

    return Command("renew", (ALARMS,), (ms(lease), *flat), read)


@dataclass(frozen=True, slots=True)
class Decision:
    """What to settle: the verdict, and its parameters; seconds."""

    name: str
    reason: str = ""
    delay: float = 0.0
    spends: bool = True
    health: str = ""
    """What it says about the account: `ok`, `fault`, `refused`, `refused by status`, or nothing."""


@dataclass(frozen=True, slots=True)
class SettleRules:
    """The rules of a settle; seconds."""

    settle_delay: float
    breaker_threshold: int
    breaker_pause: float
    retention: float


def settle(
    claim: Claim, verdict: Decision, rules: SettleRules, publication: Publication | None
) -> Command[Settled | Stale]:
    """calling or unknown -> the state of the verdict. With a publication for each final state."""
    job_id = claim.id

    def read(answer: Any) -> Settled | Stale:
        ended = read_finish(answer)
        return ended if isinstance(ended, Stale) else Settled(ended.state, int(answer[2]))

    return Command(
        "settle",
        (job_key(job_id), ALARMS),
        (
            job_id,
            claim.record.fence,
            verdict.name,
            verdict.reason,
            ms(verdict.delay),
            ms(rules.settle_delay),
            int(verdict.spends),
            verdict.health,
            rules.breaker_threshold,
            ms(rules.breaker_pause),
            ms(rules.retention),
            *(publication.args() if publication else ()),
        ),
        read,
        size=publication.size if publication else 0,
    )


def abandon(
    record: Record, reason: str, max_attempts: int, retention: float, publication: Publication
) -> Command[Settled | Stale]:
    """queued -> abandoned, if its deadline has passed or its attempts are used up."""
    return Command(
        "abandon",
        (job_key(record.id), ALARMS),
        (record.id, record.fence, max_attempts, reason, ms(retention), *publication.args()),
        read_finish,
    )


#: How often a cancel is repeated if the job changes between the read and the cancel.
LOOKS = 10


def cancel(
    record: Record, retention: float, publication: Publication, actor: Actor | None = None
) -> Command[Settled | Stale]:
    """queued -> cancelled, unless the job has changed since `record` was read."""

    def read(answer: Any) -> Settled | Stale:
        if text(answer[2]) != record.id:
            raise ValueError("the answer to another command")
        return read_finish(answer)

    return Command(
        "cancel",
        (job_key(record.id), ALARMS),
        (record.id, record.attempts, ms(retention), packed(actor), *publication.args()),
        read,
        durable=True,
    )


def ring(most: int) -> Command[Ring]:
    """Take up to `most` due alarms, put each off, and wake their owners if the broker is here."""

    def read(answer: Any) -> Ring:
        woken = answer[4:]
        wakes = tuple(
            Wake(text(woken[i]), text(woken[i + 1]), woken[i + 2] == 1)
            for i in range(0, len(woken), 3)
        )
        next_at, at, due, unreadable = answer[:4]
        return Ring(wakes, int(next_at), int(at), int(due), tuple(map(text, unreadable)))

    return Command("ring", (ALARMS,), (most, CROWD), read)


def deliver(member: str, lease: float) -> Command[Delivery | Idle]:
    """Lease one try at a delivery, with a place among its endpoint's tries."""

    token = nonce(8).hex()

    def read(answer: Any) -> Delivery | Idle:
        verdict = _own(token, answer[0])
        if verdict != "try":
            return Idle(verdict, text(answer[2]))
        return Delivery.read(member, int(answer[1]), answer[2:])

    arguments = (member, token, ms(lease))
    return Command("deliver", (delivery_key(member), ALARMS), arguments, read)


def delivered(
    delivery: Delivery, verdict: str, reason: str, delay: float, *, blame: bool = True
) -> Command[Tried]:
    """Settle one try at a delivery: `arrived`, `later` (in `delay` seconds) or `dead`.

    `blame`: the failure is the endpoint's, not this worker's.
    """

    def read(answer: Any) -> Tried:
        return Tried(text(answer[0]), int(answer[1]) / 1000)

    return Command(
        "delivered",
        (delivery_key(delivery.member), ALARMS),
        (delivery.member, delivery.fence, verdict, reason, ms(delay), int(blame)),
        read,
    )


def read_finish(answer: Any) -> Settled | Stale:
    """The answer of a script that ends a job, or only moves it on."""
    verdict, state = text(answer[0]), text(answer[1])
    if verdict not in {"done", "stale"}:
        raise ValueError("the answer to another command")
    return Stale(state) if verdict == "stale" else Settled(State(state), 0)

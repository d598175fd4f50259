"""One function for each transition: what to send, and how to read the answer.

A `Command` is a value; `client` carries it. Every command is safe to repeat: a claim by its token,
a settle by its fence, an accept by its ticket. That is what lets the client try again when an
answer was lost.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Generic, TypeVar

from worker.job import Job
from worker.ledger.records import (
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
from worker.lifecycle import State
from worker.nonce import nonce

PREFIX = "{reg}:"
ALARMS = f"{PREFIX}alarms"
STATS = f"{PREFIX}stats"
DEAD = f"{PREFIX}dead"
"""Deliveries that nobody took, by the time they were given up (ms)."""
REVIEWS = f"{PREFIX}reviews"
"""Jobs in review, by the time they came there (ms)."""
CONFIGURED = f"{PREFIX}configured"
"""Names of accounts and endpoints that workers have announced: `account:...`, `endpoint:...`."""

JOBS = f"{PREFIX}jobs"
"""The job stream: what is in it has still to be taken. All workers read it as one group."""

STREAMS = f"{PREFIX}streams"
"""By endpoint's name, the streams that workers have announced: `plain <key>`, `sealed <key>`."""

Argument = str | bytes | int | float


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Command(Generic[T]):
    """A script to run: its name, KEYS, ARGV, and how its answer reads."""

    script: str
    keys: tuple[str, ...]
    args: tuple[Argument, ...] = field(repr=False)
    read: Callable[[Any], T] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Publication:
    """An event ready to be written: as it goes out, and the same sealed."""

    event_id: str
    event: bytes = field(repr=False)
    sealed: str = field(repr=False)
    kept: str = field(repr=False)
    """What its job's record keeps of it, sealed; '' for an event of no job."""
    endpoints: tuple[str, ...] = ()
    """Who gets it. The script knows which of them are streams: workers have announced it."""

    def args(self) -> tuple[Argument, ...]:
        """As `tell()` in `_lib.lua` takes it."""
        return (self.event_id, self.event, self.sealed, self.kept, *self.endpoints)


def job_key(job_id: str) -> str:
    """The key of a job's record."""
    return f"{PREFIX}job:{job_id}"


def account_key(provider: str, account: str) -> str:
    """The key of an account's pace and breaker."""
    return f"{PREFIX}account:{provider}:{account}"


def account_name(provider: str, account: str) -> str:
    """An account's name among what workers have announced."""
    return f"account:{provider}:{account}"


def endpoint_name(endpoint: str) -> str:
    """An endpoint's name among what workers have announced."""
    return f"endpoint:{endpoint}"


def done_channel(job_id: str) -> str:
    """The channel on which a job's end is told, to whoever waits for it."""
    return f"{PREFIX}done:{job_id}"


def delivery_key(member: str) -> str:
    """The key of a delivery's record."""
    return f"{PREFIX}delivery:{member}"


def ms(seconds: float) -> int:
    """Whole milliseconds."""
    return round(seconds * 1000)


def look(job_id: str) -> Command[Record | None]:
    """Read a job's record; None where there is none."""
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
) -> Command[Accepted | Conflict | Unconfigured]:
    """-> queued. `deadline`: seconds from acceptance, used where the job names none.

    `entry`: that of the job stream which holds the job; done with once the job is in. `trace`:
    what continues its producer's trace; no part of the job.
    """

    def read(answer: Any) -> Accepted | Conflict | Unconfigured:
        verdict = text(answer[0])
        if verdict == "unconfigured":
            return Unconfigured(tuple(map(text, answer[1:])))
        state, at = State(text(answer[1])), int(answer[2])
        if verdict == "conflict":
            return Conflict(job_id)
        return Accepted(job_id, state, at, repeat=verdict == "repeat")

    job_id = job.id
    own = job.deadline
    return Command(
        "accept",
        (job_key(job_id), ALARMS, CONFIGURED, JOBS),
        (
            job_id,
            nonce(6).hex(),
            0 if own else ms(deadline),
            ms(own.timestamp()) if own else 0,
            entry,
            job.provider,
            job.account,
            job.idempotency_key,
            job.lane,
            job.if_exists,
            _names(job.reply_to),
            json.dumps(job.metadata, separators=(",", ":")) if job.metadata else "{}",
            payload,
            trace,
            len(fingerprints),
            *fingerprints,
            *job.reply_to,
        ),
        read,
    )


@lru_cache(maxsize=256)
def _names(endpoints: tuple[str, ...]) -> str:
    # Most jobs of an installation name the same.
    return json.dumps(endpoints)


@dataclass(frozen=True, slots=True)
class ClaimRules:
    """What a claim goes by; seconds."""

    worker: str
    lease: float
    settle_delay: float
    max_attempts: int
    probe: float
    """How long the single probe of an open breaker keeps others waiting."""


def claim(job_id: str, rules: ClaimRules, chance: float) -> Command[Claim | Spent | NotNow | Over]:
    """queued -> calling, or a lease to ask with. `chance`: a random number in [0, 1)."""

    def read(answer: Any) -> Claim | Spent | NotNow | Over:
        verdict, at = text(answer[0]), int(answer[1])
        match verdict:
            case "call" | "ask":
                record = Record.granted(job_id, rules.worker, answer[3:])
                return Claim(record, verdict == "ask", at, text(answer[2]))
            case "spent":
                return Spent(Record.granted(job_id, "", answer[3:]), at)
            case "later":
                return NotNow(text(answer[2]), int(answer[3]))
            case _:
                return Over(text(answer[2]))

    return Command(
        "claim",
        (job_key(job_id), ALARMS),
        (
            job_id,
            nonce(8).hex(),
            rules.worker,
            ms(rules.lease),
            ms(rules.settle_delay),
            rules.max_attempts,
            chance,
            ms(rules.probe),
        ),
        read,
    )


def renew(leases: Sequence[tuple[str, int]], lease: float) -> Command[tuple[bool, ...]]:
    """Renew leases (job id, fence); False for each that is lost."""
    flat = [part for one in leases for part in one]
    return Command(
        "renew", (ALARMS,), (ms(lease), *flat), lambda answer: tuple(kept == 1 for kept in answer)
    )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to settle: the script's verdict and what it needs with it; seconds."""

    name: str
    reason: str = ""
    delay: float = 0.0
    spends: bool = True
    health: str = ""
    """What it says of the account: `ok`, `fault`, `refused`, or nothing."""


@dataclass(frozen=True, slots=True)
class SettleRules:
    """What a settle goes by; seconds."""

    settle_delay: float
    breaker_threshold: int
    breaker_pause: float
    retention: float


def settle(
    claim: Claim, verdict: Verdict, rules: SettleRules, publication: Publication | None
) -> Command[Settled | Stale]:
    """calling or unknown -> what the verdict says. A publication with each final state."""
    job_id = claim.id

    def read(answer: Any) -> Settled | Stale:
        if text(answer[0]) == "stale":
            return Stale(text(answer[1]))
        woken, lane = text(answer[3]), text(answer[4])
        wakes = [Wake(woken, lane)] if woken else []
        wakes += _deliveries(answer[5:])
        return Settled(State(text(answer[1])), int(answer[2]), tuple(wakes))

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
    )


def abandon(
    record: Record, reason: str, max_attempts: int, retention: float, publication: Publication
) -> Command[Settled | Stale]:
    """queued -> abandoned, where its deadline has passed or its attempts are spent."""
    return Command(
        "abandon",
        (job_key(record.id), ALARMS),
        (record.id, record.fence, max_attempts, reason, ms(retention), *publication.args()),
        read_finish,
    )


#: A job that moves between the look and the cancel is looked at again, so often.
LOOKS = 10


def cancel(record: Record, retention: float, publication: Publication) -> Command[Settled | Stale]:
    """queued -> cancelled, unless the job has moved since `record` was read."""
    return Command(
        "cancel",
        (job_key(record.id), ALARMS),
        (record.id, record.attempts, ms(retention), *publication.args()),
        read_finish,
    )


def ring(most: int) -> Command[Ring]:
    """Take up to `most` alarms that are due, and push each ahead."""

    def read(answer: Any) -> Ring:
        woken = answer[2:]
        wakes = tuple(
            Wake(text(woken[i]), text(woken[i + 1]), woken[i + 2] == 1)
            for i in range(0, len(woken), 3)
        )
        return Ring(wakes, int(answer[0]), int(answer[1]))

    return Command("ring", (ALARMS,), (most,), read)


def deliver(member: str, lease: float) -> Command[Delivery | Idle]:
    """Lease one try at a delivery, and a place among its endpoint's tries."""

    def read(answer: Any) -> Delivery | Idle:
        verdict = text(answer[0])
        if verdict != "try":
            return Idle(verdict, text(answer[2]))
        return Delivery.read(member, int(answer[1]), answer[2:])

    arguments = (member, nonce(8).hex(), ms(lease))
    return Command("deliver", (delivery_key(member), ALARMS), arguments, read)


def delivered(
    delivery: Delivery, verdict: str, reason: str, delay: float, *, blame: bool = True
) -> Command[Tried]:
    """Settle one try at a delivery: `arrived`, `later` (in `delay` seconds) or `dead`.

    `blame`: a failure is the endpoint's, and not a fault of ours.
    """

    def read(answer: Any) -> Tried:
        wakes = [Wake(text(answer[2]), "delivery")] if answer[2] else []
        return Tried(text(answer[0]), int(answer[1]) / 1000, tuple(wakes))

    return Command(
        "delivered",
        (delivery_key(delivery.member), ALARMS),
        (delivery.member, delivery.fence, verdict, reason, ms(delay), int(blame)),
        read,
    )


def read_finish(answer: Any) -> Settled | Stale:
    """The answer of a script that ends a job, or moves it along without more."""
    if text(answer[0]) == "stale":
        return Stale(text(answer[1]))
    return Settled(State(text(answer[1])), 0, tuple(_deliveries(answer[2:])))


def _deliveries(members: Sequence[Any]) -> list[Wake]:
    return [Wake(text(member), "delivery") for member in members]

"""What is done to an installation rather than to a job on its way: one function for each.

Workers announce what they serve; operators settle reviews, hold accounts and redrive jobs; messages
that cannot be understood are set aside. As with `commands`, each function makes a `Command`.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from worker.job import Job
from worker.ledger.commands import (
    ALARMS,
    CONFIGURED,
    PREFIX,
    Argument,
    Command,
    Publication,
    job_key,
    ms,
    read_finish,
)
from worker.ledger.records import Conflict, Quarantined, Settled, Stale, text

QUARANTINE = f"{PREFIX}quarantine"
"""Ids of messages that no task could be made of, by the time they came."""


@dataclass(frozen=True, slots=True)
class Limits:
    """An account's pace (GCRA: milliseconds a call, and how far ahead) and calls in flight."""

    provider: str
    account: str
    interval: float
    burst: float
    max_in_flight: int


def announce(accounts: Sequence[Limits], endpoints: Sequence[str]) -> Command[None]:
    """Tell the ledger which accounts and endpoints this worker can serve, and their limits."""
    limits = [
        part
        for one in accounts
        for part in (one.provider, one.account, one.interval, one.burst, one.max_in_flight)
    ]
    return Command("announce", (CONFIGURED,), (len(accounts), *limits, *endpoints), lambda _: None)


def resolve(
    job_id: str,
    decision: str,
    who: str,
    deadline: float,
    retention: float,
    publication: Publication | None,
) -> Command[Settled | Stale]:
    """review -> registered | rejected (with a publication) | unknown (`resend`); seconds."""
    event = publication.args() if publication else ()
    return Command(
        "resolve",
        (job_key(job_id), ALARMS),
        (job_id, decision, who, secrets.token_hex(8), ms(deadline), ms(retention), *event),
        read_finish,
    )


def redrive(
    job: Job, payload: str, fingerprints: Sequence[str], deadline: float
) -> Command[Settled | Stale | Conflict]:
    """abandoned -> unknown, with the payload that its producer brings once more; seconds."""

    def read(answer: Any) -> Settled | Stale | Conflict:
        return Conflict(job.id) if text(answer[0]) == "conflict" else read_finish(answer)

    return Command(
        "redrive",
        (job_key(job.id), ALARMS),
        (job.id, payload, ms(deadline), secrets.token_hex(8), *fingerprints),
        read,
    )


def hold(provider: str, account: str, action: str, why: str, most: int = 500) -> Command[int]:
    """`pause` or `resume` an account; how many waiting jobs were let go, at most `most`."""
    return Command("hold", (ALARMS,), (provider, account, action, why, most), int)


def quarantine_key(id_: str) -> str:
    """The key of one message in quarantine."""
    return f"{QUARANTINE}:{id_}"


def quarantine(id_: str, fields: Mapping[str, Argument], most: int) -> Command[int]:
    """Keep a message, and no more than `most` of them; how often this one has come."""
    flat = [part for pair in fields.items() for part in pair]
    return Command(
        "quarantine",
        (QUARANTINE, quarantine_key(id_)),
        (id_, secrets.token_hex(8), most, *flat),
        int,
    )


def quarantined(most: int) -> Command[tuple[int, int, tuple[Quarantined, ...]]]:
    """How many are in quarantine, how many were dropped for room, and the newest of them."""

    def read(answer: Any) -> tuple[int, int, tuple[Quarantined, ...]]:
        entries = (Quarantined.read(text(one[0]), one[1:]) for one in answer[2:])
        return int(answer[0]), int(answer[1]), tuple(entries)

    return Command("quarantined", (QUARANTINE,), (most,), read)


def look_into_quarantine(id_: str) -> Command[Quarantined | None]:
    """Read one message in quarantine, with its sealed content; None where there is none."""
    return Command(
        "look",
        (quarantine_key(id_),),
        (),
        lambda answer: Quarantined.read(id_, answer) if answer else None,
    )


def unquarantine(id_: str, times: int = 0) -> Command[bool]:
    """Drop a message from quarantine, unless it has come again since it had come `times` times.

    0: whatever has come. Whether it was dropped.
    """
    return Command("unquarantine", (QUARANTINE, quarantine_key(id_)), (id_, times), bool)

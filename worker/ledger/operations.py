"""What is done to an installation rather than to a job on its way: one function for each.

Workers announce what they serve; operators settle reviews, hold accounts and redrive jobs; what
comes in by the asynchronous doors is refused, or, if it cannot be understood, set aside. As with
`commands`, each function makes a `Command`.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from worker.job import Job
from worker.ledger.commands import (
    ALARMS,
    CONFIGURED,
    JOBS,
    PREFIX,
    Argument,
    Command,
    Publication,
    job_key,
    ms,
    read_finish,
)
from worker.ledger.records import Conflict, Quarantined, Settled, Stale, Wake, text
from worker.settings import StreamEndpoint

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


@dataclass(frozen=True, slots=True)
class Left:
    """An entry of the job stream that a reader left, and how often it has been read by now."""

    entry: str
    times: int
    fields: dict[bytes, bytes] = field(repr=False)


#: The form of the ledger's records. One that only adds to it keeps its number, so that old workers
#: go on beside new ones; a higher one is for a change that an old worker would get wrong.
FORMAT = 1


def format_() -> Command[int]:
    """Say which form of records this worker writes; which one the ledger has."""
    return Command("format", (f"{PREFIX}format",), (FORMAT,), int)


def announce(
    accounts: Sequence[Limits],
    endpoints: Sequence[str],
    streams: Mapping[str, StreamEndpoint] = MappingProxyType({}),
) -> Command[None]:
    """Tell the ledger which accounts and endpoints this worker can serve, and their limits.

    `streams`: those of the endpoints that are streams, and how they are written.
    """
    limits = [
        part
        for one in accounts
        for part in (one.provider, one.account, one.interval, one.burst, one.max_in_flight)
    ]
    forms = {
        name: f"{'sealed' if one.sealed else 'plain'} {one.stream}" for name, one in streams.items()
    }
    ends = [part for name in endpoints for part in (name, forms.get(name, ""))]
    return Command("announce", (CONFIGURED,), (len(accounts), *limits, *ends), lambda _: None)


def trim(stream: str, retention: float, most: int) -> Command[tuple[int, tuple[str, ...]]]:
    """Drop up to `most` of a stream's entries older than `retention` seconds that no group needs.

    How many were dropped, and the groups that hold back others of that age.
    """
    return Command(
        "trim",
        (stream,),
        (ms(retention), most),
        lambda answer: (int(answer[0]), tuple(map(text, answer[1:]))),
    )


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


def refuse(
    subject: str, publication: Publication, kept: float, entry: str = ""
) -> Command[tuple[bool, tuple[Wake, ...]]]:
    """Tell that a request was not taken; whether it was told now, and the deliveries to wake.

    Told once for each `entry` of the job stream, which is done with by that. By another door: once
    for each `subject` within `kept` seconds.
    """

    def read(answer: Any) -> tuple[bool, tuple[Wake, ...]]:
        return answer[0] == 1, tuple(Wake(text(member), "delivery") for member in answer[1:])

    return Command(
        "refuse",
        (f"{PREFIX}refusal:{subject}", JOBS, CONFIGURED),
        (subject, ms(kept), entry, *publication.args()),
        read,
    )


def handled(entry: str) -> Command[None]:
    """Be done with an entry of the job stream that made no job."""
    return Command("handled", (JOBS,), (entry,), lambda _: None)


def left(reader: str, idle: float, most: int) -> Command[list[Left]]:
    """Take over up to `most` entries of the job stream that a reader left `idle` seconds ago."""

    def read(answer: Any) -> list[Left]:
        return [
            Left(text(answer[i]), int(answer[i + 1]), _fields(answer[i + 2]))
            for i in range(0, len(answer), 3)
        ]

    return Command("left", (JOBS,), (reader, ms(idle), most), read)


def dismiss(reader: str, gone: float) -> Command[int]:
    """Forget `reader`, and those not heard of for `gone` seconds, unless they left entries."""
    return Command("dismiss", (JOBS,), (reader, ms(gone)), int)


def _fields(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


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


def reseal(key: str, changes: Sequence[tuple[str, str, str]]) -> Command[int]:
    """Put fields of a record under another key: name, value as read, new value, of each.

    How many have their new values; the others have changed meanwhile, and are left as they are.
    """
    return Command("reseal", (key,), tuple(part for change in changes for part in change), int)

"""The stored data of a job: finding it, recording its export, erasing it."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from regworker.domain.actor import Actor
from regworker.ledger.admin import PLAIN
from regworker.ledger.records import Record, pairs, text
from regworker.ledger.streams import LARGEST_EVENT
from regworker.ledger.transitions import ALARMS, PREFIX, Command, job_key

#: Entries that one script reads, and bytes after which it ends: some milliseconds of the server's
#: time.
SLICE, SLICE_BYTES = 500, 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Mention:
    """A stream entry that contains a job's id, or a sealed refusal that may contain it."""

    stream: str
    entry: str
    fields: dict[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Erased:
    """The result of `forget`. `state`: in which the job ended; '' if it had no record."""

    state: str
    entries: int
    """Entries removed from results streams."""
    deliveries: int
    undelivered: int
    """Removed deliveries that no endpoint has received, and none will."""


def mentions(stream: str, job_id: str, after: str) -> Command[tuple[str, list[Mention]]]:
    """A slice of a stream after an entry (`-`: the first): its last entry, or '' at the end."""

    def read(answer: Any) -> tuple[str, list[Mention]]:
        found = [Mention(stream, text(one[0]), pairs(one[1:])) for one in answer[1:]]
        return text(answer[0]), found

    arguments = (after, job_id, SLICE, SLICE_BYTES, LARGEST_EVENT)
    return Command("mentions", (stream,), arguments, read)


def note_export(job_id: str, actor: Actor) -> Command[int]:
    """Write to the audit log that a person exported the stored data of a job."""
    ticket = secrets.token_hex(8)
    keys = (f"{PREFIX}export:{job_id}", job_key(job_id))
    return Command("export", keys, (job_id, ticket, actor.packed), int)


def forget(
    job_id: str,
    record: Record | None,
    actor: Actor,
    entries: Sequence[Mention],
    deliveries: Sequence[str],
) -> Command[Erased | None]:
    """Erase the stored data of a finished job; None if it has changed since `record` was read."""

    def read(answer: Any) -> Erased | None:
        if text(answer[0]) == "stale":
            return None
        return Erased(text(answer[1]), *map(int, answer[2:]))

    seen = f"{record.finished_at} {record.corrected}" if record else ""
    flat = [part for one in entries for part in (one.stream, one.entry)]
    return Command(
        "forget",
        (job_key(job_id), ALARMS, PLAIN),
        (job_id, seen, actor.packed, len(entries), *flat, *deliveries),
        read,
        durable=True,
    )

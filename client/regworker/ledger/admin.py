"""Acts on an installation rather than on a job: one function for each.

Workers announce what they serve; operators settle reviews, pause accounts and redrive jobs;
requests of the asynchronous entry points are refused or, if unreadable, set aside. As in
`transitions`, each function makes a `Command`.
"""

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from regworker.domain.actor import Actor, packed
from regworker.domain.job import Job
from regworker.domain.pace import Pace
from regworker.ledger.calls import scripts
from regworker.ledger.records import Conflict, Quarantined, Record, Settled, Stale, text
from regworker.ledger.rights import commands, probe
from regworker.ledger.transitions import (
    ALARMS,
    ANNOUNCED,
    CONFIGURED,
    JOBS,
    PREFIX,
    STATS,
    WAKING,
    Argument,
    Command,
    Publication,
    account_key,
    job_key,
    ms,
    read_finish,
)
from regworker.settings import StreamEndpoint

QUARANTINE = f"{PREFIX}quarantine"
"""Ids of messages that could not be processed, by their arrival."""


#: Waiting jobs that are tried again at once when an account's pace changes; the rest follow.
LET_GO = 500


@dataclass(frozen=True, slots=True)
class Limits:
    """An account's pace (GCRA: milliseconds per call, and how far ahead) and calls in flight."""

    provider: str
    account: str
    interval: float
    burst: float
    max_in_flight: int


#: The version of the ledger's records. A change that only adds to them keeps the number, so that
#: old and new workers can run together; a higher number means that an old worker would misread
#: them.
FORMAT = 1


def format_() -> Command[int]:
    """Announce which version of records this worker writes; return that of the ledger."""
    return Command("format", (f"{PREFIX}format",), (FORMAT,), int)


def lacking() -> Command[list[str]]:
    """The commands of the scripts that the caller may not run; nothing is run."""
    used = {one for source in scripts().values() for one in commands(source)}
    return Command("rights", (), tuple(probe(used, f"{PREFIX}job:x")), _named)


def announce(
    accounts: Sequence[Limits],
    endpoints: Sequence[str],
    streams: Mapping[str, StreamEndpoint] = MappingProxyType({}),
    keys: Sequence[str] = (),
    *,
    starts: bool = True,
    gone: float = 0,
    accepted: Sequence[str] | None = None,
) -> Command[None]:
    """Announce which accounts and endpoints this worker can serve, and their limits.

    `streams`: those of the endpoints that are streams, and how they are written. `keys`: the marks
    of its keys. `starts`: its limits and streams replace those in the ledger. `gone`: names that no
    worker has announced for so many seconds are dropped; 0: none is dropped. `accepted`: the names
    (`announced.py`) that jobs may use from now on; None: those of this command.
    """
    names = announced_names(accounts, endpoints, keys)
    limits = [
        part
        for one in accounts
        for part in (one.provider, one.account, one.interval, one.burst, one.max_in_flight)
    ]
    forms = {
        name: f"{'sealed' if one.sealed else 'plain'} {one.stream}" for name, one in streams.items()
    }
    ends = [part for name in endpoints for part in (name, forms.get(name, ""))]
    counted: list[str | int] = [len(names), *names, *(names if accepted is None else accepted)]
    return Command(
        "announce",
        (CONFIGURED, ANNOUNCED),
        (int(starts), ms(gone), len(accounts), *limits, len(endpoints), *ends, *counted),
        lambda _: None,
    )


def announced_names(
    accounts: Iterable[Limits], endpoints: Iterable[str], keys: Iterable[str]
) -> list[str]:
    """The names of what is announced."""
    return [
        *(f"account:{one.provider}:{one.account}" for one in accounts),
        *(f"endpoint:{name}" for name in endpoints),
        *(f"key:{mark}" for mark in keys),
    ]


def announce_wakes(envelopes: Mapping[str, tuple[str, str]], keep: float) -> Command[int]:
    """Announce how workers are woken, valid for `keep` seconds.

    `envelopes`: by lane the broker's list and the envelope, if the ledger's own server is the
    broker; otherwise empty.
    """
    forms = [part for lane, (list_, form) in envelopes.items() for part in (lane, list_, form)]
    return Command("announce_wakes", (WAKING,), (ms(keep), *forms), int)


def seals(kid: str, *, note: bool = False) -> Command[int]:
    """About how many texts were sealed under a key, as an upper bound, since workers count.

    `note`: a worker seals with it from now on.
    """
    return Command("seals", (f"{PREFIX}sealing", STATS), (kid, int(note)), int)


PLAIN = f"{PREFIX}plain"
"""When plain input arrived, and when the servers' files were rewritten after it."""


def note_plain() -> Command[None]:
    """Record that plain input is in the servers' files, before it is processed."""
    return Command("plain", (PLAIN,), (), lambda _: None)


def erase(period: float, quiet: float) -> Command[int | None]:
    """Claim the next rewrite of the servers' files, if it is due; return when it began (ms).

    `period`: seconds between two, at least; `quiet`: seconds without plain input.
    """
    return Command("erase", (PLAIN,), (ms(period), ms(quiet)), lambda at: at and int(at))


def erased(begun: int, quiet: float, why: str) -> Command[None]:
    """The files are rewritten; or `why` they are not."""
    return Command("erased", (PLAIN,), (begun, ms(quiet), why), lambda _: None)


def trim(stream: str, retention: float, most: int) -> Command[tuple[int, tuple[str, ...]]]:
    """Drop up to `most` of a stream's entries older than `retention` seconds that no group needs.

    Returns how many were dropped, and the groups that still need older ones.
    """
    return Command(
        "trim",
        (stream,),
        (ms(retention), most),
        lambda answer: (int(answer[0]), tuple(map(text, answer[1:]))),
    )


def resolve(
    record: Record,
    decision: str,
    actor: Actor,
    deadline: float,
    retention: float,
    publication: Publication | None,
    ticket: str = "",
) -> Command[Settled | Stale]:
    """review -> registered | rejected (with a publication) | unknown (`resend`); seconds.

    `Stale("review")`: it is in another review than that of `record`. `ticket`: an act that is
    repeated with it gets the first answer.
    """
    event = publication.args() if publication else ()
    ticket, seen = ticket or secrets.token_hex(8), (record.fence, record.reopened)
    return Command(
        "resolve",
        (job_key(record.id), ALARMS),
        (record.id, decision, actor.packed, ticket, *seen, ms(deadline), ms(retention), *event),
        read_finish,
        durable=True,
    )


def correct(
    job_id: str, decision: str, actor: Actor, publication: Publication
) -> Command[Settled | Stale]:
    """Publish the right `decision` (registered | rejected) after a person's wrong one, once.

    The job's state stays. `Stale("corrected")`: it was corrected before; any other `Stale`: no
    person decided on it.
    """
    return Command(
        "correct",
        (job_key(job_id),),
        (job_id, decision, actor.packed, secrets.token_hex(8), *publication.args()),
        read_finish,
        durable=True,
    )


def redrive(
    job: Job,
    payload: str,
    fingerprints: Sequence[str],
    deadline: float,
    actor: Actor | None = None,
) -> Command[Settled | Stale | Conflict]:
    """abandoned -> unknown, with the payload that its producer sends again; seconds."""

    def read(answer: Any) -> Settled | Stale | Conflict:
        return Conflict(job.id) if text(answer[0]) == "conflict" else read_finish(answer)

    return Command(
        "redrive",
        (job_key(job.id), ALARMS),
        (job.id, payload, ms(deadline), secrets.token_hex(8), packed(actor), *fingerprints),
        read,
        durable=True,
    )


PLANS = f"{PREFIX}plans"
"""Ids of plans (acts on many items), by when they expire (ms)."""


def plan_key(id_: str) -> str:
    """The key of a plan."""
    return f"{PREFIX}plan:{id_}"


def keep_plan(id_: str, fields: Mapping[str, str], kept: float) -> Command[int]:
    """Write fields of a plan, which is kept for so many seconds from now on."""
    flat = [part for pair in fields.items() for part in pair]
    return Command("plan", (plan_key(id_), PLANS), (id_, ms(kept), *flat), int)


def drop_plan(id_: str, left: str, actor: Actor) -> Command[bool]:
    """Forget a plan; False if there was none. `left`: how much was not done, for the audit log."""
    arguments = (id_, left, actor.packed, secrets.token_hex(8))
    return Command("drop_plan", (plan_key(id_), PLANS), arguments, bool)


def stray(key: str) -> Command[bool]:
    """Record that an account or endpoint sent unrequested bytes. Returns whether that is new.

    `key`: of its record.
    """
    return Command("stray", (key,), ("seen", "", "", "", ""), bool)


def trust(key: str, kind: str, name: str, actor: Actor) -> Command[bool]:
    """Trust an account or endpoint (`kind`) again. Returns whether that is new."""
    ticket = secrets.token_hex(8)
    return Command("stray", (key,), ("trusted", actor.packed, f"{kind}.trust", name, ticket), bool)


def hold(
    account: tuple[str, str],
    action: str,
    why: str,
    most: int = 500,
    *,
    actor: Actor | None = None,
    ticket: str = "",
    until: int = 0,
) -> Command[int]:
    """`pause` or `resume` an account; returns how many waiting jobs were released, at most `most`;
    -1 if there was nothing to resume.

    `ticket`: of the batches that are one act, which is in the audit log once. `until`: when a pause
    ends by itself (ms; 0: never).
    """
    ticket = ticket or secrets.token_hex(8)
    arguments = (*account, action, why, most, packed(actor), ticket, until)
    return Command("hold", (ALARMS,), arguments, int)


def pace(account: tuple[str, str], wanted: Pace | None, words: str, actor: Actor) -> Command[str]:
    """Set an account's pace, or return to the setting (None); returns the previous pace as text."""
    limits = (wanted.interval, wanted.burst) if wanted else ("", "")
    name = "/".join(account)
    arguments = (*limits, words, actor.packed, name, secrets.token_hex(8), LET_GO)
    waiting = f"{PREFIX}waiting:{':'.join(account)}"
    return Command("pace", (account_key(*account), waiting), arguments, text)


def refuse(subject: str, publication: Publication, kept: float, entry: str = "") -> Command[bool]:
    """Publish that a request was refused; whether it was published now.

    Published once for each `entry` of the job stream, which is removed by that; otherwise once for
    each `subject` within `kept` seconds.
    """

    return Command(
        "refuse",
        (f"{PREFIX}refusal:{subject}", JOBS, CONFIGURED),
        (subject, ms(kept), entry, *publication.args()),
        lambda answer: answer == 1,
    )


def handled(entry: str) -> Command[None]:
    """Remove an entry of the job stream that made no job."""
    return Command("handled", (JOBS,), (entry,), lambda _: None)


def survived(entries: Iterable[str]) -> Command[int]:
    """Count the deliveries of these entries from 0 again; returns how many are unprocessed."""
    return Command("survived", (JOBS,), tuple(entries), int)


def dismiss(reader: str, gone: float) -> Command[int]:
    """Remove `reader`, and readers inactive for `gone` seconds, unless they left entries."""
    return Command("dismiss", (JOBS,), (reader, ms(gone)), int)


def quarantine_key(id_: str) -> str:
    """The key of a message in quarantine."""
    return f"{QUARANTINE}:{id_}"


def quarantine(id_: str, fields: Mapping[str, Argument], most: int) -> Command[int]:
    """Keep a message, and at most `most` of them; returns how often this one has come."""
    flat = [part for pair in fields.items() for part in pair]
    return Command(
        "quarantine",
        (QUARANTINE, quarantine_key(id_)),
        (id_, secrets.token_hex(8), most, *flat),
        int,
    )


def quarantined(most: int) -> Command[tuple[int, int, tuple[Quarantined, ...]]]:
    """How many are in quarantine, how many were dropped to limit it, and the newest of them."""

    def read(answer: Any) -> tuple[int, int, tuple[Quarantined, ...]]:
        entries = (Quarantined.read(text(one[0]), one[1:]) for one in answer[2:])
        return int(answer[0]), int(answer[1]), tuple(entries)

    return Command("quarantined", (QUARANTINE,), (most,), read)


def look_into_quarantine(id_: str) -> Command[Quarantined | None]:
    """Read a message in quarantine with its sealed content; None if there is none."""
    return Command(
        "look",
        (quarantine_key(id_),),
        (),
        lambda answer: Quarantined.read(id_, answer) if answer else None,
    )


def unquarantine(id_: str, actor: Actor, after: str, times: int = 0) -> Command[bool]:
    """Remove a message from quarantine, unless it was received again after it had come `times`
    times.

    `after`: `dropped`, or `requeued`. 0 times: in any case. Returns whether it was removed.
    """
    what = "quarantine.requeue" if after == "requeued" else "quarantine.drop"
    arguments = (id_, times, actor.packed, what, after, secrets.token_hex(8))
    return Command("unquarantine", (QUARANTINE, quarantine_key(id_)), arguments, bool)


def reseal(
    key: str,
    changes: Sequence[tuple[str, str, str]],
    kid: str,
    actor: Actor | None = None,
    ticket: str = "",
) -> Command[int]:
    """Write fields of a record that were sealed under the key `kid`: name, value as read, new value
    of each.

    Returns how many have their new values; others have changed meanwhile, and stay unchanged.
    `ticket`: of all records of one rotation, which is in the audit log once.
    """
    flat = [part for change in changes for part in change]
    ticket = ticket or secrets.token_hex(8)
    arguments = (packed(actor), ticket, kid, *flat)
    return Command("reseal", (key, f"{PREFIX}rotation"), arguments, int)


TOKENS = f"{PREFIX}tokens"
"""Tokens of the HTTP API: by id, each as JSON."""


def token(
    id_: str, new: str, was: str | bytes, actor: Actor | None, what: str, change: tuple[str, str]
) -> Command[bool]:
    """Create or change a token, as JSON; False if it is not as it `was` ('': there was none).

    `what`: the act; `change`: the audit log's text about before and after.
    """
    return Command("token", (TOKENS,), (id_, new, was, packed(actor), what, *change), bool)


def drop_group(stream: str, group: str, actor: Actor) -> Command[bool]:
    """Drop a consumer group; False if it did not exist."""
    return Command("drop_group", (stream,), (group, actor.packed, secrets.token_hex(8)), bool)


def _named(refused: Any) -> list[str]:
    return [text(one).split()[0].lower() for one in refused]

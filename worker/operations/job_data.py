"""Export and erasure on request: all stored data of one job.

The rules are steps, so that a command carries them out in its thread and the HTTP service in its
loop. Not stored here, and so not touched: the customer at the provider, the host's outbox table,
and messages in quarantine, which belong to no job.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

from pydantic_core import from_json

from regworker.core import record_of
from regworker.domain.actor import Actor
from regworker.domain.errors import JobNotOver, SealingError, UnknownJob
from regworker.domain.event import moment
from regworker.event_builder import EventBuilder
from regworker.ledger.job_data import Erased, Mention, forget, mentions, note_export
from regworker.ledger.records import Record, number, pairs, text
from regworker.ledger.scans import Scan
from regworker.ledger.steps import Ask, Steps
from regworker.ledger.transitions import (
    ALARMS,
    AUDIT,
    LOOKS,
    REVIEWS,
    STREAMS,
    Command,
    delivery_key,
    look,
)
from regworker.results import RESULTS
from regworker.sealing import seals
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from worker.operations.audit import AuditEntry

#: Entries, and deliveries, that one script erases: about a millisecond of the server's time.
PART = 100

SHUT = "sealed with a key that is not set here"
"""Replaces what cannot be opened."""

#: What ends a job of each state, before its data can be erased.
ENDS = {
    "queued": "cancel it first: regworker cancel {id}",
    "review": "decide it first: regworker review resolve {id}",
    "calling": "wait until it ends: regworker status {id}",
    "unknown": "wait until it ends: regworker status {id}",
}


@dataclass(slots=True)
class Traces:
    """Everything that is stored about a job besides its record."""

    entries: list[Mention] = field(default_factory=list)
    deliveries: dict[str, dict[str, str]] = field(default_factory=dict)
    """Their records, by member."""


@dataclass(frozen=True, slots=True)
class Owner:
    """The account of a job, to check a caller's rights. Empty if it is unknown."""

    provider: str
    account: str


class JobData:
    """Finds, exports and erases what is stored about a job."""

    def __init__(self, settings: Settings) -> None:
        self._keyring = Keyring.of(settings)
        self._event_builder = EventBuilder(settings, self._keyring)

    def owner(self, job_id: str) -> Steps[Owner]:
        """The account of a job; `UnknownJob` if it has no record any more."""
        record = yield from record_of(job_id)
        if record is None:
            raise _unknown(job_id)
        return Owner(record.provider, record.account)

    def export(self, job_id: str, actor: Actor) -> Steps[dict[str, Any]]:
        """Everything that is stored about a job, opened if the keys are here. The audit log has an
        entry.

        Not what is left of an earlier job of the same key, which may be another customer's. The
        result may contain a customer's secrets. Raises `UnknownJob`.
        """
        record = yield from record_of(job_id)
        traces = yield from self._traces(job_id)
        if record is None and not (traces.entries or traces.deliveries):
            raise _unknown(job_id)
        yield [note_export(job_id, actor)]
        seconds, _ = yield Ask(lambda redis: redis.time())
        acts = map(_act, (yield from _mentioned(AUDIT, job_id)))
        entries = [(_at(one.entry), self._entry(one)) for one in traces.entries]
        deliveries = [
            (number(one.get("created_at")), self._delivery(member, one))
            for member, one in traces.deliveries.items()
        ]
        accepted = [_accepted(one["event"]) for _, one in (*entries, *deliveries)]
        since = record.accepted_at if record else max(accepted, default=0)
        return {
            "job_id": job_id,
            "exported_at": moment(seconds * 1000).isoformat(),
            "record": self._record(record) if record else None,
            "registration": self._registration(record) if record and record.payload else None,
            "event": self._last(record) if record else None,
            "published": [one for at, one in entries if _is_of(one["event"], at, since)],
            "deliveries": [one for at, one in deliveries if _is_of(one["event"], at, since)],
            "audit": [asdict(one) for one in acts if job_id in one.on and one.at >= since],
            "indexes": (yield from _indexes(job_id, record)) if record else [],
        }

    def forget(self, job_id: str, actor: Actor) -> Steps[Erased]:
        """Erase what is stored about a finished job; `forget.lua` says what remains.

        Safe to repeat, also after a part. Raises `UnknownJob`, and `JobNotOver` with what to do.
        """
        for _ in range(LOOKS):
            record = yield from record_of(job_id)
            if record is not None and not record.final:
                what = ENDS[record.state].format(id=job_id)
                raise JobNotOver(f"job {job_id} is {record.state}: {what}")
            traces = yield from self._traces(job_id)
            if record is None and not (traces.entries or traces.deliveries):
                raise _unknown(job_id)
            done = yield from _erase(job_id, record, actor, traces)
            if done is not None:
                return done
        raise JobNotOver(f"job {job_id} has not ended: see `regworker status {job_id}`")

    def _traces(self, job_id: str) -> Steps[Traces]:
        found = Traces()
        forms: Any = yield Ask(lambda redis: redis.hvals(STREAMS))
        streams = {RESULTS, *(text(form).partition(" ")[2] for form in forms)}
        for stream in sorted(streams):
            for one in (yield from _mentioned(stream, job_id)):
                if self._is_about(one.fields, job_id):
                    found.entries.append(one)
        own = f"d:{job_id}."
        for member in (yield from _deliveries((own, "d:refused-"))):
            [record] = yield [Command("look", (delivery_key(member),), (), pairs)]
            if member.startswith(own) or self._is_about(record, job_id):
                found.deliveries[member] = record
        return found

    def _is_about(self, fields: Mapping[str, str], job_id: str) -> bool:
        """Whether an entry or a delivery holds an event of the job, or a refusal that names it."""
        if fields.get("id", fields.get("event_id", "")).startswith(f"{job_id}."):
            return True
        event = self._event(fields)
        if not isinstance(event, dict):
            return False
        data = event.get("data")
        named = data.get("job_id") if isinstance(data, dict) else None
        return job_id in {event.get("subject"), named}

    def _event(self, fields: Mapping[str, str]) -> Any:
        """The event in an entry of a stream or in a delivery's record, opened."""
        sealed = fields.get("sealed") or (fields.get("event") if "event_id" in fields else None)
        if not sealed:
            return _json(fields.get("event", ""))
        seal = seals.event(fields.get("id") or fields["event_id"])
        return self._opened(sealed, seal)

    def _opened(self, sealed: str, seal: seals.Seal) -> Any:
        try:
            return from_json(self._keyring.open(sealed, seal))
        except (SealingError, ValueError):
            return SHUT

    def _record(self, record: Record) -> dict[str, Any]:
        hidden = {"payload", "event", "correction", "log", "trace", "forgotten_at"}
        found = {name: value for name, value in asdict(record).items() if name not in hidden}
        found["timeline"] = [{"at": _iso(at), "what": what} for at, what in record.timeline]
        for name in found:
            if name.endswith("_at") or name in {"lease_until", "settle_until"}:
                found[name] = _iso(found[name])
        return {**found, "forgotten_at": _iso(record.forgotten_at)}

    def _registration(self, record: Record) -> Any:
        return self._opened(record.payload, seals.payload(record))

    def _last(self, record: Record) -> Any:
        try:
            return self._event_builder.last(record)
        except (SealingError, ValueError):
            return SHUT

    def _entry(self, one: Mention) -> dict[str, Any]:
        return {"stream": one.stream, "entry": one.entry, "event": self._event(one.fields)}

    def _delivery(self, member: str, fields: Mapping[str, str]) -> dict[str, Any]:
        return {
            "id": member,
            "endpoint": fields.get("endpoint", ""),
            "state": fields.get("state", ""),
            "tries": int(fields.get("tries") or 0),
            "created_at": _iso(int(fields.get("created_at") or 0)),
            "why": fields.get("why", ""),
            "event": self._event(fields),
        }


def _erase(
    job_id: str, record: Record | None, actor: Actor, traces: Traces
) -> Steps[Erased | None]:
    """Erase the record and the first traces by one script, and then the others, some at a time.

    None if the job has changed since.
    """
    entries, deliveries = traces.entries, list(traces.deliveries)
    parts = list[Erased]()
    for at in range(0, max(len(entries), len(deliveries), 1), PART):
        some = slice(at, at + PART)
        if at:
            [record] = yield [look(job_id)]
        [done] = yield [forget(job_id, record, actor, entries[some], deliveries[some])]
        if done is None:
            return None
        parts.append(done)
    return Erased(
        parts[0].state,
        sum(one.entries for one in parts),
        sum(one.deliveries for one in parts),
        sum(one.undelivered for one in parts),
    )


def _mentioned(stream: str, job_id: str) -> Steps[list[Mention]]:
    found: list[Mention] = []
    after = "-"
    while after:
        [(after, some)] = yield [mentions(stream, job_id, after)]
        found += some
    return found


def _deliveries(prefixes: tuple[str, ...]) -> Steps[list[str]]:
    """The deliveries whose members begin with one of these.

    Their records are searched, not the indexes of pending and of dead deliveries: one that changes
    meanwhile would be missing in both, and an index may have dropped what still has its record.
    """
    scan, found = Scan("scan", match=delivery_key("*")), set[str]()
    while not scan.done:
        some = scan.take((yield Ask(scan.page)))
        if scan.first:
            found.clear()
        members = (text(key).removeprefix(delivery_key("")) for key in some)
        found.update(one for one in members if one.startswith(prefixes))
    return sorted(found)


def _score(key: str, member: str, redis: Any) -> Any:
    return redis.zscore(key, member)


def _indexes(job_id: str, record: Record) -> Steps[list[str]]:
    """The keys of the indexes that list the job."""
    account = f"{record.provider}:{record.account}"
    keys = [ALARMS, REVIEWS, *(f"{{reg}}:{name}" for name in ("open", "later"))]
    keys += [f"{{reg}}:{name}:{account}" for name in ("waiting", "inflight")]
    found: list[str] = []
    for key in keys:
        score = yield Ask(partial(_score, key, job_id))
        found += [key] if score is not None else []
    ended = f"{{reg}}:ended:{record.state}:{account}"
    if record.final and any((yield from _mentioned(ended, job_id))):
        found.append(ended)
    return found


def _act(one: Mention) -> AuditEntry:
    return AuditEntry.read(one.entry, one.fields)


def _at(entry: str) -> int:
    """The time of a stream's entry, by its id."""
    return int(entry.partition("-")[0])


def _accepted(event: Any) -> int:
    """When an event's job was accepted; 0 if the event does not say so, as a refusal."""
    data = event.get("data") if isinstance(event, dict) else None
    try:
        accepted = datetime.fromisoformat(data["accepted_at"]) if isinstance(data, dict) else None
        return round(accepted.timestamp() * 1000) if accepted else 0
    except (KeyError, TypeError, ValueError):
        return 0


def _is_of(event: Any, at: int, since: int) -> bool:
    """Whether an event of this time is of the job that was accepted at `since`."""
    accepted = _accepted(event)
    return accepted == since if accepted else at >= since


def _unknown(job_id: str) -> UnknownJob:
    what = "never accepted here, or past its retention"
    return UnknownJob(f"no data is stored about job {job_id}: {what}")


def _json(value: str) -> Any:
    try:
        return json.loads(value) if value else None
    except ValueError:
        return None


def _iso(ms: float) -> str | None:
    return moment(ms).isoformat() if ms else None


def without_secrets(
    found: dict[str, Any], public: Callable[[Mapping[str, Any]], dict[str, Any]], secret: str
) -> dict[str, Any]:
    """An export for display: its registration hidden, and its events reduced by `public`."""

    def shown(one: dict[str, Any]) -> dict[str, Any]:
        event = one["event"]
        return {**one, "event": public(event) if isinstance(event, Mapping) else event}

    registration = secret if found["registration"] is not None else None
    lists = {name: [shown(one) for one in found[name]] for name in ("published", "deliveries")}
    return {**shown(found), **lists, "registration": registration}

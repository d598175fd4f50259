"""Counts what is sealed under which key, and seals all of it under the first one.

Workers and producers keep running: each value is replaced only if it has not changed since it was
read. What a job's end erased cannot be sealed under another key: the fingerprint of a finished job,
which recognizes a repeat, stays under its key until the record expires.
"""

import json
import re
import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from pydantic_core import from_json

from regworker.acceptance import Intake
from regworker.announced import check_key
from regworker.domain.actor import Actor
from regworker.domain.errors import SealingError
from regworker.domain.job import Job, canonical
from regworker.ledger import SyncLedger
from regworker.ledger.admin import QUARANTINE, reseal
from regworker.ledger.records import USUAL, text
from regworker.ledger.scans import Scan
from regworker.ledger.streams import page
from regworker.ledger.transitions import JOBS, PREFIX, STREAMS, announced
from regworker.sealing import seals
from regworker.sealing.keyring import Keyring, kid_of
from regworker.sealing.seals import Seal
from regworker.settings import Settings
from worker.providers.registry import Registry

#: Records read in one round trip: some milliseconds of the server's time.
BATCH = 500

_JOB = f"{PREFIX}job:"

_DELIVERY = f"{PREFIX}delivery:"
_SET_ASIDE = f"{QUARANTINE}:"

#: The sealed fields of records: the prefix of their keys, the field, and its kind.
_SEALED: tuple[tuple[str, str, str], ...] = (
    (_JOB, "payload", "payloads"),
    (_JOB, "event", "events"),
    (_JOB, "correction", "events"),
    (_DELIVERY, "event", "deliveries"),
    (_SET_ASIDE, "content", "quarantine"),
)

#: Other fields that are read, to make a record's seals and a job's fingerprint.
_BESIDE = {
    _JOB: ("fingerprint", "provider", "account", "key", "if_exists", "reply_to", "metadata"),
    _DELIVERY: ("event_id", "endpoint"),
    _SET_ASIDE: ("queue",),
}

KINDS = ("payloads", "events", "deliveries", "quarantine", "streams", "fingerprints", "repeats")
"""What is counted for each key. `streams`: entries, which cannot be rewritten; `fingerprints`: of
unfinished jobs; `repeats`: of finished jobs, gone when their records expire."""


@dataclass(slots=True)
class RotationTally:
    """The result so far. `done`: records read; `resealed`: values sealed under the first key."""

    done: int = 0
    resealed: int = 0
    kept: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How many values are sealed under a key, by (kid, kind)."""
    until: dict[str, int] = field(default_factory=dict)
    """When the last repeat under a key expires (ms)."""
    shut: Counter[str] = field(default_factory=Counter)
    """Values under a key that this keyring cannot open."""

    def start(self) -> None:
        """All records are read, perhaps again; what was resealed stays so."""
        self.done = 0
        for found in (self.kept, self.until, self.shut):
            found.clear()

    def under(self, kid: str) -> dict[str, int]:
        """The values under a key, by kind."""
        return {kind: self.kept[kid, kind] for kind in KINDS}

    def kids(self) -> set[str]:
        """The keys under which anything is sealed."""
        return {kid for (kid, _), count in self.kept.items() if count}


class Rotation:
    """Reads the whole ledger. Close it, or use it as a context manager."""

    def __init__(self, settings: Settings) -> None:
        self._keyring = Keyring.parse(settings.sealing_keys.get_secret_value())
        self._intake = Intake(Registry(()), self._keyring, settings.deadline)
        self._ledger = SyncLedger(settings.redis_url)
        self._act: tuple[Actor | None, str] = (None, "")

    @property
    def kids(self) -> tuple[str, ...]:
        """The keys of the setting; the first one seals."""
        return self._keyring.kids

    def size(self) -> int:
        """About how many records there are."""
        found: Any = self._ledger.patiently(self._ledger.redis.dbsize, 10)
        return int(found)

    def turns(self, *, writing: bool, actor: Actor | None = None) -> Iterator[RotationTally]:
        """Read all records, one batch per turn; `writing`: seal them under the first key, by
        `actor`.

        Yields the same tally each time, updated. At the end, every record that existed at the start
        has been read; `LedgerUnavailable` if that is not possible.
        """
        if writing:
            check_key(self._keyring.marks[0], self._ledger.ask(announced))
        tally, scan = RotationTally(), Scan("scan", match=f"{PREFIX}*", count=BATCH)
        self._act = (actor, secrets.token_hex(8))
        while not scan.done:
            keys = list(map(text, scan.take(self._ledger.ask(scan.page))))
            if scan.first:
                tally.start()
            self._look(keys, tally, writing=writing)
            tally.done += len(keys)
            yield tally
        for stream, name in self._streams():
            for kids in self._entries(stream, name):
                tally.kept.update((kid, "streams") for kid in kids)
                yield tally

    def close(self) -> None:
        """Close all connections."""
        self._ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _look(self, keys: Sequence[str], tally: RotationTally, *, writing: bool) -> None:
        records = [_Record(key, fields) for key in keys if (fields := _fields(key))]
        for record, values, expires in zip(records, *self._read(records), strict=True):
            record.values, record.expires = values, expires
        if writing:
            changed = [(one, changes) for one in records if (changes := self._changes(one, tally))]
            first = self.kids[0]
            commands = [reseal(one.key, new, first, *self._act) for one, new in changed]
            for (one, changes), count in zip(changed, self._ledger.many(commands), strict=True):
                tally.resealed += count
                one.values |= {name: new for name, _, new in changes}
        for record in records:
            record.count(tally)

    def _read(self, records: Sequence["_Record"]) -> tuple[list[dict[str, str]], list[int]]:
        def look(redis: Any) -> Any:
            # Made anew for each try: redis-py's pipeline is empty after a failure.
            pipeline = redis.pipeline(transaction=False)
            for record in records:
                pipeline.hmget(record.key, record.fields)
                pipeline.pexpiretime(record.key)
            answers = pipeline.execute(raise_on_error=False)
            for one in answers:
                # A key that is no record holds no sealed data of ours; any other error is the
                # server's.
                if isinstance(one, Exception) and "WRONGTYPE" not in str(one):
                    raise one
            return answers

        answers = self._ledger.ask(look)
        values = [
            {}
            if isinstance(found, Exception)
            else {name: text(value) for name, value in zip(one.fields, found, strict=True) if value}
            for one, found in zip(records, answers[::2], strict=True)
        ]
        return values, [int(one) for one in answers[1::2]]

    def _changes(self, record: "_Record", tally: RotationTally) -> list[tuple[str, str, str]]:
        changes = []
        for name, kind, sealed in record.sealed():
            if kid_of(sealed) == self.kids[0]:
                continue
            try:
                seal = record.seal(kind)
                plain = self._keyring.open(sealed, seal)
            except (SealingError, ValueError, KeyError):
                tally.shut[kid_of(sealed)] += 1
                continue
            changes.append((name, sealed, self._keyring.seal(plain, seal)))
        return changes + self._print(record)

    def _print(self, record: "_Record") -> list[tuple[str, str, str]]:
        """Make a fingerprint again if the job's content is there and belongs to the job."""
        values = record.values
        before, payload = values.get("fingerprint", ""), values.get("payload", "")
        if not payload or before.startswith(f"{self.kids[0]}:"):
            return []
        try:
            job = record.job()
            plain = self._keyring.open(payload, seals.payload(job))
            found = self._intake.fingerprints(job, canonical(from_json(plain)))
        except (SealingError, ValueError, KeyError):
            return []
        return [("fingerprint", before, found[0])] if before in found else []

    def _streams(self) -> list[tuple[str, str]]:
        """The streams with sealed entries: their keys, and the sealed field."""
        forms: Any = self._ledger.patiently(lambda: self._ledger.redis.hgetall(STREAMS), 10)
        pairs = [text(value).partition(" ") for value in forms.values()]
        sealed = {stream for form, _, stream in pairs if form == "sealed"}
        return [(stream, "sealed") for stream in sorted(sealed)] + [(JOBS, "job")]

    def _entries(self, stream: str, name: str) -> Iterator[list[str]]:
        after = "-"
        while found := self._ledger(page(stream, after)):
            after = found[-1].entry
            values = [text(one.fields.get(name.encode(), b"")) for one in found]
            yield [kid_of(sealed) for value in values if (sealed := _sealed_in(value))]


@dataclass(slots=True)
class _Record:
    """A record that may hold sealed fields."""

    key: str
    fields: tuple[str, ...]
    values: dict[str, str] = field(default_factory=dict)
    expires: int = 0

    def sealed(self) -> Iterator[tuple[str, str, str]]:
        """Its sealed fields: name, kind, value."""
        for prefix, name, kind in _SEALED:
            if self.key.startswith(prefix) and name in self.values:
                yield name, kind, self.values[name]

    def seal(self, kind: str) -> Seal:
        """The seal of one of its fields. `KeyError`, `ValueError`: the record is not ours."""
        match kind:
            case "payloads":
                return seals.payload(self.job())
            case "events":
                return seals.kept(self.key.removeprefix(_JOB))
            case "deliveries":
                return seals.event(self.values["event_id"], self.values["endpoint"])
            case _:
                return seals.quarantine(self.key.removeprefix(_SET_ASIDE), self.values["queue"])

    def job(self) -> Job:
        """The job of the record, without its sealed fields."""
        values = USUAL | self.values
        job = Job.model_validate(
            {
                **{name: values[name] for name in ("provider", "account", "if_exists")},
                **{name: json.loads(values[name]) for name in ("reply_to", "metadata")},
                "idempotency_key": "any",
                "registration": {},
            }
        )
        # As they are: this process may not know each character of the key.
        kept = {"idempotency_key": values["key"], "id": self.key.removeprefix(_JOB)}
        return job.model_copy(update=kept)

    def count(self, tally: RotationTally) -> None:
        """Add it to a tally."""
        for _, kind, sealed in self.sealed():
            tally.kept[kid_of(sealed), kind] += 1
        kid, colon, _ = self.values.get("fingerprint", "").partition(":")
        if not kid:  # the job was erased
            return
        if colon and self.expires > 0:
            tally.kept[kid, "repeats"] += 1
            tally.until[kid] = max(tally.until.get(kid, 0), self.expires)
        elif colon:
            tally.kept[kid, "fingerprints"] += 1


def _fields(key: str) -> tuple[str, ...]:
    found = tuple(name for prefix, name, _ in _SEALED if key.startswith(prefix))
    beside = [names for prefix, names in _BESIDE.items() if key.startswith(prefix)]
    return (*found, *(name for names in beside for name in names))


def _sealed_in(value: str) -> str:
    """The sealed text in an entry: the entry itself, or a job's registration."""
    if not value.startswith("{"):
        return value
    found = re.search(r'"(eyJ[^"]*)"', value)
    return found[1] if found else ""

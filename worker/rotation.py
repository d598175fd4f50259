"""Which keys what is kept is sealed under, and putting all of it under the first one.

Workers and producers go on meanwhile: each value is replaced only if it is still what was read.
What a job's end erased cannot be put under another key: the fingerprint of a finished job, by which
a repeat of it is known, stays under its key until the record expires.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from pydantic_core import from_json

from worker.errors import SealingError
from worker.intake import Intake
from worker.job import Job, canonical
from worker.ledger import SyncLedger
from worker.ledger.commands import JOBS, PREFIX, STREAMS
from worker.ledger.operations import QUARANTINE, reseal
from worker.ledger.records import text
from worker.providers.registry import Registry
from worker.sealing import Keyring, kid_of
from worker.settings import Settings

#: Records looked at in one round trip: some milliseconds of the server's time.
BATCH = 500

_JOB = f"{PREFIX}job:"

#: What is sealed in which records: the beginning of their keys, the field, and what it is called.
_SEALED: tuple[tuple[str, str, str], ...] = (
    (_JOB, "payload", "payloads"),
    (_JOB, "event", "events"),
    (f"{PREFIX}delivery:", "event", "deliveries"),
    (f"{QUARANTINE}:", "content", "quarantine"),
)

#: What else a fingerprint is made again from, beside the registration.
_OF_JOB = ("provider", "account", "key", "if_exists", "reply_to", "metadata")

KINDS = ("payloads", "events", "deliveries", "quarantine", "streams", "fingerprints", "repeats")
"""What is counted under each key. `streams`: entries, which cannot be rewritten; `fingerprints`: of
jobs that go on; `repeats`: of finished ones, gone when their records expire."""


@dataclass(slots=True)
class Tally:
    """What was found. `done`: records looked at; `resealed`: values put under the first key."""

    done: int = 0
    resealed: int = 0
    kept: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How many values are under a key, by (kid, kind)."""
    until: dict[str, int] = field(default_factory=dict)
    """When the last repeat under a key is gone (ms)."""
    shut: Counter[str] = field(default_factory=Counter)
    """Values under a key that could not be opened with this keyring."""

    def under(self, kid: str) -> dict[str, int]:
        """What is under a key, by kind."""
        return {kind: self.kept[kid, kind] for kind in KINDS}

    def kids(self) -> set[str]:
        """The keys that anything is under."""
        return {kid for (kid, _), count in self.kept.items() if count}


class Rotation:
    """Looks through the ledger. Close it, or use it as a context manager."""

    def __init__(self, settings: Settings) -> None:
        self._keyring = Keyring.parse(settings.sealing_keys.get_secret_value())
        self._intake = Intake(Registry(()), self._keyring, settings.deadline)
        self._ledger = SyncLedger(settings.redis_url)

    @property
    def kids(self) -> tuple[str, ...]:
        """The keys of the setting; the first seals."""
        return self._keyring.kids

    def size(self) -> int:
        """About how many records there are to look at."""
        found: Any = self._ledger.patiently(self._ledger.redis.dbsize, 10)
        return int(found)

    def turns(self, *, writing: bool) -> Iterator[Tally]:
        """Look at all there is, a batch a turn; `writing`: put it under the first key.

        The same tally each time, further along. Once it has ended, all that was there when it began
        has been looked at.
        """
        tally, cursor = Tally(), 0
        while True:
            cursor, keys = self._scan(cursor)
            self._look(keys, tally, writing=writing)
            tally.done += len(keys)
            yield tally
            if not cursor:
                break
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

    def _scan(self, cursor: int) -> tuple[int, list[str]]:
        redis = self._ledger.redis
        found: Any = self._ledger.patiently(lambda: redis.scan(cursor, f"{PREFIX}*", BATCH), 10)
        return int(found[0]), list(map(text, found[1]))

    def _look(self, keys: Sequence[str], tally: Tally, *, writing: bool) -> None:
        records = [_Record(key, fields) for key in keys if (fields := _fields(key))]
        for record, values, expires in zip(records, *self._read(records), strict=True):
            record.values, record.expires = values, expires
        if writing:
            changed = [(one, changes) for one in records if (changes := self._changes(one, tally))]
            commands = [reseal(one.key, changes) for one, changes in changed]
            for (one, changes), count in zip(changed, self._ledger.many(commands), strict=True):
                tally.resealed += count
                one.values |= {name: new for name, _, new in changes}
        for record in records:
            record.count(tally)

    def _read(self, records: Sequence["_Record"]) -> tuple[list[dict[str, str]], list[int]]:
        pipeline = self._ledger.redis.pipeline(transaction=False)
        for record in records:
            pipeline.hmget(record.key, record.fields)
            pipeline.pexpiretime(record.key)
        answers: Any = self._ledger.patiently(pipeline.execute, 10)
        values = [
            {name: text(value) for name, value in zip(record.fields, found, strict=True) if value}
            for record, found in zip(records, answers[::2], strict=True)
        ]
        return values, [int(one) for one in answers[1::2]]

    def _changes(self, record: "_Record", tally: Tally) -> list[tuple[str, str, str]]:
        changes = []
        for name, _, sealed in record.sealed():
            if kid_of(sealed) == self.kids[0]:
                continue
            try:
                plain = self._keyring.open(sealed)
            except SealingError:
                tally.shut[kid_of(sealed)] += 1
                continue
            changes.append((name, sealed, self._keyring.seal(plain)))
        return changes + self._print(record)

    def _print(self, record: "_Record") -> list[tuple[str, str, str]]:
        """A fingerprint is made again where its content is there, and proves to be its own."""
        values = record.values
        before, payload = values.get("fingerprint", ""), values.get("payload", "")
        if not payload or before.startswith(f"{self.kids[0]}:"):
            return []
        try:
            found = self._prints(values, self._keyring.open(payload))
        except (SealingError, ValueError, KeyError):
            return []
        return [("fingerprint", before, found[0])] if before in found else []

    def _prints(self, values: Mapping[str, str], registration: bytes) -> list[str]:
        job = Job(
            provider=values["provider"],
            account=values["account"],
            idempotency_key=values["key"],
            registration={},
            if_exists=values["if_exists"],
            reply_to=json.loads(values["reply_to"]),
            metadata=json.loads(values["metadata"]),
        )
        return self._intake.fingerprints(job, canonical(from_json(registration)))

    def _streams(self) -> list[tuple[str, str]]:
        """Streams that hold sealed texts: their keys, and the field that does."""
        forms: Any = self._ledger.patiently(lambda: self._ledger.redis.hgetall(STREAMS), 10)
        pairs = [text(value).partition(" ") for value in forms.values()]
        sealed = {stream for form, _, stream in pairs if form == "sealed"}
        return [(stream, "sealed") for stream in sorted(sealed)] + [(JOBS, "job")]

    def _entries(self, stream: str, name: str) -> Iterator[list[str]]:
        after = "-"
        redis = self._ledger.redis
        while True:
            found: Any = self._ledger.patiently(
                lambda after=after: redis.xrange(stream, after, count=BATCH),  # type: ignore[misc]
                10,
            )
            if not found:
                return
            after = f"({text(found[-1][0])}"
            values = [text(fields.get(name.encode(), b"")) for _, fields in found]
            yield [kid_of(sealed) for value in values if (sealed := _sealed_in(value))]


@dataclass(slots=True)
class _Record:
    """A record that may hold something sealed."""

    key: str
    fields: tuple[str, ...]
    values: dict[str, str] = field(default_factory=dict)
    expires: int = 0

    def sealed(self) -> Iterator[tuple[str, str, str]]:
        """Its sealed fields: name, kind, value."""
        for prefix, name, kind in _SEALED:
            if self.key.startswith(prefix) and name in self.values:
                yield name, kind, self.values[name]

    def count(self, tally: Tally) -> None:
        """Add it to a tally."""
        for _, kind, sealed in self.sealed():
            tally.kept[kid_of(sealed), kind] += 1
        kid, colon, _ = self.values.get("fingerprint", "").partition(":")
        if colon and self.expires > 0:
            tally.kept[kid, "repeats"] += 1
            tally.until[kid] = max(tally.until.get(kid, 0), self.expires)
        elif colon:
            tally.kept[kid, "fingerprints"] += 1


def _fields(key: str) -> tuple[str, ...]:
    names = tuple(name for prefix, name, _ in _SEALED if key.startswith(prefix))
    return (*names, "fingerprint", *_OF_JOB) if key.startswith(_JOB) else names


def _sealed_in(value: str) -> str:
    """The sealed text in an entry: the entry's own, or a job's registration."""
    if not value.startswith("{"):
        return value
    found = re.search(r'"(eyJ[^"]*)"', value)
    return found[1] if found else ""

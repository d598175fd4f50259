"""The audit log: people's actions on an installation, read from its stream."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from regworker.ledger import SyncLedger
from regworker.ledger.records import text
from regworker.ledger.transitions import AUDIT

#: Entries read in one round trip.
PAGE = 200

#: Seconds for which the ledger may be away.
PATIENCE = 10.0


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One act of a person. `at`: ms, by the ledger's clock."""

    id: str
    at: int
    who: str
    role: str
    where: str
    what: str
    """The act: `review.registered`, `account.pause`, ..."""
    on: str
    """The subject: a job's id, `provider/account`, an endpoint, a delivery, a message."""
    why: str
    before: str
    after: str

    @classmethod
    def read(cls, id_: Any, fields: Any) -> "AuditEntry":
        """Parse an entry of the stream."""
        entry = text(id_)
        found = {text(name): text(value) for name, value in fields.items()}
        names = ("who", "role", "what", "on", "why", "before", "after")
        values = {name: found.get(name, "") for name in names}
        at = int(entry.partition("-")[0])
        return cls(id=entry, at=at, where=found.get("from", ""), **values)


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which entries: all that match the given fields. `job` also matches its deliveries."""

    since: datetime | None = None
    until: datetime | None = None
    who: str = ""
    what: str = ""
    """An act, or the first word of several acts: `review`."""
    job: str = ""

    def wants(self, entry: AuditEntry) -> bool:
        """Whether an entry matches, except for its time."""
        return (
            self.who in {"", entry.who}
            and (not self.what or entry.what == self.what or entry.what.startswith(f"{self.what}."))
            and (not self.job or self.job in entry.on)
        )


class AuditLog:
    """Reads the audit log. Only the scripts of the acts themselves write it."""

    def __init__(self, ledger: SyncLedger) -> None:
        self._ledger = ledger

    def entries(self, wanted: AuditFilter, after: str = "") -> Iterator[AuditEntry]:
        """Entries, the oldest first; `after`: those after this one."""
        first = f"({after}" if after else _bound(wanted.since, "-")
        last = _bound(wanted.until, "+")
        while found := self._read(
            lambda redis, first=first: redis.xrange(AUDIT, first, last, count=PAGE)
        ):
            entries = [AuditEntry.read(*one) for one in found]
            yield from filter(wanted.wants, entries)
            first = f"({entries[-1].id}"

    def newest(self, wanted: AuditFilter, before: str = "", most: int = PAGE) -> list[AuditEntry]:
        """Up to `most` entries, the newest first; `before`: those before this one."""
        rows: list[AuditEntry] = []
        last = f"({before}" if before else _bound(wanted.until, "+")
        first = _bound(wanted.since, "-")
        while len(rows) < most:
            found = self._read(
                lambda redis, last=last: redis.xrevrange(AUDIT, last, first, count=PAGE)
            )
            entries = [AuditEntry.read(*one) for one in found]
            rows += filter(wanted.wants, entries)
            if len(entries) < PAGE:
                break
            last = f"({entries[-1].id}"
        return rows[:most]

    def last(self) -> str:
        """The id of the newest entry, or `0-0`."""
        found = self._read(lambda redis: redis.xrevrange(AUDIT, count=1))
        return text(found[0][0]) if found else "0-0"

    def wait(self, after: str, seconds: float) -> None:
        """Wait until there is an entry after this one, or until the time is over."""
        block = max(1, round(seconds * 1000))
        self._read(lambda redis: redis.xread({AUDIT: after}, count=1, block=block))

    def _read(self, question: Any) -> Any:
        return self._ledger.ask(question, PATIENCE)


def _bound(at: datetime | None, otherwise: str) -> str:
    return otherwise if at is None else str(round(at.timestamp() * 1000))

"""Lists of jobs: by state, account, age, key, reason and metadata, a page at a time.

Jobs in several states are read from several indexes, and merged by time. A page's cursor says how
far each index was read: the time, the index at that time, and the entry in it.
"""

import base64
import binascii
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from heapq import heapify, heappop, heapreplace
from typing import Literal

from redis.exceptions import ResponseError

from regworker.announced import accounts_of
from regworker.domain.errors import RegistrationWorkerError
from regworker.domain.job import job_id
from regworker.domain.states import FINAL, State
from regworker.ledger import SyncLedger
from regworker.ledger.listing import (
    LATEST,
    SLICE,
    Index,
    JobRow,
    Slice,
    WantedJobs,
    ended_accounts,
    ended_indexes,
    find,
    heads,
    open_indexes,
)
from regworker.ledger.records import Record
from regworker.ledger.transitions import announced, job_key, look, were_announced

#: Rows of a page, and entries that are read for it: some tens of milliseconds at most.
PAGE, BUDGET = 50, 10_000

#: Indexes of which a page each may be read for one page of the list.
FEW = 40

#: Indexes whose first entry one script finds, if there are more indexes than that.
HEADS = 100


#: Entries of the indexes: a score and an id, and an id of a stream.
_OPEN, _ENDED = re.compile(r"[0-9]{1,16} .*"), re.compile(r"[0-9]{1,20}-[0-9]{1,20}")


def mark_of(job: JobRow | Record) -> str:
    """A value of a job that changes with every step."""
    return f"{job.state}:{job.fence}:{job.reopened}"


class WrongCursor(RegistrationWorkerError):  # noqa: N818
    """Raised for a cursor that does not come from a page of jobs."""


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs: all that match the given fields.

    `since` and `until` refer to the time when a job ended, or for an unfinished job, was accepted.
    `reason`: a part of why it waits, or of the last line of its timeline. `metadata`: names and
    values, as text.
    """

    states: tuple[State, ...] = ()
    provider: str = ""
    account: str = ""
    key: str = ""
    ids: tuple[str, ...] = ()
    since: datetime | None = None
    until: datetime | None = None
    reason: str = ""
    metadata: tuple[tuple[str, str], ...] = ()
    sort: Literal["newest", "oldest"] = "newest"

    @property
    def wanted(self) -> WantedJobs:
        """The filter for the ledger's script."""
        usual = WantedJobs()
        return WantedJobs(
            provider=self.provider,
            account=self.account,
            reason=self.reason,
            metadata=self.metadata,
            since=_ms(self.since, usual.since),
            until=_ms(self.until, usual.until),
            newest=self.sort == "newest",
        )


@dataclass(frozen=True, slots=True)
class JobPage:
    """A page of a list."""

    rows: tuple[JobRow, ...]
    cursor: str | None
    """Where the next page begins; None: this is the last."""
    looked_at: int
    """Entries that were read. A page may have fewer rows than requested, and still a cursor: a
    filter by reason or metadata reads all jobs that the other filters leave, some of them for each
    page."""


@dataclass(slots=True)
class _IndexReader:
    """Reads one index, and knows how far it was read."""

    index: Index
    after: str
    at: int
    rows: list[tuple[int, str, JobRow]] = field(default_factory=list)
    begun: bool = False
    exhausted: bool = False

    def take(self, found: Slice) -> int:
        """Process the entries of a slice; return how many were read."""
        self.rows, self.exhausted, self.after = list(found.rows), found.exhausted, found.after
        self.at, self.begun = found.at or self.at, True
        return found.looked_at

    def start(self, at: int, *, newest: bool) -> None:
        """Process the time of the first entry; -1: there is none."""
        self.at, self.begun, self.exhausted = max(at, 0), True, at < 0
        if newest and not self.after:
            # A job may end before this index is read: it belongs to no page that starts here.
            self.after = f"{at + 1}-0"

    @property
    def head(self) -> int:
        """The time of the next entry, or the earliest that it may have."""
        return self.rows[0][0] if self.rows else self.at

    @property
    def done(self) -> bool:
        return self.exhausted and not self.rows


class JobList:
    """Finds jobs in a ledger."""

    def __init__(self, ledger: SyncLedger) -> None:
        self._ledger = ledger
        self.unreadable: list[str] = []
        """Keys that a list has skipped, because they hold no valid record."""

    def page(
        self, wanted: JobFilter, cursor: str | None = None, most: int = PAGE, budget: int = BUDGET
    ) -> JobPage:
        """One page. Raises `WrongCursor`."""
        if wanted.ids or wanted.key:
            return self._named(wanted)
        asked = wanted.wanted
        # Each index starts with one slice: even of a small budget, no index takes all.
        slice_size = max(1, min(SLICE, budget // 10))
        readers = self._readers(wanted, _at(cursor), asked)
        self._begin(readers, asked)
        looked_at = 0
        rows: list[JobRow] = []
        last: tuple[int, str, str] | None = None
        sign = -1 if asked.newest else 1
        next_ = [(sign * one.head, one.index.name, one) for one in readers if not one.done]
        heapify(next_)
        while len(rows) < most:
            if not next_:
                return JobPage(tuple(rows), None, looked_at)
            one = next_[0][2]
            if one.rows:
                at, position, row = one.rows.pop(0)
                if not rows or rows[-1].id != row.id:
                    rows.append(row)
                last = (at, one.index.name, position)
            elif looked_at >= budget and all(reader.begun or reader.done for reader in readers):
                # The budget is used up before the page is full: the next page starts after this
                # entry.
                last = (one.at, one.index.name, one.after)
                break
            else:
                looked_at += one.take(
                    self._ledger(find(one.index, asked, one.after, most - len(rows), slice_size))
                )
            if one.done:
                heappop(next_)
            else:
                heapreplace(next_, (sign * one.head, one.index.name, one))
        more = last is not None and not all(one.done for one in readers)
        return JobPage(tuple(rows), _cursor(last) if more and last else None, looked_at)

    def all(self, wanted: JobFilter) -> Iterator[JobRow]:
        """Every job, page by page. A job that changes meanwhile may be missing or occur twice."""
        cursor: str | None = None
        while True:
            page = self.page(wanted, cursor, 200)
            yield from page.rows
            cursor = page.cursor
            if cursor is None:
                return

    def _begin(self, readers: Sequence[_IndexReader], asked: WantedJobs) -> None:
        """Find the time of the first job of each stream, if there are very many.

        A page has jobs of few of them: to read a page of each would read most records there are.
        """
        streams = [one for one in readers if one.index.kind == "stream"]
        if len(streams) <= FEW:
            return
        batches = [streams[at : at + HEADS] for at in range(0, len(streams), HEADS)]
        found = self._ledger.many(
            heads([(one.index, one.after) for one in batch], asked) for batch in batches
        )
        for batch, times in zip(batches, found, strict=True):
            for one, at in zip(batch, times, strict=True):
                one.start(at, newest=asked.newest)

    def _readers(
        self, wanted: JobFilter, cursor: tuple[int, str, str] | None, asked: WantedJobs
    ) -> list[_IndexReader]:
        open_ = [one for one in wanted.states or tuple(State) if one not in FINAL]
        indexes = open_indexes(open_)
        if ended := _ended(wanted):
            known = self._ledger.ask(ended_accounts)
            indexes += ended_indexes(
                [
                    (state, provider, account)
                    for state, provider, account in known
                    if state in ended
                    and wanted.provider in {"", provider}
                    and wanted.account in {"", account}
                ]
            )
        start = asked.until if asked.newest else asked.since
        readers = []
        for one in indexes:
            reader = _IndexReader(one, "", start)
            if cursor is not None:
                at, name, after = cursor
                reader.at = at
                if one.name == name:
                    reader.after = after
                else:
                    reader.after = _from(one, at, passed=one.name < name, newest=asked.newest)
            readers.append(reader)
        return readers

    def _named(self, wanted: JobFilter) -> JobPage:
        ids = wanted.ids
        if wanted.key:
            ids = tuple(job_id(*account, wanted.key) for account in self._accounts(wanted))
        rows = []
        for id_ in dict.fromkeys(ids):
            try:
                record = self._ledger(look(id_))
            except (ResponseError, LookupError, ValueError):
                self.unreadable.append(job_key(id_))
                continue
            if record is not None and not record.forgotten_at and _matches(record, wanted):
                rows.append(JobRow.of(record))
        rows.sort(key=lambda row: row.at, reverse=wanted.sort == "newest")
        return JobPage(tuple(rows), None, len(ids))

    def _accounts(self, wanted: JobFilter) -> Sequence[tuple[str, str]]:
        if wanted.provider and wanted.account:
            return [(wanted.provider, wanted.account)]
        names = {*self._ledger.ask(announced), *self._ledger.ask(were_announced)}
        found = {*accounts_of(names)}
        found |= {(provider, account) for _, provider, account in self._ledger.ask(ended_accounts)}
        return sorted(
            one
            for one in found
            if wanted.provider in {"", one[0]} and wanted.account in {"", one[1]}
        )


def _ended(wanted: JobFilter) -> frozenset[State]:
    return frozenset(wanted.states or FINAL) & FINAL


def _matches(record: Record, wanted: JobFilter) -> bool:
    row, asked = JobRow.of(record), wanted.wanted
    said = f"{row.why}\n{row.last}".lower()
    return (
        (not wanted.states or row.state in wanted.states)
        and wanted.provider in {"", row.provider}
        and wanted.account in {"", row.account}
        and asked.since <= row.at <= asked.until
        and wanted.reason.lower() in said
        and all(_told(record.metadata.get(name)) == value for name, value in wanted.metadata)
    )


def _told(value: object) -> str | None:
    """A value of the metadata as text, as the script compares it."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value) if isinstance(value, bool | int | float) else None


def _from(one: Index, at: int, *, passed: bool, newest: bool) -> str:
    """Where to start in an index, given a cursor of another index.

    `passed`: whether its entries of that same time were before the cursor.
    """
    if one.kind == "stream":
        # After the last entry of that time, or before the first; ids are `<ms>-<number>`.
        low, high = f"{at}-0", f"{at}-18446744073709551615"
        if newest:
            return low if passed else f"{at + 1}-0"
        return high if passed else f"{at - 1}-18446744073709551615"
    # In the order of bytes, no id is before '' or after this.
    first, last = "", "\x7f"
    end = first if passed == newest else last
    return f"{one.base + at} {end}"


def _at(cursor: str | None) -> tuple[int, str, str] | None:
    if not cursor:
        return None
    try:
        at, name, after = json.loads(base64.urlsafe_b64decode(cursor.encode()))
        found = int(at), str(name), str(after)
        if 0 < found[0] <= LATEST and _is_place(*found[1:]):
            return found
    except (ValueError, TypeError, OverflowError, binascii.Error):
        pass
    raise WrongCursor("cursor: does not belong to this list; start again without it")


def _is_place(name: str, after: str) -> bool:
    """Whether an index with this name may have an entry like this; '' is the index's start."""
    after.encode()  # not each text that JSON allows can be sent
    if not after or name.startswith("open:"):
        return not after or bool(_OPEN.fullmatch(after))
    stream = _ENDED.fullmatch(after)
    return bool(stream) and all(int(part) < 2**64 for part in after.split("-"))


def _cursor(last: tuple[int, str, str]) -> str:
    return base64.urlsafe_b64encode(json.dumps(last).encode()).decode()


def _ms(at: datetime | None, usual: int) -> int:
    return usual if at is None else min(round(at.timestamp() * 1000), LATEST)

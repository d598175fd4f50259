"""Published events for all waiting requests: one reader of the stream per process.

The reader keeps the newest events in memory. A request that is further behind reads pages of the
stream itself, over the connection that all requests share.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import structlog
from redis.exceptions import NoScriptError, RedisError

from regworker.domain.errors import LedgerUnavailable
from regworker.domain.event import Event, EventData, moment
from regworker.ledger import AsyncLedger
from regworker.ledger.calls import scripts
from regworker.ledger.records import number, text
from regworker.ledger.streams import Found, asking, edge, later, page
from regworker.ledger.transitions import job_key
from regworker.results import RESULTS, Opener, Result, UnreadableEvent
from worker.gateway.auth import Principal

log = structlog.get_logger(__name__)

#: The most events in memory, and their bytes.
KEPT, KEPT_BYTES = 2000, 16 * 1024 * 1024

#: The most events in one answer.
MOST = 100

#: Seconds for which one request reads events that the caller may not see. Then it answers without
#: events, and its cursor says where the next request continues.
SCAN = 1.0

#: Seconds of one blocking read: shorter than the connection's timeout.
BLOCK = 2.0

#: Seconds until the reader tries again after a server error.
PAUSE = 0.5

#: Seconds for which a request waits for the ledger.
PATIENCE = 5.0


@dataclass(frozen=True, slots=True)
class Published:
    """One event of the stream, and its job's owner. `raw` is empty if the event cannot be read, or
    was deleted; `by` is empty if the job is no longer kept."""

    entry: str
    raw: bytes = field(default=b"", repr=False)
    by: str = ""
    account: str = ""
    """`provider/account`."""

    def is_for(self, principal: Principal) -> bool:
        """Whether the caller may see it: events of own jobs, or all events with `read:all`."""
        if not self.raw:
            return False
        if principal.accounts is not None and self.account not in principal.accounts:
            return False
        return principal.may("read:all") or self.by == principal.name


class EventFeed:
    """The results stream, read once for all requests of a process."""

    def __init__(self, ledger: AsyncLedger, open_: Opener, sealed: bool) -> None:
        self._ledger = ledger
        self._open = open_
        self._sealed = sealed
        self._kept: deque[Published] = deque()
        self._bytes = 0
        self._since = ""
        """The memory has all entries after this one; '': the reader has not started."""
        self._last = ""
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def last(self) -> str:
        """The cursor after the newest event."""
        return await self._ledger(edge(RESULTS, "+"), PATIENCE) or "0-0"

    async def after(
        self, cursor: str, principal: Principal, wait: float, stopping: asyncio.Event
    ) -> tuple[list[bytes], str]:
        """Events after a cursor that the caller may see, and the next cursor.

        Without any such event it waits, up to `wait` seconds. Entries of other owners also move the
        cursor; after `SCAN` seconds of these it returns no events.
        """
        clock = asyncio.get_running_loop().time
        end, until = clock() + wait, clock() + SCAN
        while True:
            news = self._news
            left = end - clock()
            # The memory may lag by some milliseconds: a caller that waits gets the rest from the
            # reader.
            found = await (self._following(cursor, principal) if left > 0 else self._page(cursor))
            shown: list[bytes] = []
            for one in found:
                cursor = one.entry
                if one.is_for(principal):
                    shown.append(one.raw)
            done = clock() >= until if found else left <= 0
            if shown or done or stopping.is_set():
                return shown, cursor
            if not found:
                await _first(news, stopping, left)
                until = clock() + SCAN

    async def aclose(self) -> None:
        """Stop the reader."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _following(self, cursor: str, principal: Principal) -> Sequence[Published]:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._read())
        if self._since and later(self._since, cursor) == cursor:
            if self._last and later(self._last, cursor) == cursor:
                return ()
            behind = [one for one in self._kept if later(one.entry, cursor) != cursor][:MOST]
            return await self._current(cursor, behind, principal)
        return await self._page(cursor)

    async def _current(
        self, cursor: str, found: Sequence[Published], principal: Principal
    ) -> Sequence[Published]:
        """Entries from memory, without the content of those that the stream no longer has:
        `forget` deletes a job's events from the stream. Only the caller's entries are checked."""
        before = [cursor, *(one.entry for one in found[:-1])]
        pairs = zip(before, found, strict=True)
        # An entry exists if it is the first one after the entry before it.
        asked = [edge(RESULTS, last) for last, one in pairs if one.is_for(principal)]
        there = set(await self._ledger.many(asked, PATIENCE))
        return [one if one.entry in there else replace(one, raw=b"") for one in found]

    async def _page(self, cursor: str) -> Sequence[Published]:
        found = await self._ledger(page(RESULTS, cursor), PATIENCE)
        return await self._published(found)

    async def _read(self) -> None:
        """Follow the stream as long as the process runs."""
        while True:
            try:
                if not self._since:
                    self._last = self._since = await self.last()
                await self._turn()
            except (RedisError, LedgerUnavailable, OSError) as error:
                log.warning("the stream of results cannot be read", error=type(error).__name__)
                await asyncio.sleep(PAUSE)

    async def _turn(self) -> None:
        command = page(RESULTS, self._last)
        try:
            answer = await self._ledger.exchange(asking(command, RESULTS, self._last, BLOCK))
        except NoScriptError:
            source = scripts()[command.script]
            await self._ledger.ask(lambda redis: redis.script_load(source))
            return
        found = command.read(answer)
        if not found:
            return
        published = await self._published(found)
        for one in published:
            self._kept.append(one)
            self._bytes += len(one.raw)
        while len(self._kept) > KEPT or self._bytes > KEPT_BYTES:
            gone = self._kept.popleft()
            self._since = gone.entry
            self._bytes -= len(gone.raw)
        self._last = found[-1].entry
        self._news.set()
        self._news = asyncio.Event()

    async def _published(self, found: Sequence[Found]) -> list[Published]:
        """Entries with their jobs' owners: one query for all jobs of a page."""
        read = [self._parsed(one) for one in found]
        jobs = [event.data.job_id if event else "" for _, event in read]
        wanted = [job for job in jobs if job]

        async def owners(redis: Any) -> list[Any]:
            pipe = redis.pipeline(transaction=False)
            for job in wanted:
                pipe.hmget(job_key(job), "by", "accepted_at")
            return list(await pipe.execute())

        answers = (
            await self._ledger.patiently(lambda: self._ledger.ask(owners), PATIENCE)
            if wanted
            else []
        )
        records = dict(zip(wanted, answers, strict=True))
        return [
            Published(
                one.entry,
                raw,
                _owner(event, *records[job]) if event else "",
                f"{event.data.provider}/{event.data.account}" if event else "",
            )
            for one, (raw, event), job in zip(found, read, jobs, strict=True)
        ]

    def _parsed(self, one: Found) -> tuple[bytes, Any]:
        result = Result(one.entry, one.fields, 0, one.size, self._open, self._sealed)
        try:
            event = result.event
        except UnreadableEvent:
            log.warning("an entry of the stream holds no event", entry=one.entry)
            return b"", None
        # A refused request has no job, and a notice is about an endpoint.
        known = isinstance(event, Event) and isinstance(event.data, EventData)
        return result.raw, event if known else None


def _owner(event: Any, by: Any, accepted_at: Any) -> str:
    """The owner of an event's job, by the job's record."""
    # A key makes a new job when the old one is no longer kept: of the same id, perhaps of another
    # owner. Only the time of acceptance distinguishes the two.
    if not by or moment(number(accepted_at)) != event.data.accepted_at:
        return ""
    return text(by)


async def _first(news: asyncio.Event, stopping: asyncio.Event, seconds: float) -> None:
    """Wait for one of the two, up to `seconds`."""
    waiting = [asyncio.ensure_future(one.wait()) for one in (news, stopping)]
    try:
        await asyncio.wait(waiting, timeout=max(0.0, seconds), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for one in waiting:
            one.cancel()

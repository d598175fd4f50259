"""The job stream: any Redis client adds requests to it, and all workers read it as one group.

    XADD {reg}:jobs * job '{"provider": "skypostal", "idempotency_key": "crm-8841", ...}'
    XADD {reg}:jobs * cancel '{"provider": "skypostal", "idempotency_key": "crm-8841"}'

What stands in the stream is not done with: an entry leaves it in the script that puts its job into
the ledger, or that tells why not. One that a worker took along when it died is read by another.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Protocol, assert_never

import redis.asyncio
import structlog
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ReadOnlyError, RedisError

from worker.doors import Checked, Early, Taken
from worker.entry import Entry, Origin, Request, Unreadable, read
from worker.errors import LedgerUnavailable
from worker.ledger import AsyncLedger
from worker.ledger.client import CONNECT_TIMEOUT, SOCKET_TIMEOUT, passing
from worker.ledger.commands import JOBS
from worker.ledger.operations import dismiss, handled, left
from worker.ledger.records import Wake
from worker.quarantine import Parcel
from worker.telemetry import alert

log = structlog.get_logger(__name__)

READERS = "workers"
"""The consumer group. The scripts that are done with an entry know it by this name too."""

#: Entries in one turn: enough to share round trips, few enough to open and seal in milliseconds.
BATCH = 50

#: Seconds that a read waits at the server for something to come. Shorter than a socket waits for
#: an answer, so that a server that hangs is told from one that has nothing.
BLOCK = SOCKET_TIMEOUT / 2

#: Seconds between tries of a cancel whose job may still be on its way, and how long it is tried:
#: by then whatever came before it is done with, or nobody will ever do it.
EARLY_PAUSE, EARLY_PATIENCE = 0.1, 60.0

#: How often an entry is read before it is set aside: whoever reads it dies of it.
MOST_READS = 20

#: Seconds between turns while the server is away: short first, for a restart; then calm.
FIRST_PAUSE, LAST_PAUSE = 0.05, 1.0

#: Seconds between turns while the stream cannot be read for a reason that does not pass.
WRONG_PAUSE = 5.0

#: Seconds without a sign after which a reader is gone for good.
GONE = 3600.0

#: Seconds that what is in hand has to come to its end when the worker stops. What does not, is
#: read by others.
STOP = 5.0


class Taker(Protocol):
    """Takes requests: `worker.doors`."""

    def check(self, entry: Entry) -> Checked:
        """Whether it is a good request. From any thread."""
        ...

    async def take(self, entry: Entry, checked: Checked, *, wait: bool = True) -> Taken | Early:
        """Do what is asked for, or tell why not. With that the entry is done with."""
        ...


Fields = Mapping[bytes, bytes]
Entries = Mapping[str, Fields]

_REQUESTS: Mapping[bytes, Request] = {b"job": "register", b"cancel": "cancel"}


@dataclass(frozen=True, slots=True)
class _Request:
    """What one entry asks for. `until`: so long it may wait for what came before it."""

    entry: Entry
    checked: Checked | Exception
    until: float
    fields: Fields = field(repr=False)

    @property
    def id(self) -> str:
        return self.entry.origin.id


class Inbox:
    """One reader of the job stream. `read_once` in a loop; `aclose` ends it."""

    def __init__(
        self,
        ledger: AsyncLedger,
        doors: Taker,
        wake: Callable[[Iterable[Wake]], int],
        keep: Callable[[Parcel], str],
        url: str,
        reader: str,
        idle: float,
    ) -> None:
        """`keep`: puts into quarantine; `idle`: seconds after which a reader counts as dead."""
        self._ledger = ledger
        self._doors = doors
        self._wake = wake
        self._keep = keep
        self._name = reader
        self._idle = idle
        # A connection of its own, to wait in. Nothing is repeated on it: what was read and did not
        # arrive is read again.
        self._redis: redis.asyncio.Redis = redis.asyncio.Redis.from_url(
            url,
            max_connections=1,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=SOCKET_TIMEOUT,
            socket_connect_timeout=CONNECT_TIMEOUT,
        )
        self._connection = 0
        self._turn = asyncio.Lock()
        self._stopping = False
        self._early: list[_Request] = []
        # What this reader was given already: in an earlier life, or on a connection that broke.
        self._own = True
        self._left_at = 0.0
        self._trouble = ""
        self._pause = FIRST_PAUSE

    async def read_once(self) -> float:
        """Take what has come, or wait for it; seconds until the next turn."""
        if self._stopping:
            return STOP
        async with self._turn:
            try:
                entries = await self._next()
            except (RedisError, LedgerUnavailable) as error:
                return await self._in_trouble(error)
            if self._trouble:
                log.info("the job stream is read again")
            self._trouble, self._pause = "", FIRST_PAUSE
            started = time.monotonic()
            if not await self._handle(entries):
                # The ledger did not answer: what could not be done is read again.
                self._own = True
                return LAST_PAUSE
            # An import by this door leaves half of the time to the calls in flight.
            took = min(time.monotonic() - started, LAST_PAUSE)
            return took if len(entries) >= BATCH else 0.0

    async def aclose(self) -> None:
        """End the turn that goes on, read no more, and close the connection."""
        self._stopping = True
        try:
            async with asyncio.timeout(STOP):
                if self._turn.locked():
                    await self._ledger.redis.client_unblock(self._connection)
                async with self._turn:
                    await self._ledger(dismiss(self._name, GONE), patience=0)
        except (RedisError, LedgerUnavailable, TimeoutError) as error:
            # What it has in hand is read by others.
            log.debug("the job stream's reader just goes", error=type(error).__name__)
        await self._redis.aclose()

    async def _next(self) -> Entries:
        """Entries to handle: those that a dead reader left, else our own, else new ones."""
        if not self._connection:
            self._connection = await self._redis.client_id()
        now = time.monotonic()
        if now >= self._left_at:
            if found := await self._take_over():
                return found
            self._left_at = now + self._idle / 4
        if self._own:
            found = await self._read("0", None)
            self._own = len(found) >= BATCH
            if found:
                return found
        if self._stopping:
            return {}
        wait = EARLY_PAUSE if self._early else min(BLOCK, self._idle / 4)
        # 0 would be for ever.
        return await self._read(">", max(1, round(wait * 1000)))

    async def _read(self, start: str, block: int | None) -> Entries:
        reply: Any = await self._redis.xreadgroup(
            READERS, self._name, {JOBS: start}, count=BATCH, block=block
        )
        if isinstance(reply, dict):  # by Redis's third protocol
            lists = [entries for many in reply.values() for entries in many]
        else:
            lists = [entries for _, entries in reply]
        return {id_.decode(): fields for entries in lists for id_, fields in entries}

    async def _take_over(self) -> Entries:
        found = await self._ledger(left(self._name, self._idle, BATCH), patience=0)
        if found:
            log.info("entries of the job stream are taken over", count=len(found))
        for one in found:
            if one.times > MOST_READS:
                await self._set_aside(one.entry, one.fields, "whoever reads it comes to no end")
        return {one.entry: one.fields for one in found if one.times <= MOST_READS}

    async def _handle(self, entries: Entries) -> bool:
        """Take requests in their order; whether all are done with, or wait in their place."""
        waiting, self._early = self._early, []
        known = {one.id for one in waiting}
        new = {id_: fields for id_, fields in entries.items() if id_ not in known}
        requests, well = await self._opened(new)
        wakes: list[Wake] = []
        # In their order: a cancel finds the job that came before it. Jobs share their round trips.
        for kind, some in groupby([*waiting, *requests], key=lambda one: one.entry.request):
            batch = list(some)
            for one, answer in zip(batch, await self._all(kind, batch), strict=True):
                match answer:
                    case Taken():
                        wakes.extend(answer.wakes)
                    case Early():
                        self._early.append(one)
                    case None:
                        well = False
                    case _:
                        assert_never(answer)
        if wakes:
            # kombu publishes synchronously; the loop goes on meanwhile.
            await asyncio.to_thread(self._wake, wakes)
        return well

    async def _all(self, kind: Request, batch: Iterable[_Request]) -> list[Taken | Early | None]:
        if kind == "register":
            return list(await asyncio.gather(*map(self._take, batch)))
        # One by one: a cancel looks whether anything stands before it.
        return [await self._take(one) for one in batch]

    async def _opened(self, entries: Entries) -> tuple[list[_Request], bool]:
        """What can be answered; and whether all else is done with."""
        found: list[tuple[Entry, Fields]] = []
        well = True
        for id_, fields in entries.items():
            try:
                found.append((_entry(id_, fields), fields))
            except Unreadable as error:
                well &= await self._set_aside(id_, fields, str(error)) is not None
        until = time.monotonic() + EARLY_PATIENCE

        def check() -> list[_Request]:
            return [_Request(entry, self._check(entry), until, fields) for entry, fields in found]

        # In a thread: opening and sealing must not hold up the calls in flight.
        return (await asyncio.to_thread(check) if found else []), well

    def _check(self, entry: Entry) -> Checked | Exception:
        try:
            return self._doors.check(entry)
        except Exception as error:  # noqa: BLE001 -- one entry must not keep the others
            return error

    async def _take(self, request: _Request) -> Taken | Early | None:
        """None: not done with, and to be read again."""
        fault = request.checked
        if not isinstance(fault, Exception):
            try:
                wait = time.monotonic() < request.until
                return await self._doors.take(request.entry, fault, wait=wait)
            except LedgerUnavailable:
                return None
            except Exception as error:  # noqa: BLE001 -- whatever it is, it must not come for ever
                fault = error
        reason = f"the worker failed at it ({type(fault).__name__})"
        return await self._set_aside(request.id, request.fields, reason)

    async def _set_aside(self, id_: str, fields: Fields, reason: str) -> Taken | None:
        """Put an entry into quarantine, and be done with it; None where that must wait."""
        try:
            if fields:  # else it was deleted, after it was read
                parcel = Parcel.of_entry(fields, reason)
                log.warning("an entry is set aside", entry=id_, reason=reason, bytes=parcel.size)
                await asyncio.to_thread(self._keep, parcel)
            await self._ledger(handled(id_))
        except (RedisError, LedgerUnavailable) as error:
            log.warning("the quarantine waits for the ledger", error=type(error).__name__)
            return None
        return Taken("set aside")

    async def _in_trouble(self, error: Exception) -> float:
        """The stream cannot be read. Said once; seconds until the next try."""
        self._own, self._connection, self._left_at = True, 0, 0.0
        if str(error).startswith("NOGROUP"):
            try:
                # From the start: whatever is in the stream has not been done.
                await self._redis.xgroup_create(JOBS, READERS, id="0", mkstream=True)
            except RedisError as other:
                error = other
            else:
                return 0.0
            if str(error).startswith("BUSYGROUP"):
                return 0.0
        what = f"{type(error).__name__}: {str(error)[:100]}"
        if isinstance(error, ReadOnlyError):
            # A replica now: a new connection finds the new primary.
            await self._redis.connection_pool.disconnect()
        if passing(error) or isinstance(error, LedgerUnavailable):
            if not self._trouble:
                log.warning("the job stream cannot be read now", error=what)
            self._pause = min(LAST_PAUSE, self._pause * 2)
            self._trouble = self._trouble or what
            return self._pause
        if self._trouble != what:
            alert("the job stream cannot be read", kind="inbox", reason=what)
        self._trouble = what
        return WRONG_PAUSE


def _entry(id_: str, fields: Fields) -> Entry:
    asked = [name for name in _REQUESTS if name in fields]
    if len(asked) != 1:
        raise Unreadable("it has no field `job` or `cancel`, or both")
    return read(_REQUESTS[asked[0]], fields[asked[0]], Origin("stream", id_))

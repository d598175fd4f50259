"""The job stream: any Redis client adds requests to it, and all workers read it as one group.

    XADD {reg}:jobs * job '{"provider": "skypostal", "idempotency_key": "crm-8841", ...}'
    XADD {reg}:jobs * cancel '{"provider": "skypostal", "idempotency_key": "crm-8841"}'

A field `traceparent` beside them names the trace that the job belongs to. `regworker serve` without
sealing keys adds `answer`, by which it waits for an answer, and `by`, the name of the HTTP token.

Entries in the stream are not processed yet: an entry leaves it in the script that puts its job into
the ledger, or that publishes the refusal. One that a worker took along when it died is read by
another. An entry that is too large is not read: it is set aside without its content.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Protocol, assert_never

import redis.asyncio
import structlog
from redis.exceptions import NoScriptError, ReadOnlyError, RedisError

from regworker.domain.errors import LedgerUnavailable, Problem
from regworker.domain.job import is_name
from regworker.domain.request import (
    MOST_BYTES,
    Entry,
    Origin,
    Request,
    Unreadable,
    read,
    read_beginning,
)
from regworker.ledger import AsyncLedger
from regworker.ledger.admin import dismiss, handled, survived
from regworker.ledger.answers import ID
from regworker.ledger.calls import scripts
from regworker.ledger.client import CONNECT_TIMEOUT, SOCKET_TIMEOUT, passing
from regworker.ledger.servers import async_client
from regworker.ledger.streams import LARGEST_JOB, PAGE, START, Asking, Found, GroupReader, later
from regworker.ledger.transitions import JOBS, Command
from worker.intake.async_requests import Bad, Checked, Early, Taken
from worker.intake.quarantine import QuarantineEntry
from worker.telemetry import alert
from worker.telemetry.redaction import name_of
from worker.telemetry.sampling import Sampled

log = structlog.get_logger(__name__)

READERS = "workers"
"""The consumer group. The scripts that acknowledge entries also use this name."""

#: Seconds for which a read waits at the server. Shorter than the timeout of the socket, so that a
#: hanging server is distinguished from one without entries.
BLOCK = SOCKET_TIMEOUT / 2

#: Seconds between tries of a cancel whose job may still be in the stream, and for which it is
#: tried: by then every earlier request is processed, or will never be.
EARLY_PAUSE, EARLY_PATIENCE = 0.1, 60.0

#: How often an entry is read before it is set aside: its readers probably crash on it. Reads that
#: the reader survives do not count.
MOST_READS = 20

#: Seconds between turns while the server is away: short at first, for a restart; then longer.
FIRST_PAUSE, LAST_PAUSE = 0.05, 1.0

#: Seconds between turns while the stream cannot be read for a permanent reason.
WRONG_PAUSE = 5.0

#: Seconds without activity after which a reader is gone for good.
GONE = 3600.0

#: Seconds for entries in work to end when the worker stops. Other readers take over the rest.
STOP = 5.0


class Taker(Protocol):
    """Processes requests: `worker.intake.async_requests`."""

    def check(self, entry: Entry) -> Checked:
        """Check a request. Thread-safe."""
        ...

    async def take(self, entry: Entry, checked: Checked, *, wait: bool = True) -> Taken | Early:
        """Carry out a request, or report why not. The entry is then processed."""
        ...


Fields = Mapping[bytes, bytes]

_REQUESTS: Mapping[bytes, Request] = {b"job": "register", b"cancel": "cancel"}


@dataclass(frozen=True, slots=True)
class _StreamRequest:
    """The request of one entry. `until`: how long it may wait for earlier requests."""

    entry: Entry
    checked: Checked | Exception
    until: float
    fields: Fields = field(repr=False)

    @property
    def id(self) -> str:
        return self.entry.origin.id


@dataclass(frozen=True, slots=True)
class Reader:
    """This reader. `idle`: seconds after which any reader without activity counts as dead."""

    name: str
    idle: float


class JobStream:
    """One reader of the job stream. Call `read_once` in a loop; `aclose` ends it."""

    def __init__(
        self,
        ledger: AsyncLedger,
        requests: Taker,
        keep: Callable[[QuarantineEntry], str],
        url: str,
        reader: Reader,
    ) -> None:
        """`keep`: puts into quarantine; `url`: of the ledger."""
        self._ledger = ledger
        self._requests = requests
        self._keep = keep
        self._name = reader.name
        self._group = GroupReader(JOBS, READERS, reader.name, LARGEST_JOB)
        self._idle = reader.idle
        # A connection of its own, since it blocks. Nothing is retried on it: entries that did not
        # arrive are read again.
        self._redis: redis.asyncio.Redis = async_client(
            url,
            max_connections=1,
            socket_timeout=SOCKET_TIMEOUT,
            socket_connect_timeout=CONNECT_TIMEOUT,
        )
        self._connection = 0
        self._turn = asyncio.Lock()
        self._stopping = False
        self._early: list[_StreamRequest] = []
        self._warn = Sampled(log.warning)
        # Whether to start with the entries that this name already holds, from an earlier process or
        # a broken connection; and the last entry that it received.
        self._own, self._last = True, "-"
        self._left_at = 0.0
        self._trouble = ""
        self._pause = FIRST_PAUSE

    async def read_once(self) -> float:
        """Take new entries, or wait for some; return the seconds until the next turn."""
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
            ids = {one.id for one in self._early} | {one.entry for one in entries}
            if not await self._handle(entries):
                # The ledger did not answer, or is full: unprocessed entries are read again.
                self._own, self._last = True, "-"
                await self._survived(ids)
                return LAST_PAUSE
            # An import through the stream leaves half of the time to calls in flight.
            took = min(time.monotonic() - started, LAST_PAUSE)
            return took if len(entries) >= PAGE else 0.0

    async def _survived(self, ids: Iterable[str]) -> None:
        """Note that these entries do not kill their readers. A full ledger can do this."""
        try:
            await self._ledger(survived(ids), patience=0)
        except (RedisError, LedgerUnavailable) as error:
            # While this fails, nothing can be read either, and so nothing is counted.
            log.debug("reads of the job stream stay counted", error=type(error).__name__)

    async def aclose(self) -> None:
        """Finish the present turn, read no more, and close the connection."""
        self._stopping = True
        try:
            async with asyncio.timeout(STOP):
                if self._turn.locked():
                    await self._ledger.redis.client_unblock(self._connection)
                async with self._turn:
                    await self._ledger(dismiss(self._name, GONE), patience=0)
        except (RedisError, LedgerUnavailable, TimeoutError) as error:
            # Other readers take over its entries.
            log.debug("the job stream's reader just goes", error=type(error).__name__)
        await self._redis.aclose()

    async def _next(self) -> list[Found]:
        """Entries to process: those of dead readers, then its own, then new ones."""
        if not self._connection:
            self._connection = await self._redis.client_id()
        now = time.monotonic()
        if now >= self._left_at:
            if found := await self._take_over():
                return found
            self._left_at = now + self._idle / 4
        if self._own:
            if found := await self._read(self._group.read(self._last, again=True)):
                return found
            self._own = False
        if self._stopping:
            return []
        wait = EARLY_PAUSE if self._early else min(BLOCK, self._idle / 4)
        return await self._read(self._group.read(self._last), wait)

    async def _read(self, command: Command[list[Found]], wait: float = 0.0) -> list[Found]:
        try:
            found = await self._ask(self._group.asking(command, wait))
        except NoScriptError:
            await self._ask([("SCRIPT", "LOAD", scripts()[command.script])])
            found = await self._ask(self._group.asking(command))
        entries = command.read(found)
        for one in entries:
            self._last = later(self._last, one.entry)
        return entries

    async def _ask(self, commands: Asking) -> Any:
        """Send commands that have one answer. None of it is left on the connection."""
        pool: Any = self._redis.connection_pool
        connection = await pool.get_connection()
        try:
            await connection.send_packed_command(connection.pack_commands(commands))
            return await connection.read_response()
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        finally:
            await pool.release(connection)

    async def _take_over(self) -> list[Found]:
        cursor, found = "", list[Found]()
        while not found and cursor != START:
            cursor, found = await self._ledger(
                self._group.left(self._idle, cursor or START), patience=0
            )
        if found:
            log.info("entries of the job stream are taken over", count=len(found))
        return found

    async def _handle(self, entries: Iterable[Found]) -> bool:
        """Process requests in order; return whether all are processed, or wait in their place."""
        waiting, self._early = self._early, []
        known = {one.id for one in waiting}
        requests, well = await self._opened([one for one in entries if one.entry not in known])
        # In order: a cancel must find the job that came before it. Jobs share round trips.
        for kind, some in groupby([*waiting, *requests], key=lambda one: one.entry.request):
            batch = list(some)
            for one, answer in zip(batch, await self._all(kind, batch), strict=True):
                match answer:
                    case Taken():
                        pass
                    case Early():
                        self._early.append(one)
                    case None:
                        well = False
                    case _:
                        assert_never(answer)
        return well

    async def _all(
        self, kind: Request, batch: Iterable[_StreamRequest]
    ) -> list[Taken | Early | None]:
        if kind == "register":
            return list(await asyncio.gather(*map(self._take, batch)))
        # One by one: a cancel checks whether any request is before it.
        return [await self._take(one) for one in batch]

    async def _opened(self, entries: Iterable[Found]) -> tuple[list[_StreamRequest], bool]:
        """The entries with a readable request; and whether all others are processed."""
        found: list[tuple[Entry, Fields]] = []
        well = True
        for one in entries:
            try:
                if one.too_large:
                    well &= await self._pass_over(one)
                else:
                    found.append((_entry(one), one.fields))
            except Unreadable as error:
                well &= await self._set_aside(one.entry, one.fields, str(error)) is not None
        until = time.monotonic() + EARLY_PATIENCE

        def check() -> list[_StreamRequest]:
            return [
                _StreamRequest(entry, self._check(entry), until, fields) for entry, fields in found
            ]

        # In a thread: unsealing and sealing must not delay the calls in flight.
        return (await asyncio.to_thread(check) if found else []), well

    def _check(self, entry: Entry) -> Checked | Exception:
        try:
            return self._requests.check(entry)
        except Exception as error:  # noqa: BLE001 -- one entry must not keep the others
            return error

    async def _take(self, request: _StreamRequest) -> Taken | Early | None:
        """None: not processed, to be read again."""
        fault = request.checked
        if not isinstance(fault, Exception):
            try:
                wait = time.monotonic() < request.until
                return await self._requests.take(request.entry, fault, wait=wait)
            except LedgerUnavailable:
                return None
            except Exception as error:  # noqa: BLE001 -- whatever it is, it must not come for ever
                fault = error
        reason = f"the worker failed to process it ({type(fault).__name__})"
        return await self._set_aside(request.id, request.fields, reason)

    async def _pass_over(self, found: Found) -> bool:
        """Remove an entry that is too large to read; return whether that succeeded.

        An event notifies its sender, if the entry starts with a key.
        """
        reason = f"it is larger than {MOST_BYTES} bytes, or has too many fields"
        quarantined = QuarantineEntry.too_large(found.entry, found.size, found.shown, reason)
        try:
            self._warn("an entry is too large", entry=found.entry, bytes=found.size)
            await asyncio.to_thread(self._keep, quarantined)
            try:
                [name] = [name for name in found.shown if name in _REQUESTS]
                origin = Origin("stream", found.entry)
                request = read_beginning(_REQUESTS[name], found.shown[name], origin)
            except ValueError:
                await self._ledger(handled(found.entry))
            else:
                what = f"the entry has {found.size} bytes; at most {MOST_BYTES} are read"
                await self._requests.take(request, Bad((Problem("invalid", "", what),)))
        except (RedisError, LedgerUnavailable) as error:
            log.warning("the quarantine waits for the ledger", error=type(error).__name__)
            return False
        return True

    async def _set_aside(self, id_: str, fields: Fields, reason: str) -> Taken | None:
        """Put an entry into quarantine and acknowledge it; None if that must wait."""
        try:
            quarantined = QuarantineEntry.of_entry(fields, reason)
            self._warn("an entry is set aside", entry=id_, reason=reason, bytes=quarantined.size)
            await asyncio.to_thread(self._keep, quarantined)
            await self._ledger(handled(id_))
        except (RedisError, LedgerUnavailable) as error:
            log.warning("the quarantine waits for the ledger", error=type(error).__name__)
            return None
        return Taken("set aside")

    async def _in_trouble(self, error: Exception) -> float:
        """The stream cannot be read. Logged once; return the seconds until the next try."""
        self._own, self._last, self._connection, self._left_at = True, "-", 0, 0.0
        if str(error).startswith("NOGROUP"):
            try:
                # From the start: entries that are in the stream are not processed.
                await self._redis.xgroup_create(JOBS, READERS, id="0", mkstream=True)
            except RedisError as other:
                error = other
            else:
                return 0.0
            if str(error).startswith("BUSYGROUP"):
                return 0.0
        what = name_of(error)
        if isinstance(error, ReadOnlyError):
            # It is a replica now: a new connection finds the new primary.
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


def _entry(found: Found) -> Entry:
    if found.times > MOST_READS:
        raise Unreadable("every worker that reads it fails")
    asked = [name for name in _REQUESTS if name in found.fields]
    if len(asked) != 1:
        raise Unreadable("it has no field `job` or `cancel`, or both")
    trace, answer, by = (
        found.fields.get(name, b"").decode(errors="replace")
        for name in (b"traceparent", b"answer", b"by")
    )
    origin = Origin(
        "stream",
        found.entry,
        trace,
        answer if ID.fullmatch(answer) else "",
        by if is_name(by) else "",
    )
    return read(_REQUESTS[asked[0]], found.fields[asked[0]], origin)

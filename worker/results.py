"""Reading results from a stream as a member of a consumer group: at least once, in Python.

    from worker.results import ResultConsumer

    with ResultConsumer("crm") as consumer:      # settings from REGWORKER_*
        for result in consumer:
            handle(result.event)                 # may come again: deduplicate by event.id
            consumer.ack(result)

Each event goes to one consumer of a group; every group gets all events. What is not acknowledged
comes again after `claim_after` seconds, to whichever consumer of the group is there: also what a
consumer had that died. `result.deliveries` says how often it has come, so that you can set aside
what your handler can't digest:

            try:
                handle(result.event)
            except Exception:
                if result.deliveries < 5:
                    continue                     # comes again
                set_aside(result.raw)
            consumer.ack(result)

A consumer needs `REGWORKER_REDIS_URL`, and `REGWORKER_SEALING_KEYS` where the stream is sealed. It
is synchronous; in asyncio, `await asyncio.to_thread(consumer.receive)`. Any Redis client reads the
same stream, with XREADGROUP and XACK.
"""

import logging
import math
import os
import secrets
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self, TypeVar

from pydantic import TypeAdapter, ValidationError
from redis.exceptions import RedisError, ResponseError

from worker.clock import steady
from worker.errors import LedgerUnavailable, RegistrationWorkerError, SealingError, SettingsError
from worker.event import Event, Notice
from worker.ledger import SyncLedger
from worker.ledger.commands import PREFIX
from worker.ledger.records import text
from worker.sealing import Keyring
from worker.settings import Settings, variable

T = TypeVar("T")

log = logging.getLogger(__name__)

RESULTS = f"{PREFIX}results"
"""The stream that is always there."""

#: Seconds of one blocking read: shorter than the connection's timeout, so that a quiet stream is
#: no dead server; and how long `stop` may take.
BLOCK = 1.0

#: Seconds of one blocking read, at least, though there may soon be something to claim.
SHORTEST = 0.01

#: Events fetched at a time: enough to spread the round trip, few enough to be handled in time.
BATCH = 50

#: Seconds without an answer after which the log says that the server is away.
QUIET = 2.0

#: Seconds for the last words to the server when a consumer is closed.
FAREWELL = 2.0

#: Milliseconds. Longer than anybody's `claim_after`: whoever looks next takes what is handed back.
LONG_AGO = 7 * 86_400_000

#: Replies that say that the group is not there (any more), or that its stream went while we waited.
_LOST = ("NOGROUP", "UNBLOCKED")


_EITHER: TypeAdapter[Event | Notice] = TypeAdapter(Event | Notice)


class UnreadableEvent(RegistrationWorkerError):  # noqa: N818 -- an outcome of what others wrote
    """Raised when an entry of the stream holds no event that can be read here.

    It was written by somebody else, or by a newer worker, or is sealed under a key that
    `REGWORKER_SEALING_KEYS` doesn't hold. `Result.fields` are the entry as it is.
    """


@dataclass(frozen=True)
class Result:
    """One entry of the stream, as it was given to this consumer."""

    entry: str
    """Its id in the stream."""
    fields: Mapping[bytes, bytes] = field(repr=False)
    """As the entry holds them: `event`; or, sealed, `id`, `type` and `sealed`."""
    deliveries: int = 1
    """How often it was given to a consumer of the group, this time included."""
    _open: Callable[[str], bytes] = field(default=lambda _: b"", repr=False, compare=False)

    @cached_property
    def raw(self) -> bytes:
        """The event's bytes, the same on every channel. `UnreadableEvent` where there are none."""
        if b"event" in self.fields:
            return self.fields[b"event"]
        if b"sealed" not in self.fields:
            raise UnreadableEvent(f"entry {self.entry} has neither a field event nor sealed")
        try:
            return self._open(self.fields[b"sealed"].decode("ascii", "replace"))
        except SealingError as error:
            raise UnreadableEvent(f"entry {self.entry}: {error}") from None

    @cached_property
    def event(self) -> Event | Notice:
        """The event of a job; or a notice about an endpoint, which none but `results` gets.

        An event may hold a customer's keys: secret. Raises `UnreadableEvent`.
        """
        try:
            return _EITHER.validate_json(self.raw)
        except ValidationError as error:
            # Without pydantic's words, which quote what they found.
            where = {".".join(map(str, one["loc"])) or "the whole" for one in error.errors()}
            what = f"entry {self.entry} holds no event of ours: see {', '.join(sorted(where))}"
            raise UnreadableEvent(what) from None


class ResultConsumer:
    """A member of a consumer group. Close it, or use it as a context manager.

    `group`: made if it isn't there, and then begins at `start`: `0` all that is kept, `$` what
    comes from now on, or after an entry's id. A group that gets lost (a server that forgot it) is
    made again there: events come twice, and none is missed.

    `consumer`: a name of one's own in the group, of one process only; with the same name, a
    process that was restarted goes on at once with what it had. Default: a new one each time.

    `claim_after`: seconds after which what was given out and not acknowledged is given out again.
    Longer than handling one event takes, or two consumers handle it at a time.
    """

    def __init__(
        self,
        group: str,
        consumer: str | None = None,
        *,
        stream: str = RESULTS,
        start: str = "0",
        claim_after: float = 60.0,
        settings: Settings | None = None,
    ) -> None:
        """Connect lazily. `SettingsError` where the settings can't be used."""
        if claim_after <= 0:
            raise ValueError("claim_after must be more than 0 seconds")
        settings = settings or reader_settings()
        self.group = group
        self.consumer = consumer or f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"
        self.stream = stream
        self.claim_after = claim_after
        self._named = consumer is not None
        self._start = start
        self._open = opener(settings)
        self._ledger = SyncLedger(settings.redis_url)
        self._redis: Any = self._ledger.redis
        self._joined = False
        self._backlog: str | None = None
        """From where on to look for what a process of our name was given; None: seen to the end."""
        self._given: dict[str, Mapping[bytes, bytes]] = {}
        """Claimed, and not counted yet: kept, should the server go away between the two."""
        self._stopping = False
        self._waiting: deque[Result] = deque()
        self._fresh_until = 0.0
        self._claim_at = 0.0

    def __iter__(self) -> Iterator[Result]:
        """Results as they come, until `stop`. A second loop goes on where the first was left."""
        while not self._stopping:
            if (result := self.take()) is not None:
                yield result

    def take(self, patience: float = BLOCK) -> Result | None:
        """The next result, or None where none comes within `patience` seconds, or before `stop`."""
        if self._waiting and steady() > self._fresh_until:
            self._renew()
        if not self._waiting:
            self._waiting.extend(self.receive(patience))
            self._fresh_until = steady() + self.claim_after / 2
        return self._waiting.popleft() if self._waiting and not self._stopping else None

    def receive(self, patience: float = BLOCK) -> list[Result]:
        """A page of results, as soon as there are any; none after `patience` seconds, or `stop`.

        For a handler that takes many at a time; acknowledge them within `claim_after` seconds.
        While the server is away, this waits for it, however long.
        """
        end = steady() + patience
        while not self._stopping:
            if found := self._patiently(lambda: self._turn(end - steady())):
                return found
            if steady() >= end:
                break
        return []

    def ack(self, *results: Result) -> None:
        """Say that these are dealt with, and need not come again.

        Raises `LedgerUnavailable` if the server can't be told: they will come again then.
        """
        if results:
            entries = [result.entry for result in results]
            self._ledger.patiently(lambda: self._redis.xack(self.stream, self.group, *entries), 30)

    def stop(self) -> None:
        """End the iteration, within a second or so. From any thread, or a signal's handler."""
        self._stopping = True

    def close(self) -> None:
        """Hand back what was fetched and not given out, and close all connections."""
        self._stopping = True
        try:
            if self._joined:
                self._ledger.patiently(self._leave, FAREWELL)
        except (LedgerUnavailable, RedisError) as error:
            log.warning("left group %s without a word: %s", self.group, error)
        self._ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- one turn -------------------------------------------------------------------------------

    def _turn(self, patience: float) -> list[Result]:
        try:
            if not self._joined:
                self._join()
                self._joined, self._backlog = True, "-"
            if self._backlog:
                self._own(self._backlog)
            if not self._given and steady() >= self._claim_at:
                self._claim()
            return self._counted() if self._given else self._read(patience)
        except ResponseError as error:
            if not str(error).startswith(_LOST):
                raise
            log.warning("group %s of %s is lost; made again", self.group, self.stream)
            self._joined, self._given = False, {}
            return []

    def _join(self) -> None:
        try:
            self._redis.xgroup_create(self.stream, self.group, self._start, mkstream=True)
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise
        if self._start == "$":
            # "Now" is when this consumer began, also should the group have to be made again.
            groups = self._redis.xinfo_groups(self.stream)
            [position] = [
                one["last-delivered-id"] for one in groups if text(one["name"]) == self.group
            ]
            self._start = text(position)

    def _own(self, first: str) -> None:
        """Take what a process of our name was given before, and did not acknowledge."""
        found = self._redis.xpending_range(
            self.stream, self.group, first, "+", BATCH, consumername=self.consumer
        )
        entries = [text(one["message_id"]) for one in found]
        if entries:
            given = self._redis.xclaim(self.stream, self.group, self.consumer, 0, entries)
            self._given = {text(entry): fields for entry, fields in given}
        self._backlog = f"({entries[-1]}" if entries else None

    def _claim(self) -> None:
        """Take what anybody was given `claim_after` seconds ago, and did not acknowledge."""
        idle, cursor = round(self.claim_after * 1000), "0-0"
        while True:
            answer = self._redis.xautoclaim(
                self.stream, self.group, self.consumer, idle, cursor, count=BATCH
            )
            cursor, given = text(answer[0]), answer[1]
            if given:
                self._given = {text(entry): fields for entry, fields in given}
                return
            if cursor == "0-0":
                # Twice in the time: what a dead consumer had is taken up soon after it is over.
                self._claim_at = steady() + self.claim_after / 2
                return

    def _read(self, patience: float) -> list[Result]:
        until = max(SHORTEST, min(BLOCK, patience, self._claim_at - steady()))
        answer = self._redis.xreadgroup(
            self.group,
            self.consumer,
            {self.stream: ">"},
            count=BATCH,
            block=round(until * 1000) if patience > 0 else None,
        )
        return [Result(text(entry), fields, 1, self._open) for entry, fields in _entries(answer)]

    def _counted(self) -> list[Result]:
        """What was given to us once more, and how often it was given to anybody."""
        pending = self._pending(self._given)
        given, self._given = self._given, {}
        return [
            Result(entry, fields, pending[entry]["times_delivered"], self._open)
            for entry, fields in given.items()
            if entry in pending
        ]

    # -- what waits here ------------------------------------------------------------------------

    def _renew(self) -> None:
        """Keep what waits here ours; let go of what was given to others meanwhile."""

        def renew() -> None:
            pending = self._pending(result.entry for result in self._waiting)
            ours = {one for one, how in pending.items() if text(how["consumer"]) == self.consumer}
            self._waiting = deque(one for one in self._waiting if one.entry in ours)
            if ours:
                self._redis.xclaim(
                    self.stream, self.group, self.consumer, 0, sorted(ours), justid=True
                )

        try:
            self._patiently(renew)
        except ResponseError as error:
            if not str(error).startswith(_LOST):
                raise
            self._waiting.clear()
        self._fresh_until = steady() + self.claim_after / 2

    def _pending(self, entries: Iterable[str]) -> dict[str, Any]:
        """How these stand in the group: consumer, times delivered; not those acknowledged."""
        pipeline = self._redis.pipeline(transaction=False)
        for entry in entries:
            pipeline.xpending_range(self.stream, self.group, entry, entry, 1)
        return {text(one["message_id"]): one for [one] in filter(None, pipeline.execute())}

    def _leave(self) -> None:
        # What waited long may be another's by now: it is left to the group's clock.
        waiting = self._waiting if steady() < self._fresh_until else ()
        pipeline = self._redis.pipeline(transaction=False)
        for result in waiting:
            pipeline.xclaim(
                self.stream,
                self.group,
                self.consumer,
                0,
                [result.entry],
                idle=LONG_AGO,
                retrycount=result.deliveries - 1,
                justid=True,
            )
        pipeline.execute(raise_on_error=False)
        kept = self._redis.xpending_range(
            self.stream, self.group, "-", "+", 1, consumername=self.consumer
        )
        if not self._named and not kept:
            self._redis.xgroup_delconsumer(self.stream, self.group, self.consumer)

    def _patiently(self, ask: Callable[[], T]) -> T | None:
        """Ask until the server answers; None if `stop` comes first."""

        def unless_stopped() -> T | None:
            return None if self._stopping else ask()

        try:
            return self._ledger.patiently(unless_stopped, QUIET)
        except LedgerUnavailable as error:
            log.warning("%s; trying again until it does", error)
        answer = self._ledger.patiently(unless_stopped, math.inf)
        log.warning("the server is back")
        return answer


def reader_settings() -> Settings:
    """The settings of who only reads results: without a key where none is configured."""
    try:
        return Settings.load()
    except SettingsError as error:
        if any(name != variable("sealing_keys") for name, _ in error.problems):
            raise
    return Settings.load(sealing_keys="")


def opener(settings: Settings) -> Callable[[str], bytes]:
    """What opens sealed entries, with the keys of the settings; `SealingError` without any."""
    keys = settings.sealing_keys.get_secret_value()
    ring: list[Keyring] = []

    def open_(sealed: str) -> bytes:
        if not keys:
            raise SealingError(f"it is sealed, and {variable('sealing_keys')} is not set")
        if not ring:
            ring.append(Keyring.parse(keys))
        return ring[0].open(sealed)

    return open_


def _entries(answer: Any) -> list[Any]:
    # A list of streams, or by the third protocol a mapping of their pages.
    if isinstance(answer, Mapping):
        return [entry for pages in answer.values() for page in pages for entry in page]
    return [entry for _, page in answer or () for entry in page]

"""Reading results from a stream as a member of a consumer group: at least once, in Python.

    from regworker import ResultConsumer

    with ResultConsumer("crm") as consumer:      # settings from REGWORKER_*
        for result in consumer:
            handle(result.event)                 # may come again: deduplicate by event.id
            consumer.ack(result)

Each event goes to one consumer of a group; every group gets all events. An event that is not
acknowledged is delivered again after `claim_after` seconds, to any consumer of the group: also if
its consumer died. `result.deliveries` counts its deliveries, so that you can set aside an event
that your handler cannot process:

            try:
                handle(result.event)
            except Exception:
                if result.deliveries < 5:
                    continue                     # comes again
                set_aside(result.entry, result.fields)
            consumer.ack(result)

A consumer needs `REGWORKER_REDIS_URL`, and `REGWORKER_SEALING_KEYS` where the stream is sealed. In
asyncio, `AsyncResultConsumer` is the same, awaited. Any Redis client reads the
same stream, with XREADGROUP and XACK.

With `REGWORKER_LEDGERS`, a consumer reads the stream of every ledger, in each as a member of the
group of this name. The order of events holds within a ledger. While a ledger is away, the events of
the others come.
"""

import asyncio
import logging
import math
import os
import re
import secrets
import socket
import threading
from collections.abc import (
    AsyncIterator,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
    Mapping,
)
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from typing import Any, Self, TypeVar

from pydantic import TypeAdapter, ValidationError
from redis.exceptions import RedisError

from regworker.arguments import OfOneProcess, of_kind, seconds
from regworker.clock import steady
from regworker.domain.errors import (
    LedgerUnavailable,
    RegistrationWorkerError,
    SealingError,
    SettingsError,
    UnknownKey,
)
from regworker.domain.event import Event, Notice
from regworker.frames import guarded
from regworker.ledger import AsyncLedger, SyncLedger
from regworker.ledger.client import login_errors
from regworker.ledger.steps import Ask, Step, Steps, carry, carry_async
from regworker.ledger.streams import LARGEST_EVENT, LONG_AGO, PAGE, GroupReader
from regworker.ledger.transitions import PREFIX
from regworker.membership import BLOCK, Membership
from regworker.sealing import seals
from regworker.sealing.keyring import Keyring
from regworker.sealing.seals import Seal
from regworker.settings import Settings, variable
from regworker.settings.account_ledgers import MAIN
from regworker.several_ledgers.merged_results import LAST, LoopThread, Merged

T = TypeVar("T")

log = logging.getLogger(__name__)

RESULTS = f"{PREFIX}results"
"""The stream that always exists."""

#: Seconds without an answer after which the log says that the server is away.
QUIET = 2.0

#: Seconds for an acknowledgement, while the server is away.
ACK = 30.0

#: Seconds for the last commands when a consumer is closed.
FAREWELL = 2.0

#: Seconds; then what a consumer released would not be claimed.
LONGEST_CLAIM = LONG_AGO / 1000

_START = re.compile(r"\$|\d{1,20}(-\d{1,20})?", re.ASCII)

_EITHER: TypeAdapter[Event | Notice] = TypeAdapter(Event | Notice)

Opener = Callable[[str, Seal], bytes]


class UnreadableEvent(RegistrationWorkerError):  # noqa: N818 -- an outcome of what others wrote
    """Raised when an entry of the stream contains no event that can be read here.

    Another program or a newer worker wrote it, or it is sealed under a key that
    `REGWORKER_SEALING_KEYS` does not contain, or as another event; or it is plain in a sealed
    stream. `Result.fields` is the raw entry. An entry that is larger than any event
    (`Result.size`) is not read: acknowledge it.
    """


class MissingKey(UnreadableEvent):
    """Raised when an event is sealed under a key that this process does not have.

    It can be read with every key of the workers in `REGWORKER_SEALING_KEYS`: do not acknowledge it.
    """


@guarded
@dataclass(frozen=True)
class Result:
    """One entry of the stream, as delivered to this consumer."""

    entry: str
    """Its id in the stream."""
    fields: Mapping[bytes, bytes] = field(repr=False)
    """The entry's fields: `event`; or, sealed, `id`, `type` and `sealed`. Empty if the entry
    is too large: it was not fetched."""
    deliveries: int = 1
    """How often it was delivered to the group, including this time."""
    size: int = 0
    """Bytes of names and values."""
    _open: Opener = field(default=lambda *_: b"", repr=False, compare=False)
    _sealed: bool = field(default=False, repr=False, compare=False)
    """Whether the stream is sealed: then a plain entry comes from no worker."""
    ledger: str = MAIN
    """The ledger that it came from; `ack` acknowledges it there."""

    @cached_property
    def raw(self) -> bytes:
        """The event's bytes, as on every channel. Raises `UnreadableEvent` if there are none."""
        if not self.fields:
            raise UnreadableEvent(f"entry {self.entry} has {self.size} bytes, and was not read")
        if b"event" in self.fields and not self._sealed:
            return self.fields[b"event"]
        if b"event" in self.fields:
            raise UnreadableEvent(f"entry {self.entry} is plain, but its stream is sealed")
        if b"sealed" not in self.fields:
            raise UnreadableEvent(f"entry {self.entry} has neither a field event nor sealed")
        sealed, id_ = (self.fields.get(name, b"") for name in (b"sealed", b"id"))
        try:
            seal = seals.event(id_.decode("ascii", "replace"))
            return self._open(sealed.decode("ascii", "replace"), seal)
        except SealingError as error:
            kind = MissingKey if isinstance(error, UnknownKey) else UnreadableEvent
            fault = kind(f"entry {self.entry}: {error}")
        raise fault  # here, so that it has no context

    @cached_property
    def event(self) -> Event | Notice:
        """The event of a job; or a notice about an endpoint, which only `results` gets.

        An event may contain a customer's keys: secret. Raises `UnreadableEvent`.
        """
        raw = self.raw
        try:
            return _EITHER.validate_json(raw)
        except ValidationError as error:
            # Without pydantic's texts, which quote their input.
            where = {".".join(map(str, one["loc"])) or "the whole" for one in error.errors()}
        what = f"entry {self.entry} holds no event of ours; see {', '.join(sorted(where))}"
        raise UnreadableEvent(what)  # here, so that it has no context: pydantic's has the event


@dataclass(frozen=True, slots=True)
class _Options:
    """The arguments of both consumers. See `ResultConsumer`."""

    group: str
    consumer: str | None
    stream: str
    start: str
    claim_after: float
    page: int
    sealed: bool | None

    def __post_init__(self) -> None:
        names = {"group": self.group, "stream": self.stream, "consumer": self.consumer or "any"}
        for argument, name in names.items():
            of_kind(argument, name, str, "text")
            if not name:
                raise ValueError(f"{argument} must not be empty")
        if not _START.fullmatch(str(self.start)):
            raise ValueError('start must be "0", "$" or the id of an entry ("1767225600000-0")')
        if not 0 < seconds(self.claim_after, "claim_after") <= LONGEST_CLAIM:
            raise ValueError("claim_after must be more than 0 seconds, and at most a week")
        of_kind("page", self.page, int, "a number of events")
        if not 1 <= self.page <= PAGE:
            raise ValueError(f"page must be from 1 to {PAGE}")


class _Consumer(OfOneProcess):
    """The base of both consumers. See `ResultConsumer`."""

    def __init__(self, options: _Options, settings: Settings) -> None:
        of_kind("settings", settings, Settings, "Settings")
        self.group = options.group
        self.ledger = settings.ledger
        self._user: dict[str, int] = {}
        """The process that uses it: where it is first used, possibly after a fork."""
        self._given = options.consumer
        self._mark = secrets.token_hex(3)
        self.consumer = self._name(os.getpid())
        self.stream = options.stream
        self.claim_after = options.claim_after
        self._member = Membership(
            GroupReader(self.stream, self.group, self.consumer, LARGEST_EVENT, options.page),
            str(options.start),
            self.claim_after,
            named=options.consumer is not None,
        )
        self._open = opener(settings)
        sealed = options.sealed
        self._sealed = is_sealed(settings, self.stream) if sealed is None else sealed

    def stop(self) -> None:
        """End the iteration, within a second or so. From any thread, or a signal's handler."""
        self._member.stopping = True

    def _name(self, process: int) -> str:
        return self._given or f"{socket.gethostname()}:{process}:{self._mark}"

    def _begin(self) -> None:
        """Called before each use: two processes with one name would get the same events."""
        here = os.getpid()
        if self._user.setdefault("process", here) != here:
            raise RuntimeError(
                f"this {type(self).__name__} was used before the process was forked, and belongs "
                "to the other process. Create one in each process"
            )
        if self.consumer != (name := self._name(here)):
            self.consumer = name
            self._member.call(name)

    @property
    def _inherited(self) -> bool:
        """Whether it belongs to the process that this one was forked from."""
        return self._user.get("process", os.getpid()) != os.getpid()

    def _next(self) -> Result | None:
        entry = self._member.next()
        if entry is None:
            return None
        return Result(
            entry.entry,
            entry.fields,
            entry.times,
            entry.size,
            self._open,
            self._sealed,
            self.ledger,
        )

    def _rest(self) -> list[Result]:
        return list(iter(self._next, None))

    def _fetching(self, patience: float) -> Generator[Callable[[], Steps[Any]], Any, None]:
        """Fetch a page, unless there is one: what it yields is carried out by `_patiently`."""
        if self._member.stale:
            yield self._member.renew
        end = steady() + patience
        while not (self._member.waiting or self._member.stopping):
            if found := (yield lambda: self._member.turn(end - steady())):
                self._member.keep(found)
            elif steady() >= end:
                return

    def _retrying(self) -> Generator[float, Any, Any]:
        """Ask again and again until the server answers: it yields the seconds to wait for it."""
        try:
            return (yield QUIET)
        except LedgerUnavailable as error:
            log.warning("%s; retrying", error)
        answer = yield math.inf
        if not self._member.stopping:
            log.warning("the server answers again")
        return answer


@guarded
class ResultConsumer(_Consumer):
    """A member of a consumer group. Close it, or use it as a context manager.

    `group`: made if it isn't there, and then begins at `start`: `0` all that is kept, `$` what
    comes from now on, or after an entry's id. A group that gets lost (a server that forgot it) is
    made again there: events come twice, and none is missed.

    `consumer`: a name of one's own in the group, of one process only; with the same name, a
    process that was restarted goes on at once with what it had. Default: a new one each time.

    `sealed`: whether the stream is a sealed one, in which a plain entry is nobody's event. Default:
    what the settings say, if they hold an endpoint with this stream; else not.

    `claim_after`: seconds after which what was given out and not acknowledged is given out again.
    Longer than handling one event takes, or two consumers handle it at a time.

    `page`: the most events that it fetches, and that `receive` returns, at a time: 1 to 50. The
    other consumers of the group do not get what this one has fetched.
    """

    def __init__(
        self,
        group: str,
        consumer: str | None = None,
        *,
        stream: str = RESULTS,
        start: str = "0",
        claim_after: float = 60.0,
        page: int = PAGE,
        sealed: bool | None = None,
        settings: Settings | None = None,
    ) -> None:
        """Connect lazily. `SettingsError` where the settings can't be used."""
        settings = settings or reader_settings()
        options = _Options(group, consumer, stream, start, claim_after, page, sealed)
        super().__init__(options, settings)
        self._ledger = SyncLedger(settings.redis_url)
        self._turn = threading.Lock()
        self._all: AsyncResultConsumer | None = None
        """Reads all ledgers, if there are several."""
        if settings.ledgers:
            self._all = AsyncResultConsumer(**asdict(options), settings=settings)
            self._thread = LoopThread()

    def stop(self) -> None:
        """End the iteration, within a second or so. From any thread, or a signal's handler."""
        super().stop()
        if self._all is not None:
            self._all.stop()

    def __iter__(self) -> Iterator[Result]:
        """Results as they come, until `stop`. A second loop goes on where the first was left."""
        while not self._member.stopping:
            if (result := self.take()) is not None:
                yield result

    def take(self, patience: float = BLOCK) -> Result | None:
        """The next result, or None where none comes within `patience` seconds, or before `stop`."""
        seconds(patience, "patience")
        self._begin()
        if self._all is not None:
            return self._read(self._all.take, patience)
        with self._alone(patience) as left:
            if left is None:
                return None
            self._fetch(left)
            return self._next()

    def receive(self, patience: float = BLOCK) -> list[Result]:
        """A page of results, as soon as there are any; none after `patience` seconds, or `stop`.

        For a handler that takes many at a time; acknowledge them within `claim_after` seconds.
        While the server is away, this waits for it, however long.
        """
        seconds(patience, "patience")
        self._begin()
        if self._all is not None:
            return self._read(self._all.receive, patience) or []
        with self._alone(patience) as left:
            if left is None:
                return []
            self._fetch(left)
            return self._rest()

    def ack(self, *results: Result) -> None:
        """Say that these are dealt with, and need not come again.

        Raises `LedgerUnavailable` if the server does not answer: then they are delivered again.
        """
        _results(results)
        self._begin()
        if self._all is not None:
            self._thread.run(self._all.ack(*results))
        elif results:
            entries = [one.entry for one in results]
            with login_errors():
                self._ledger.patiently(lambda: self._carry(self._member.ack(entries)), ACK)

    def close(self) -> None:
        """Hand back what was fetched and not given out, and close all connections.

        A read in another thread ends before, within a second or so; after a fork, only the process
        that used the consumer leaves the group.
        """
        self.stop()
        if self._inherited:
            return
        try:
            if self._all is not None:
                self._thread.close(self._all.aclose)
            else:
                with self._alone(LAST):
                    if self._member.joined:
                        self._ledger.patiently(lambda: self._carry(self._member.leave()), FAREWELL)
        except (RegistrationWorkerError, RedisError) as error:
            log.warning("left group %s, which could not be recorded: %s", self.group, error)
        finally:
            self._ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(
        self, read: Callable[[float], Coroutine[Any, Any, T | None]], patience: float
    ) -> T | None:
        """Read all ledgers. None once it is stopped, also if another thread closes it meanwhile."""
        try:
            return None if self._member.stopping else self._thread.run(read(patience))
        except LedgerUnavailable:
            if self._member.stopping:
                return None
            raise

    @contextmanager
    def _alone(self, patience: float) -> Iterator[float | None]:
        """Two concurrent reads would both get the entries of this consumer. The seconds that are
        left; None if another thread reads for so long."""
        end = steady() + patience
        alone = self._turn.acquire(timeout=max(0.0, min(patience, threading.TIMEOUT_MAX)))
        try:
            yield max(0.0, end - steady()) if alone else None
        finally:
            if alone:
                self._turn.release()

    def _fetch(self, patience: float) -> None:
        carry(self._fetching(patience), self._patiently)

    @login_errors()
    def _patiently(self, make: Callable[[], Steps[Any]]) -> Any:
        """Carry out steps, again and again until the server answers; None if `stop` comes first."""

        def unless_stopped() -> Any:
            return None if self._member.stopping else self._carry(make())

        return carry(self._retrying(), partial(self._ledger.patiently, unless_stopped))

    def _carry(self, steps: Steps[T]) -> T:
        return carry(steps, self._do)

    def _do(self, step: Step) -> Any:
        if isinstance(step, Ask):
            return step.question(self._ledger.redis)
        return self._ledger.carry(step)


@guarded
class AsyncResultConsumer(_Consumer):
    """The same for asyncio: `async with`, `async for`, and each method awaited.

    It belongs to the event loop in which it is first used. Tasks of that loop may share it: each
    result goes to one of them. A `take` or `receive` that is cancelled loses nothing: what it was
    given comes with the next one.
    """

    def __init__(
        self,
        group: str,
        consumer: str | None = None,
        *,
        stream: str = RESULTS,
        start: str = "0",
        claim_after: float = 60.0,
        page: int = PAGE,
        sealed: bool | None = None,
        settings: Settings | None = None,
    ) -> None:
        """As `ResultConsumer`."""
        settings = settings or reader_settings()
        options = _Options(group, consumer, stream, start, claim_after, page, sealed)
        super().__init__(options, settings)
        self._ledger = AsyncLedger(settings.redis_url)
        self._turn = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._others = {
            name: AsyncResultConsumer(**asdict(options), settings=one)
            for name, one in settings.each_ledger().items()
            if name != settings.ledger
        }
        self._merged = Merged(map(_Source, (self, *self._others.values())))

    def stop(self) -> None:
        """As `ResultConsumer.stop`."""
        super().stop()
        self._merged.stopping = True
        for one in self._others.values():
            one.stop()

    async def __aiter__(self) -> AsyncIterator[Result]:
        """Results as they come, until `stop`. A second loop goes on where the first was left."""
        while not self._member.stopping:
            if (result := await self.take()) is not None:
                yield result

    async def take(self, patience: float = BLOCK) -> Result | None:
        """As `ResultConsumer.take`."""
        seconds(patience, "patience")
        async with self._alone():
            if self._others:
                ready = await self._merged.ready(patience)
                return None if ready is None else ready.consumer._next()
            await self._fetch(patience)
            return self._next()

    async def receive(self, patience: float = BLOCK) -> list[Result]:
        """As `ResultConsumer.receive`."""
        seconds(patience, "patience")
        async with self._alone():
            if self._others:
                ready = await self._merged.ready(patience)
                return [] if ready is None else ready.consumer._rest()
            await self._fetch(patience)
            return self._rest()

    async def ack(self, *results: Result) -> None:
        """As `ResultConsumer.ack`."""
        _results(results)
        self._begin()
        own = [one.entry for one in results if one.ledger not in self._others]
        others = [
            other.ack(*(one for one in results if one.ledger == name))
            for name, other in self._others.items()
        ]
        if own:
            others.append(self._ack(own))
        await _all(others)

    async def aclose(self) -> None:
        """As `ResultConsumer.close`."""
        self.stop()
        if self._inherited:
            return
        try:
            await self._merged.aclose()
        finally:
            await _all([*(one.aclose() for one in self._others.values()), self._leave()])

    async def _leave(self) -> None:
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(LAST), self._turn:
                    pass
            if self._member.joined:
                async with asyncio.timeout(FAREWELL):
                    await self._ledger.patiently(
                        lambda: self._carry(self._member.leave()), FAREWELL
                    )
        except (TimeoutError, RegistrationWorkerError, RedisError) as error:
            log.warning(
                "left group %s, which could not be recorded: %s",
                self.group,
                str(error) or "no answer",
            )
        finally:
            await self._ledger.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """Two concurrent reads would both get the entries of this consumer."""
        for one in (self, *self._others.values()):
            one._begin()
        loop = asyncio.get_running_loop()
        self._loop = self._loop or loop
        if self._loop is not loop:
            raise RuntimeError(
                "this AsyncResultConsumer belongs to another event loop: its connections cannot "
                "be used in this one. Create one in each loop"
            )
        async with self._turn:
            yield

    async def _fetch(self, patience: float) -> None:
        await carry_async(self._fetching(patience), self._patiently)

    async def _ack(self, entries: list[str]) -> None:
        with login_errors():
            await self._ledger.patiently(lambda: self._carry(self._member.ack(entries)), ACK)

    async def _patiently(self, make: Callable[[], Steps[Any]]) -> Any:
        """As `ResultConsumer._patiently`."""

        async def unless_stopped() -> Any:
            return None if self._member.stopping else await self._carry(make())

        with login_errors():
            return await carry_async(
                self._retrying(), partial(self._ledger.patiently, unless_stopped)
            )

    async def _carry(self, steps: Steps[T]) -> T:
        return await carry_async(steps, self._do)

    async def _do(self, step: Step) -> Any:
        if isinstance(step, Ask):
            return await self._ledger.ask(step.question)
        return await self._ledger.carry(step)


class _Source:
    """One of several consumers, for `Merged`."""

    def __init__(self, consumer: AsyncResultConsumer) -> None:
        self.consumer = consumer
        self.ledger = consumer.ledger
        self.fetch = consumer._fetch

    @property
    def ready(self) -> bool:
        """Whether it has an entry that was delivered to nobody else meanwhile."""
        return bool(self.consumer._member.waiting) and not self.consumer._member.stale


def _results(given: tuple[object, ...]) -> None:
    for one in given:
        of_kind("ack's argument", one, Result, "a result (of several: ack(*results))")


async def _all(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Carry out all of them, whichever fails; raise the first error then."""
    for one in await asyncio.gather(*works, return_exceptions=True):
        if isinstance(one, BaseException):
            raise one


def reader_settings() -> Settings:
    """The settings of a reader of results: without a key if none is configured."""
    try:
        return Settings.load_for_client()
    except SettingsError as error:
        if any(name != variable("sealing_keys") for name, _ in error.problems):
            raise
    return Settings.load_for_client(sealing_keys="")


def is_sealed(settings: Settings, stream: str) -> bool:
    """Whether the settings say that a stream is sealed."""
    return any(one.sealed for one in settings.streams().values() if one.stream == stream)


def opener(settings: Settings) -> Opener:
    """Opens sealed entries with the keys of the settings; `SealingError` without any."""
    keys = settings.sealing_keys.get_secret_value()
    ring: list[Keyring] = []

    def open_(sealed: str, seal: Seal) -> bytes:
        if not keys:
            raise UnknownKey(f"it is sealed, and {variable('sealing_keys')} is not set")
        if not ring:
            ring.append(Keyring.parse(keys))
        return ring[0].open(sealed, seal)

    return open_

"""Sends commands to the server, and waits while it is unavailable.

Every command is safe to repeat, so both clients retry while the server restarts, loads, fails over
or is out of memory; redis-py's own retries are off, since it would repeat anything.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import redis
import redis.asyncio
from redis.exceptions import (
    AskError,
    BusyLoadingError,
    ClusterDownError,
    ConnectionError,  # noqa: A004
    MasterDownError,
    MovedError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,  # noqa: A004
    TryAgainError,
)

from regworker.domain.errors import LedgerUnavailable, NotReplicated, SettingsError
from regworker.ledger.bounded import bounded, within
from regworker.ledger.calls import (
    BATCH,
    BATCHED,
    NotReached,
    call,
    joined,
    parts,
    scripts,
    shifted,
)
from regworker.ledger.connection import LedgerConnection, apart
from regworker.ledger.records import UNREADABLE
from regworker.ledger.replication import (
    QUESTION,
    DurableLine,
    Followed,
    TooFewReplicas,
    Wanted,
    replicated,
)
from regworker.ledger.servers import (
    WrongServer,
    async_client,
    async_pool,
    close_idle,
    sync_pool,
)
from regworker.ledger.steps import Ask, Each, Exchange, Step
from regworker.ledger.sync_connections import exact, packed, packs
from regworker.ledger.transitions import Command

T = TypeVar("T")

#: Seconds. A server that does not answer a script of microseconds in this time is gone.
SOCKET_TIMEOUT = 5.0
CONNECT_TIMEOUT = 3.0

#: Seconds without an answer after which a producer's idle connections count as dead, too. A call
#: may have a shorter limit, which proves nothing.
SILENT = 1.0

#: Seconds between tries while the server is away: short at first, for a restart; then longer.
FIRST_PAUSE, LAST_PAUSE = 0.05, 1.0

#: Commands that a producer sends at a time: sealing them takes it less than a millisecond. So long
#: the server waits at the start of a pipeline; then both work concurrently.
SLICE = 15

#: Concurrent requests of an `AsyncLedger` that are not our commands: each has a connection.
QUESTIONS = 4

#: Temporary errors of a server: away, starting, failing over, out of memory, moving its slot,
#: without its scripts after a restart. redis-py removes the code from these replies.
_PASSING = (
    ConnectionError,
    TimeoutError,
    BusyLoadingError,
    ReadOnlyError,
    OutOfMemoryError,
    MasterDownError,
    TryAgainError,
    AskError,  # includes MovedError
    ClusterDownError,
    NoScriptError,
    TooFewReplicas,
)

#: Errors of a server that is no primary, or not yet, or not of our slot: the Sentinels, or other
#: nodes of the cluster, may name another.
_ELSEWHERE = (ReadOnlyError, BusyLoadingError, MasterDownError, MovedError, ClusterDownError)

#: Replies to a `WAIT` of a server that was demoted, before the wait or during it.
_DEMOTED = ("UNBLOCKED", "WAIT cannot be used with replica")

#: Temporary errors for which redis-py has no class: too few replicas, a full disk, a slow script, a
#: WAIT on a server that is no longer a primary.
_PASSING_CODES = ("NOREPLICAS", "MISCONF", "BUSY", *_DEMOTED)


def passing(error: BaseException) -> bool:
    """Whether an error of the server or the connection is temporary, so that waiting makes
    sense."""
    if isinstance(error, _PASSING):
        return not isinstance(error, redis.AuthenticationError)
    return isinstance(error, ResponseError) and str(error).startswith(_PASSING_CODES)


def elsewhere(error: BaseException) -> bool:
    """Whether the server is no primary (any more), so that the client must look for another."""
    return isinstance(error, _ELSEWHERE) or str(error).startswith(_DEMOTED)


def lone(error: BaseException) -> bool:
    """Whether an error may be that of one command only, for example about its job's record."""
    of_all = isinstance(error, NoPermissionError | WrongServer) or passing(error)
    return isinstance(error, ResponseError) and not of_all


@contextmanager
def login_errors() -> Iterator[None]:
    """A refused login is reported to a host as what it is: a wrong setting."""
    try:
        yield
    except redis.AuthenticationError:
        what = "the ledger refuses the login: correct user and password in the URL"
        raise SettingsError([("REGWORKER_REDIS_URL", what)]) from None


def _never(_: BaseException) -> bool:
    return False


class AsyncLedger:
    """The ledger for the worker's loop. All commands share a connection, and are sent together.

    `await ledger(command)` returns what the command reads; `LedgerUnavailable` after `patience`
    seconds without an answer. `timed` gets the seconds of each round trip. `wanted`: how many
    replicas must have durable commands; None: as workers have announced.
    """

    def __init__(
        self,
        url: str,
        timed: Callable[[float], None] = lambda _: None,
        wanted: Wanted | None = None,
        greet: Callable[[Any], Awaitable[None]] | None = None,
    ) -> None:
        """`greet`: called with each new connection for durable commands."""
        self.redis: redis.asyncio.Redis = async_client(
            url, socket_timeout=SOCKET_TIMEOUT, socket_connect_timeout=CONNECT_TIMEOUT
        )
        # The connection itself detects silence, once for all its commands.
        lines = async_pool(url, socket_timeout=None, socket_connect_timeout=CONNECT_TIMEOUT)
        self._connection = LedgerConnection(lines, SOCKET_TIMEOUT, timed)
        # A separate connection: on the other one, renewals of leases would wait behind a WAIT.
        self._waiting = LedgerConnection(lines, SOCKET_TIMEOUT, timed, greet)
        self._greets = greet is not None
        self._durable = DurableLine(self._waiting)
        self._learning: asyncio.Future[Wanted] | None = None
        self._loading: dict[tuple[str, LedgerConnection], asyncio.Future[Any]] = {}
        self._followed = Followed(wanted)
        self._places = asyncio.Semaphore(QUESTIONS)
        self._closed = False

    async def __call__(
        self, command: Command[T], patience: float = 30.0, *, insist: bool = True
    ) -> T:
        """Run one command; repeat it while the server's error is temporary.

        Not `insist`: raise `NotReplicated` at once if too few replicas have it.
        """

        async def carry() -> T:
            answer = await self._carry(command)
            try:
                return command.read(answer)
            except UNREADABLE:
                self._drop()
            return command.read(await self._carry(command))

        return await self.patiently(carry, patience, insist=insist)

    async def many(self, commands: Iterable[Command[T]], patience: float = 30.0) -> list[T]:
        """Run commands together; return their answers in the same order.

        They are made in slices, so that the server and the loop work meanwhile.
        """
        return _all_read(await self._all(commands, patience))

    async def each(self, commands: Iterable[Command[T]], patience: float) -> list[T | Exception]:
        """As `many`. The answer of a command that fails alone (`lone`), or whose answer cannot be
        read, is its error."""
        return await self._all(commands, patience, spared=lone)

    async def _all(
        self,
        commands: Iterable[Command[T]],
        patience: float,
        spared: Callable[[BaseException], bool] = _never,
    ) -> list[T | Exception]:
        """What each command reads, or why it cannot. `spared`: an error that is its command's
        answer."""
        end = time.monotonic() + patience
        made: list[Command[T]] = []
        asked: list[asyncio.Future[Any]] = []
        answers: list[Any] = []
        try:
            for command in commands:
                made.append(command)
                wanted = self._known(command)
                if wanted is None:
                    wanted = await self.patiently(self._wanted, patience)
                asked.append(self._ask(command, wanted))
                if len(made) % SLICE == 0:
                    await asyncio.sleep(0)
            # In their order, as they come: `asyncio.gather` adds a callback to each.
            for one in asked:
                try:
                    answers.append(await one)
                except Exception as error:  # noqa: BLE001 -- repeated below
                    answers.append(error)
        finally:
            _let_go(asked[len(answers) :])
        if silence := next((one for one in answers if isinstance(one, TimeoutError)), None):
            await self._abandon(silence)
        found = [
            # Repeat one by one: most errors affect all, and the first repeat waits for their end.
            (command, await self._again(command, max(0.0, end - time.monotonic()), spared))
            if isinstance(answer, Exception)
            else (command, answer)
            for command, answer in zip(made, answers, strict=True)
        ]
        read = _read(found)
        if odd := _unread(read):
            self._drop()
            for i in odd:
                left = max(0.0, end - time.monotonic())
                [read[i]] = _read([(made[i], await self._again(made[i], left, spared))])
        return read

    def _drop(self) -> None:
        """Close the connections after an answer that cannot be read: it may be that of another
        command. If the answer to the repeated command cannot be read either, it is this one's."""
        self._connection.drop()
        self._waiting.drop()

    async def _again(
        self, command: Command[Any], patience: float, spared: Callable[[BaseException], bool]
    ) -> Any:
        try:
            return await self.patiently(lambda: self._carry(command), patience)
        except ResponseError as error:
            if not spared(error):
                raise
            return error

    async def patiently(
        self, carry: Callable[[], Awaitable[T]], patience: float = 30.0, *, insist: bool = True
    ) -> T:
        """Use the server, and repeat while its error is temporary."""
        end = time.monotonic() + patience
        pause = FIRST_PAUSE
        while True:
            fault: SettingsError | LedgerUnavailable | None = None
            try:
                return await carry()
            except RedisError as error:
                wait = pause * random.uniform(0.5, 1.5)  # noqa: S311
                given_up = isinstance(error, TooFewReplicas) and not insist
                if isinstance(error, WrongServer):
                    fault = SettingsError([("REGWORKER_REDIS_URL", str(error))])
                elif not passing(error):
                    raise
                elif given_up or time.monotonic() + wait > end:
                    fault = _unavailable(error)
                await self._abandon(error)
            if fault is not None:
                raise fault  # here, so that it has no context
            await asyncio.sleep(wait)
            pause = min(LAST_PAUSE, pause * 2)

    async def _abandon(self, error: RedisError) -> None:
        """Close connections that an error makes doubtful: new ones find the new primary; and after
        a silence, those that nobody uses are probably as dead as the one that was used."""
        if moved := elsewhere(error):
            self._drop()
        elif isinstance(error, TimeoutError):
            self._connection.drop(idle=True)
            self._waiting.drop(idle=True)
        if moved or isinstance(error, TimeoutError):
            await close_idle(self.redis.connection_pool)

    async def carry(self, step: Step, patience: float = 30.0) -> Any:
        """Carry out one step of a rule; return its answer."""
        match step:
            case Ask(question):
                return await self.patiently(lambda: self.ask(question), patience)
            case Exchange(commands):
                return await self.exchange(commands)
            case Each(commands):
                return await self.each(commands, patience)
            case _:
                return await self.many(step, patience)

    async def ask(self, question: Callable[[Any], Awaitable[T]]) -> T:
        """Send a request that is none of our commands; it is not repeated."""
        async with self._places:
            try:
                return await question(self.redis)
            finally:
                await self._tidy()

    async def exchange(self, commands: Iterable[tuple[Any, ...]]) -> Any:
        """Send commands that have one answer, on a separate connection; return the answer.

        They are not repeated.
        """
        pool: Any = self.redis.connection_pool
        connection = await pool.get_connection()
        try:
            await connection.send_packed_command(connection.pack_commands(list(commands)))
            return await connection.read_response()
        except BaseException:
            # Unread answers may follow: an error may answer the first of several commands, before
            # those to the others.
            await connection.disconnect(nowait=True)
            raise
        finally:
            await pool.release(connection)
            await self._tidy()

    async def now(self) -> float:
        """The server's time in milliseconds, in which all times of a job are."""
        return _milliseconds(await self.patiently(self.redis.time))

    async def aclose(self) -> None:
        """Close all connections for good: commands under way get `LedgerUnavailable`."""
        self._closed = True
        await self._connection.aclose()
        await self._waiting.aclose()
        await self.redis.aclose()

    async def _tidy(self) -> None:
        """Close what was connected while the client was closing."""
        if self._closed:
            await self.redis.aclose()

    async def _carry(self, command: Command[Any]) -> Any:
        wanted = self._known(command) or await self._wanted()
        try:
            try:
                return await self._ask(command, wanted)
            except NoScriptError:
                # A restarted or new server does not know the script: it has not run.
                await self._load(command, wanted)
                return await self._ask(command, wanted)
        except NotReached:
            return await self._ask(command, wanted, alone=True)

    async def _load(self, command: Command[Any], wanted: Wanted) -> None:
        """Load a script where its command is sent: once for all that need it now."""
        line = self._line(command, wanted)
        loading = self._loading.get((command.script, line))
        if loading is None:
            sources = map(scripts().get, (command.script, command.script + BATCH))
            loading = asyncio.gather(*(line.ask("SCRIPT", "LOAD", one) for one in sources if one))
            self._loading[command.script, line] = loading
            loading.add_done_callback(partial(self._loaded, (command.script, line)))
        try:
            await asyncio.shield(loading)
        except RedisError as error:
            own = apart(error)
        else:
            return
        raise own

    def _loaded(self, what: tuple[str, LedgerConnection], loading: "asyncio.Future[Any]") -> None:
        del self._loading[what]
        if not loading.cancelled():
            loading.exception()  # possibly nobody awaits it any more

    def _known(self, command: Command[Any]) -> Wanted | None:
        return self._followed.known if command.durable else _NONE

    async def _wanted(self) -> Wanted:
        if self._learning is None:
            self._learning = asyncio.ensure_future(self._learn())
            self._learning.add_done_callback(self._learned)
        # One request for all that need the answer now, so that they keep their order.
        try:
            return await asyncio.shield(self._learning)
        except RedisError as error:
            own = apart(error)
        raise own

    async def _learn(self) -> Wanted:
        answer: Any = await self.ask(lambda redis: redis.hmget(*QUESTION))
        return self._followed.learn(answer)

    def _learned(self, learning: "asyncio.Future[Wanted]") -> None:
        self._learning = None
        if not learning.cancelled():
            learning.exception()  # possibly nobody awaits it any more

    def _ask(
        self, command: Command[Any], wanted: Wanted, *, alone: bool = False
    ) -> "asyncio.Future[Any]":
        """The only place where this client waits for replicas. `alone`: in a call of its own."""
        joins = command.script in BATCHED and not alone
        sent = command if joins else packed(call([command]))
        if wanted.replicas:
            return self._durable.ask(wanted, sent)
        return self._line(command, wanted).ask_packed(sent)

    def _line(self, command: Command[Any], wanted: Wanted) -> LedgerConnection:
        waits = wanted.replicas or (command.durable and self._greets)
        return self._waiting if waits else self._connection


class SyncLedger:
    """The ledger for a producer's threads: the same commands, run synchronously."""

    def __init__(self, url: str) -> None:
        pool = sync_pool(url, socket_timeout=SOCKET_TIMEOUT, socket_connect_timeout=CONNECT_TIMEOUT)
        self.redis: redis.Redis = exact(redis.Redis.from_pool(pool))
        bounded(self.redis.connection_pool)
        self._followed = Followed(None)

    def __call__(self, command: Command[T], patience: float = 10.0) -> T:
        """Run one command; repeat it while the server's error is temporary."""
        return self.many([command], patience)[0]

    def many(self, commands: Iterable[Command[T]], patience: float = 10.0) -> list[T]:
        """Run commands in one pipeline; return their answers in the same order.

        The server processes the first ones while the last are still being made.
        """
        return _all_read(self._all(commands, patience))

    def each(self, commands: Iterable[Command[T]], patience: float) -> list[T | Exception]:
        """As `AsyncLedger.each`."""
        return self._all(commands, patience, spared=lone)

    def _all(
        self,
        commands: Iterable[Command[T]],
        patience: float,
        spared: Callable[[BaseException], bool] = _never,
    ) -> list[T | Exception]:
        """As `AsyncLedger._all`."""
        made: list[Command[T]] = []
        answers: list[Any] = []
        left: list[int] = []
        rest = iter(commands)

        def unanswered() -> Iterator[Command[T]]:
            yield from [made[i] for i in left]
            for command in rest:
                left.append(len(made))
                made.append(command)
                answers.append(None)
                yield command

        def carry() -> None:
            while True:
                replies = self._pipeline(unanswered())
                tried, left[:] = left[:], []
                fault: Exception | None = None
                for i, reply in zip(tried, replies, strict=True):
                    if not isinstance(reply, Exception) or spared(reply):
                        answers[i] = reply
                        continue
                    left.append(i)
                    # Of several errors, a permanent one counts.
                    if not isinstance(reply, NotReached) and (fault is None or passing(fault)):
                        fault = reply
                if fault is not None:
                    raise fault
                if not left:
                    return

        self.patiently(carry, patience)
        read = _read(list(zip(made, answers, strict=True)))
        if odd := _unread(read):
            # As `AsyncLedger._drop`.
            self.redis.connection_pool.disconnect(inuse_connections=False)
            left[:] = odd
            self.patiently(carry, patience)
            for i in odd:
                [read[i]] = _read([(made[i], answers[i])])
        return read

    def patiently(self, carry: Callable[[], T], patience: float) -> T:
        """Use the server, and repeat while its error is temporary."""
        end = time.monotonic() + patience
        pause = FIRST_PAUSE
        missing: RedisError | None = None
        while True:
            wait = pause * random.uniform(0.5, 1.5)  # noqa: S311
            fault: SettingsError | LedgerUnavailable | None = None
            began = time.monotonic()
            try:
                with within(end - time.monotonic()):
                    try:
                        return carry()
                    except NoScriptError:
                        self._load(scripts().values())
                        return carry()
            except RedisError as error:
                if isinstance(error, TooFewReplicas):
                    missing = error
                if isinstance(error, WrongServer):
                    fault = SettingsError([("REGWORKER_REDIS_URL", str(error))])
                elif not passing(error):
                    raise
                elif time.monotonic() + wait > end:
                    # A last try that was cut short says less than the missing replicas.
                    fault = _unavailable(missing or error)
                silent = isinstance(error, TimeoutError) and time.monotonic() - began > SILENT
                if silent or elsewhere(error):
                    # As `AsyncLedger._abandon`.
                    self.redis.connection_pool.disconnect(inuse_connections=False)
            if fault is not None:
                raise fault  # here, so that it has no context
            time.sleep(wait)
            pause = min(LAST_PAUSE, pause * 2)

    def ask(self, question: Callable[[Any], T], patience: float = 10.0) -> T:
        """Send a request that is none of our commands; repeat it like `patiently`.

        `question` gets redis-py's client, whose answers have no types.
        """
        return self.patiently(lambda: question(self.redis), patience)

    def carry(self, step: Step, patience: float = 10.0) -> Any:
        """Carry out one step of a rule; return its answer."""
        match step:
            case Ask(question):
                return self.ask(question, patience)
            case Exchange(commands):
                return self.exchange(commands)
            case Each(commands):
                return self.each(commands, patience)
            case _:
                return self.many(step, patience)

    def now(self) -> float:
        """The server's time in milliseconds, in which all times of a job are."""
        return _milliseconds(self.ask(lambda redis: redis.time()))

    def exchange(self, commands: Iterable[tuple[Any, ...]]) -> Any:
        """Send commands that have one answer; return it. They are not repeated."""
        pool = self.redis.connection_pool
        connection: Any = pool.get_connection()  # untyped at redis-py
        try:
            connection.owed += 1
            connection.send_packed_command(_packed(connection, list(commands)))
            return connection.read_response()
        except BaseException:
            # Unread answers may follow.
            connection.disconnect()
            raise
        finally:
            pool.release(connection)

    def listener(self) -> Any:
        """A subscriber of redis-py, which has no types for it."""
        return self.redis.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Close all connections: those in use as soon as their calls have ended."""
        pool: Any = self.redis.connection_pool
        pool.end()

    def _load(self, sources: Iterable[str]) -> None:
        for source in sources:
            self.redis.script_load(source)

    def _wanted(self) -> Wanted:
        if (known := self._followed.known) is not None:
            return known
        return self._followed.learn(self.redis.hmget(*QUESTION))  # type: ignore[arg-type]

    def _pipeline(self, commands: Iterable[Command[Any]]) -> list[Any]:
        """Send commands in slices as they come; then read the replies, including errors.

        redis-py's own pipeline sends nothing before it has all commands. Replies that wait
        meanwhile are small, and the server keeps them. The only place where this client waits for
        replicas, once for everything that it sent: durable commands are not mixed with others.
        """
        rest = iter(commands)
        calls: list[int] = []
        """How many commands each of them carries."""
        some = list(islice(rest, SLICE))
        if not some:
            return []
        wanted = self._wanted() if some[0].durable else _NONE
        pool = self.redis.connection_pool
        connection: Any = pool.get_connection()  # untyped at redis-py
        try:
            while some:
                asked, sent = _calls(connection, some)
                calls += asked
                connection.owed += len(asked)
                connection.send_packed_command(sent)
                some = list(islice(rest, SLICE))
            if not wanted.replicas:
                return [reply for count in calls for reply in _replies(connection, count)]
            connection.owed += 1
            connection.send_packed_command(_packed(connection, [wanted.command]))
            replies = [reply for count in calls for reply in _replies(connection, count)]
            had = _had(connection)
            return [replicated(wanted, reply, had) for reply in replies]
        except BaseException:
            # An unread reply would be taken for that of another command.
            connection.disconnect()
            raise
        finally:
            pool.release(connection)


def _read(answers: Sequence[tuple[Command[Any], Any]]) -> list[Any]:
    """What each command reads, or its error."""
    try:
        # Nearly always all can be read: at once, since an import has very many.
        return [
            answer if isinstance(answer, Exception) else command.read(answer)
            for command, answer in answers
        ]
    except UNREADABLE as error:
        if len(answers) == 1:
            return [error]
        return [one for answer in answers for one in _read([answer])]


def _unread(found: Sequence[Any]) -> list[int]:
    """The places of those that could not be read."""
    return [i for i, one in enumerate(found) if isinstance(one, UNREADABLE)]


def _all_read(found: list[Any]) -> list[Any]:
    """The same, if all could be read; raises the first error."""
    for one in found:
        if isinstance(one, Exception):
            raise one
    return found


def _let_go(asked: Iterable["asyncio.Future[Any]"]) -> None:
    """Nobody awaits these answers any more; an error among them is not reported."""
    for one in asked:
        if not one.cancel() and not one.cancelled():
            one.exception()


def _packed(connection: Any, commands: list[tuple[Any, ...]]) -> Any:
    if not packs():
        owed = connection.owed
        found = connection.pack_commands(commands)
        connection.owed = owed
        return found
    # redis-py also packs with it, but converts each argument to bytes before.
    return [b"".join(map(packed, commands))]


def _calls(connection: Any, commands: list[Command[Any]]) -> tuple[list[int], Any]:
    """Calls for these commands: how many each of them carries, and their bytes."""
    if not packs():
        return [1] * len(commands), _packed(connection, [call([one]) for one in commands])
    if any(one.script != "accept" for one in commands):
        # Only workers send many others.
        return [1] * len(commands), [b"".join([packed(call([one])) for one in commands])]
    found = joined(commands)
    return list(map(len, found)), [b"".join([packed(call(some)) for some in found])]


def _reply(connection: Any) -> Any:
    try:
        return connection.read_response()
    except ResponseError as error:
        return error


def _had(connection: Any) -> Any:
    """The reply to `WAIT`."""
    had = _reply(connection)
    if not isinstance(had, int | Exception):
        raise shifted()
    return had


def _replies(connection: Any, count: int) -> list[Any]:
    """The replies to so many commands that were one call."""
    reply = _reply(connection)
    if count == 1:
        return [reply]
    if isinstance(reply, Exception):
        return [reply] * count
    return parts(reply, count)


def _milliseconds(time: tuple[int, int]) -> float:
    seconds, micros = time
    return float(seconds) * 1000 + micros // 1000


#: For commands that are not durable.
_NONE = Wanted()


def _unavailable(error: RedisError) -> LedgerUnavailable:
    if isinstance(error, TooFewReplicas):
        return NotReplicated(
            f"the ledger's server has it, but {error}; check that its replicas are connected: "
            "`regworker doctor`",
            error.answer,
        )
    what, advice = "did not answer", "check REGWORKER_REDIS_URL and the server behind it"
    if isinstance(error, OutOfMemoryError):
        what, advice = "takes no writes", "its memory is full: give its server more"
    elif str(error).startswith("MISCONF"):
        what, advice = "takes no writes", "check the disk of its server"
    elif isinstance(error, ReadOnlyError):
        advice = "REGWORKER_REDIS_URL leads to a replica: it must name the primary"
    return LedgerUnavailable(f"the ledger {what} ({type(error).__name__}: {error}); {advice}")

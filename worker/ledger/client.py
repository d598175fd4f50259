"""Carrying commands to the server, patiently.

Every command is safe to repeat, so both clients try again while the server restarts, loads, fails
over or is out of memory; redis-py's own retries are off, since it would repeat anything.
"""

import asyncio
import hashlib
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from functools import cache
from importlib import resources
from itertools import islice
from typing import Any, TypeVar

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import (
    BusyLoadingError,
    ClusterDownError,
    ConnectionError,  # noqa: A004
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,  # noqa: A004
    TryAgainError,
)
from redis.retry import Retry

from worker.errors import LedgerUnavailable
from worker.ledger.commands import Command
from worker.ledger.line import Line
from worker.ledger.linking import link, pieces

T = TypeVar("T")

#: Seconds. A server that doesn't answer a script of microseconds in this time is gone.
SOCKET_TIMEOUT = 5.0
CONNECT_TIMEOUT = 3.0

#: Seconds between tries while the server is away: short first, for a restart; then calm.
FIRST_PAUSE, LAST_PAUSE = 0.05, 1.0

#: Commands that a producer sends at a time: sealing them takes it a few milliseconds, so that it
#: and the server work side by side.
SLICE = 50

#: Errors of a server that will be well again: away, starting, failing over, out of memory, its
#: cluster moving, its scripts gone with a restart. redis-py cuts the code off these replies.
_PASSING = (
    ConnectionError,
    TimeoutError,
    BusyLoadingError,
    ReadOnlyError,
    OutOfMemoryError,
    ClusterDownError,
    TryAgainError,
    NoScriptError,
)

#: The same, of replies that redis-py has no class for: too few replicas, a full disk, a script
#: that takes long.
_PASSING_CODES = ("NOREPLICAS", "MISCONF", "BUSY")


@cache
def scripts() -> dict[str, str]:
    """Every script's whole source, by name: what it uses of the shared part in front of it."""
    folder = resources.files("worker.ledger") / "scripts"
    sources = {
        entry.name.removesuffix(".lua"): entry.read_text("utf-8")
        for entry in folder.iterdir()
        if entry.name.endswith(".lua")
    }
    shared = pieces(sources.pop("_lib"))
    return {name: link(shared, source) for name, source in sources.items()}


@cache
def digest(name: str) -> str:
    """The hash by which a script is called."""
    return hashlib.sha1(scripts()[name].encode(), usedforsecurity=False).hexdigest()


def passing(error: BaseException) -> bool:
    """Whether an error of the server or the way to it will pass, so that waiting makes sense."""
    if isinstance(error, _PASSING):
        return not isinstance(error, redis.AuthenticationError)
    return isinstance(error, ResponseError) and str(error).startswith(_PASSING_CODES)


def evalsha(command: Command[Any]) -> tuple[Any, ...]:
    """A command as redis-py takes it."""
    return (digest(command.script), len(command.keys), *command.keys, *command.args)


class AsyncLedger:
    """The ledger for the worker's loop. All commands share a connection, and go together.

    `await ledger(command)` gives what the command reads; `LedgerUnavailable` after `patience`
    seconds without an answer. `timed` hears of each round trip, in seconds.
    """

    def __init__(self, url: str, timed: Callable[[float], None] = lambda _: None) -> None:
        self.redis: redis.asyncio.Redis = redis.asyncio.Redis.from_url(
            url,
            retry=AsyncRetry(NoBackoff(), 0),
            socket_timeout=SOCKET_TIMEOUT,
            socket_connect_timeout=CONNECT_TIMEOUT,
        )
        # The line watches for silence itself, once for all commands on it.
        lines = redis.asyncio.ConnectionPool.from_url(
            url,
            retry=AsyncRetry(NoBackoff(), 0),
            socket_timeout=None,
            socket_connect_timeout=CONNECT_TIMEOUT,
        )
        self._line = Line(lines, SOCKET_TIMEOUT, timed)

    async def __call__(self, command: Command[T], patience: float = 30.0) -> T:
        """Carry one command; repeat it while the server's trouble is of the passing kind."""
        return command.read(await self.patiently(lambda: self._carry(command), patience))

    async def patiently(self, carry: Callable[[], Awaitable[T]], patience: float = 30.0) -> T:
        """Do something with the server, again and again while its trouble will pass."""
        end = time.monotonic() + patience
        pause = FIRST_PAUSE
        while True:
            try:
                return await carry()
            except RedisError as error:
                if not passing(error):
                    raise
                if time.monotonic() + pause > end:
                    raise LedgerUnavailable(_unavailable(error)) from None
                if isinstance(error, ReadOnlyError):
                    # A replica now: new connections find the new primary.
                    self._line.drop()
                    await self.redis.connection_pool.disconnect(inuse_connections=False)
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311
            pause = min(LAST_PAUSE, pause * 2)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._line.aclose()
        await self.redis.aclose()

    async def _carry(self, command: Command[Any]) -> Any:
        try:
            return await self._line.ask("EVALSHA", *evalsha(command))
        except NoScriptError:
            # A server that was restarted or is new: it has not run.
            await self._line.ask("SCRIPT", "LOAD", scripts()[command.script])
            return await self._line.ask("EVALSHA", *evalsha(command))


class SyncLedger:
    """The ledger for a producer's threads: the same commands, carried synchronously."""

    def __init__(self, url: str) -> None:
        self.redis: redis.Redis = redis.Redis.from_url(
            url,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=SOCKET_TIMEOUT,
            socket_connect_timeout=CONNECT_TIMEOUT,
        )

    def __call__(self, command: Command[T], patience: float = 10.0) -> T:
        """Carry one command; repeat it while the server's trouble is of the passing kind."""
        return self.many([command], patience)[0]

    def many(self, commands: Iterable[Command[T]], patience: float = 10.0) -> list[T]:
        """Carry commands in one pipeline; their answers in the same order.

        The server works at the first ones while the last are still being made.
        """
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
            replies = self._pipeline(unanswered())
            tried, left[:] = left[:], []
            fault: Exception | None = None
            for i, reply in zip(tried, replies, strict=True):
                if not isinstance(reply, Exception):
                    answers[i] = reply
                    continue
                left.append(i)
                # Of several errors, one that will not pass counts.
                if fault is None or passing(fault):
                    fault = reply
            if fault is not None:
                raise fault

        self.patiently(carry, patience)
        return [command.read(answer) for command, answer in zip(made, answers, strict=True)]

    def patiently(self, carry: Callable[[], T], patience: float) -> T:
        """Do something with the server, again and again while its trouble will pass."""
        end = time.monotonic() + patience
        pause = FIRST_PAUSE
        while True:
            try:
                try:
                    return carry()
                except NoScriptError:
                    self._load(scripts().values())
                    return carry()
            except RedisError as error:
                if not passing(error):
                    raise
                if time.monotonic() + pause > end:
                    raise LedgerUnavailable(_unavailable(error)) from None
                if isinstance(error, ReadOnlyError):
                    self.redis.connection_pool.disconnect(inuse_connections=False)
            time.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311
            pause = min(LAST_PAUSE, pause * 2)

    def listener(self) -> Any:
        """A subscriber of redis-py, which types it not."""
        return self.redis.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Close all connections."""
        self.redis.close()

    def _load(self, sources: Iterable[str]) -> None:
        for source in sources:
            self.redis.script_load(source)

    def _pipeline(self, commands: Iterable[Command[Any]]) -> list[Any]:
        """Send commands, some at a time, as they come; then read the replies, errors among them.

        redis-py's own pipeline sends nothing before it has all. Replies that wait meanwhile are
        small, and the server keeps them.
        """
        sent, rest = 0, iter(commands)
        some = list(islice(rest, SLICE))
        if not some:
            return []
        pool = self.redis.connection_pool
        connection: Any = pool.get_connection()  # untyped at redis-py
        try:
            while some:
                asked = [("EVALSHA", *evalsha(one)) for one in some]
                connection.send_packed_command(_packed(connection, asked))
                sent += len(some)
                some = list(islice(rest, SLICE))
            return [_reply(connection) for _ in range(sent)]
        except BaseException:
            # A reply that nobody has read would be taken for that to another command.
            connection.disconnect()
            raise
        finally:
            pool.release(connection)


def _packed(connection: Any, commands: list[tuple[Any, ...]]) -> Any:
    try:
        from hiredis import pack_command  # not in every producer's installation
    except ImportError:
        return connection.pack_commands(commands)
    # redis-py packs by it, too, but turns each argument into bytes before.
    pack: Any = pack_command
    return [b"".join(map(pack, commands))]


def _reply(connection: Any) -> Any:
    try:
        return connection.read_response()
    except ResponseError as error:
        return error


def _unavailable(error: RedisError) -> str:
    return (
        f"the ledger did not answer ({type(error).__name__}: {error}); "
        "check REGWORKER_REDIS_URL and the server behind it"
    )

"""Commands that count only once replicas have them: how many replicas, and how a client learns it.

An asynchronous failover loses what the promoted replica had not received yet. So a `durable`
command is followed by `WAIT` on its own connection, since WAIT counts the writes of its own
connection. Workers announce how many replicas it takes; every client follows.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from redis.exceptions import RedisError

from regworker.clock import steady
from regworker.ledger.calls import shifted
from regworker.ledger.connection import LedgerConnection, apart
from regworker.ledger.transitions import PREFIX, Command, ms

REPLICAS = f"{PREFIX}replicas"
"""The workers' announcement: a hash of `wanted`, `timeout_ms` and `retention_ms`."""

#: Seconds for which a client uses the announcement. After that it follows a worker that was started
#: with another number of replicas.
FOLLOWS = 5.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """How many replicas must have a write, and how long to wait for them (seconds)."""

    replicas: int = 0
    timeout: float = 1.0

    @property
    def command(self) -> tuple[str, str, str]:
        """The `WAIT` command for it."""
        return ("WAIT", str(self.replicas), str(round(self.timeout * 1000)))


class TooFewReplicas(RedisError):  # noqa: N818
    """Too few replicas have a write in time. It is temporary, and repeating is safe."""

    def __init__(self, wanted: Wanted, had: int, answer: Any) -> None:
        super().__init__(
            f"{had} of {wanted.replicas} replicas had the write within {wanted.timeout:g} s"
        )
        self.answer = answer
        """The command's answer at the primary."""


def announce(wanted: Wanted, retention: float = 0, *, starts: bool) -> Command[None]:
    """Write what a worker requires; without `starts`: only if the ledger has no value.

    `retention`: seconds for which the record of a finished job is kept at least, whoever ends it.
    """
    args = (int(starts), wanted.replicas, ms(wanted.timeout), ms(retention))
    return Command("replicas", (REPLICAS,), args, lambda _: None)


#: What a client reads.
QUESTION = (REPLICAS, ("wanted", "timeout_ms"))


class Followed:
    """The required replicas: given by the caller, or announced by workers."""

    def __init__(self, given: Wanted | None) -> None:
        self._given = given
        self._seen = Wanted()
        self._fresh_until = 0.0

    @property
    def known(self) -> Wanted | None:
        """The requirement; None if the ledger must be asked."""
        if self._given is not None:
            return self._given
        return self._seen if steady() < self._fresh_until else None

    def learn(self, answer: Sequence[bytes | None]) -> Wanted:
        """Use the ledger's value. If the ledger has lost it, it is asked again, and the last
        requirement stays until workers have announced themselves there."""
        wanted, timeout = answer
        if wanted is not None and timeout is not None:
            self._seen = Wanted(int(wanted), int(timeout) / 1000)
            self._fresh_until = steady() + FOLLOWS
        return self._seen


class DurableLine:
    """Commands that count only once replicas have them: sent together, with one `WAIT` after them.

    The next ones are sent when that is answered. So a caller waits for two timeouts at most while
    replicas are missing, however many callers there are.
    """

    def __init__(self, connection: LedgerConnection) -> None:
        self._connection = connection
        self._unsent: list[tuple[bytes | Command[Any], asyncio.Future[Any]]] = []
        self._wanted = Wanted()
        self._busy = False

    def ask(self, wanted: Wanted, command: bytes | Command[Any]) -> asyncio.Future[Any]:
        """The answer to a packed command once enough replicas have it; `TooFewReplicas`
        otherwise."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        self._wanted = wanted
        self._unsent.append((command, answer))
        if not self._busy:
            self._busy = True
            loop.call_soon(self._send)
        return answer

    def _send(self) -> None:
        sent, self._unsent = self._unsent, []
        asked = [(self._connection.ask_packed(data), answer) for data, answer in sent]
        waited = self._connection.ask(*self._wanted.command)
        waited.add_done_callback(_heard(self._wanted, asked, self._connection.drop, self._next))

    def _next(self) -> None:
        self._busy = bool(self._unsent)
        if self._busy:
            self._send()


Asked = Sequence[tuple[asyncio.Future[Any], asyncio.Future[Any]]]


def _heard(
    wanted: Wanted, asked: Asked, drop: Callable[[], None], then: Callable[[], None]
) -> Callable[[asyncio.Future[Any]], None]:
    def heard(waited: asyncio.Future[Any]) -> None:
        # A connection answers in order: the earlier answers have arrived.
        try:
            had = waited.exception() or waited.result()
            if not isinstance(had, int | Exception):
                had = shifted()
                drop()
            for came, answer in asked:
                result = replicated(wanted, came.exception() or came.result(), had)
                if answer.done():
                    continue  # its caller has gone
                if isinstance(result, Exception):
                    answer.set_exception(apart(result))
                else:
                    answer.set_result(result)
        finally:
            then()

    return heard


def replicated(wanted: Wanted, answer: Any, had: Any) -> Any:
    """An answer that counts by the result of `WAIT`; errors are values here."""
    if isinstance(answer, Exception):
        return answer
    if isinstance(had, Exception):
        return had
    return answer if had >= wanted.replicas else TooFewReplicas(wanted, had, answer)

"""Whose broker it is: an installation has a ledger and a broker of its own.

Two installations on one broker take each other's messages. A wake-up of the other's job does
nothing, so that each job waits for its alarm; a request registers a customer in the wrong ledger.
So each ledger has a random name, and its workers keep it at the broker: in a key of Redis that
expires some time after the last of them, or in an exchange of RabbitMQ that is deleted with their
last connection. So nobody must clear it.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any
from uuid import uuid4

from amqp.exceptions import ChannelError, PreconditionFailed
from redis.exceptions import NoPermissionError

from regworker.ledger.identity import IDENTITY
from regworker.ledger.snapshot import BrokerOf
from worker.broker.wakeups import REQUESTS

#: The key, or exchange, beside the lanes.
OWNER = f"{REQUESTS}.installation"

#: Seconds between two looks, and for which the key outlasts the last one.
LOOK, KEPT = 10.0, 60.0

_FIELD = "installation"


class BrokerOwner:
    """Claims the broker for the installation to which this worker belongs."""

    def __init__(self) -> None:
        self._name = uuid4().hex
        self._claimed = False
        self._link: Any = None
        self._queue = ""

    async def learn(self, ledger: Any) -> None:
        """Read the ledger's name, or give it this worker's. A worker that holds the broker keeps
        its name."""
        await ledger.hsetnx(IDENTITY, _FIELD, self._name)
        found = _text(await ledger.hget(IDENTITY, _FIELD))
        if not self._claimed:
            self._name = found

    async def keep(self, ledger: Any) -> None:
        """Give a ledger that was emptied its name again, if this worker holds the broker: even if a
        worker that has just been started was faster."""
        if self._claimed and _text(await ledger.hget(IDENTITY, _FIELD)) != self._name:
            await ledger.hset(IDENTITY, _FIELD, self._name)

    async def claim(self, broker: Any, learn: Callable[[], Awaitable[None]]) -> BrokerOf:
        """Whose broker it is; this installation's from now on, if it was nobody's. `learn`: learns
        the ledger's name again."""
        try:
            if not await self._claims(broker):
                # Were both emptied, a worker of this ledger may have been faster: its name stays.
                await learn()
                if not await self._claims(broker):
                    return "other"
        except NoPermissionError:
            return "unknown"
        return "this"

    async def _claims(self, broker: Any) -> bool:
        if await broker.set(OWNER, self._name, nx=True, ex=int(KEPT)):
            self._claimed = True
            return True
        found = await broker.get(OWNER)
        if found is not None and _text(found) != self._name:
            self._claimed = False
            return False
        await broker.pexpire(OWNER, int(1000 * KEPT))
        self._claimed = True
        return True

    def claim_rabbitmq(self, connection: Any, worker: str) -> BrokerOf:
        """The same on RabbitMQ, as long as this connection lasts. `worker`: a unique name."""
        if self._link is not connection.connection:
            # The broker may still hold the connection before: an exclusive queue is its own.
            self._queue = f"{OWNER}.of.{worker}.{uuid4().hex[:8]}"
            self._link, self._claimed = connection.connection, False
        try:
            with connection.channel() as channel:
                channel.queue_declare(self._queue, exclusive=True, durable=False)
            if not self._declared(connection):
                # Without any queue it is nobody's: a worker was killed before it had bound its own.
                with suppress(ChannelError), connection.channel() as channel:
                    channel.exchange_delete(OWNER, if_unused=True)
                if not self._declared(connection):
                    self._claimed = False
                    return "other"
            with connection.channel() as channel:
                channel.queue_bind(self._queue, OWNER)
            # Another installation may have found it without a queue a moment ago.
            self._claimed = self._declared(connection)
            if not self._claimed:
                # Bound to the other's exchange, it would keep that after the other's last worker.
                with connection.channel() as channel:
                    channel.queue_delete(self._queue)
        except ChannelError:
            return "unknown"
        return "this" if self._claimed else "other"

    def _declared(self, connection: Any) -> bool:
        """Whether the exchange has this installation's name, from now on or already."""
        # Of an exchange's arguments, RabbitMQ compares this one only. Nothing is ever published to
        # the exchange, and the alternate one does not exist.
        name = {"alternate-exchange": f"{OWNER}.{self._name}"}
        try:
            with connection.channel() as channel:
                channel.exchange_declare(
                    OWNER, "fanout", durable=False, auto_delete=True, arguments=name
                )
        except PreconditionFailed:
            return False
        return True


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)

"""Redis or Valkey as the broker: kombu's transport, which no item of a list can stop.

kombu parses each item it has popped before anybody is asked: one that is no JSON, or no envelope,
ends the worker, and is lost. Here such an item is put whole into an envelope of our own, so that
it travels on as every message does, unacknowledged until `consuming.py` has it in quarantine.

kombu publishes each message by a command and a round trip. Here many to a queue are one.
"""

import base64
import json
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from queue import Empty
from typing import Any
from uuid import uuid4

from celery.app.amqp import AMQP
from kombu import Connection
from kombu.connection import ConnectionPool, PooledConnection
from kombu.transport import redis as stock
from kombu.transport import virtual
from kombu.utils.json import loads
from redis.exceptions import ConnectionError  # noqa: A004

log = logging.getLogger(__name__)

MALFORMED = "x-malformed"
"""The header of an envelope that we made; its value is a key of `REASONS`."""

REASONS = {
    "json": "not JSON",
    "envelope": "JSON, but no envelope of Celery's",
    "body": "an envelope whose body cannot be decoded",
}

#: Far more than a delivery tag, an exchange or a queue is ever named by.
_LONGEST_NAME = 255

#: Messages taken one by one, at the most, after it was asked in vain for several: where they come
#: one by one, each answer that there are no more would wake the hub, which costs what a message
#: does.
_LONGEST_REST = 8


class QoS(stock.QoS):  # type: ignore[misc]
    """What was taken, and is not done with yet: copied at the server, unless it is expendable.

    A copy costs four commands a message. One that may get lost, since an alarm makes up for it, is
    kept in mind only.
    """

    def can_consume(self) -> bool:
        """Whether there is room for a message, as the channel's consumer sees it."""
        found: bool = self.channel.room() > 0 and super().can_consume()
        return found

    def append(self, message: Any, delivery_tag: str) -> None:
        """Keep a message in mind until it is acknowledged."""
        if self.channel.expendable(message):
            virtual.QoS.append(self, message, delivery_tag)
        else:
            super().append(message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """Be done with a message."""
        if self._kept_in_mind(delivery_tag):
            virtual.QoS.ack(self, delivery_tag)
        else:
            super().ack(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Put a message back, or be done with it."""
        if self._kept_in_mind(delivery_tag):
            virtual.QoS.reject(self, delivery_tag, requeue)
        else:
            super().reject(delivery_tag, requeue)

    def restore_unacked(self, client: Any = None) -> None:
        """Put back all that nobody is done with; where that fails, say so, and how much it is."""
        self._flush()
        left = len(self._delivered)
        try:
            for tag in [tag for tag in self._delivered if self._kept_in_mind(tag)]:
                self.channel._restore(self._delivered[tag])
                del self._delivered[tag]
            super().restore_unacked(client)
        except Exception as error:  # noqa: BLE001 -- of requests there are copies, of others alarms
            log.warning("%d messages could not be put back (%s)", left, type(error).__name__)
            self._delivered.clear()

    def _kept_in_mind(self, delivery_tag: str) -> bool:
        message = self._delivered.get(delivery_tag)
        return message is not None and self.channel.expendable(message)


class Channel(stock.Channel):  # type: ignore[misc]
    """A channel that takes as many messages at a time as there is room for.

    Whatever it pops becomes a message, also what is none.
    """

    QoS = QoS
    from_transport_options = (
        *(one for one in stock.Channel.from_transport_options if one != "ack_emulation"),
        "expendable_queues",
    )

    expendable_queues: Sequence[str] = ()
    """Queues whose messages may get lost: no copies are kept of these at the server."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._swept: tuple[str, ...] = ()
        self._sweeping = False
        self._rest = self._in_vain = 0
        self._active: list[str] = []
        self._publisher: Any = None
        self.room: Callable[[], int] = lambda: 1
        """How many messages may be taken now. Set by whoever consumes, and knows."""
        super().__init__(*args, **kwargs)

    def expendable(self, message: Any) -> bool:
        """Whether a message may get lost. Then it may also be acknowledged from any thread."""
        return message.delivery_info.get("routing_key") in self.expendable_queues

    def put_many(self, queue: str, envelopes: Iterable[str]) -> None:
        """Put ready-made envelopes into a queue, all or none of them. From any thread.

        They go into the list that kombu puts messages into which are published to the default
        exchange, without priority: that needs no look at bindings.
        """
        self._create_client().lpush(self._q_for_pri(queue, 0), *envelopes)

    def _connparams(self, asynchronous: bool = False) -> Any:
        # A channel that is closed after its connection: kombu's AttributeError would end the
        # worker, where an error of a connection is what it expects and lives through.
        if self.connection is None or self.connection.client is None:
            raise ConnectionError("the connection to the broker is closed")
        return super()._connparams(asynchronous)

    def _create_client(self, asynchronous: bool = False) -> Any:
        if asynchronous:
            return super()._create_client(asynchronous)
        # kombu makes one for each operation, which costs more than the operation.
        if self._publisher is None or self._publisher.connection_pool is not self.pool:
            self._publisher = super()._create_client()
        return self._publisher

    def _restore(self, message: Any, leftmost: bool = False) -> None:
        if self.expendable(message):
            virtual.Channel._restore(self, message)
        else:
            super()._restore(message, leftmost)

    def basic_cancel(self, consumer_tag: str) -> Any:
        """Stop consuming; with the last queue, put back what was popped meanwhile.

        kombu does so when the channel is closed, for which a stopping worker waits for its calls.
        """
        canceled = super().basic_cancel(consumer_tag)
        if not self._consumers and self._in_poll and not self.connection.cycle._in_protected_read:
            with suppress(Empty):
                self._brpop_read()
        return canceled

    @property
    def active_queues(self) -> list[str]:
        """What is consumed from, fanouts apart. kombu works it out anew at each turn of the hub."""
        return self._active

    def _update_queue_cycle(self) -> None:
        self._active = super().active_queues
        super()._update_queue_cycle()
        self._swept = tuple(one for one in self._active if one in self.expendable_queues)

    def _brpop_start(self, timeout: float | None = None) -> None:
        """Ask for what there is, for all the room but one place, and wait for one message more.

        Only expendable messages are taken several at a time: of the others, no more than one can
        be between the server and its copy.
        """
        queues = self._queue_cycle.consume(len(self.active_queues))
        if not queues:
            return
        steps = (self._q_for_pri(queue, step) for step in self.priority_steps for queue in queues)
        commands = [("BRPOP", *steps, timeout or self.brpop_timeout or 0)]
        swept = [queue for queue in queues if queue in self._swept]
        more = self.room() - 1
        self._sweeping = bool(swept) and more > 0 and self._rest == 0
        self._rest = max(0, self._rest - 1)
        if self._sweeping:
            commands.insert(0, ("LMPOP", len(swept), *swept, "RIGHT", "COUNT", more))
        if self.global_keyprefix:
            commands = [self.client._prefix_args(list(command)) for command in commands]
        connection = self._in_poll = self.client.connection
        self._brpop_sent_at = time.monotonic()
        # In one piece: between two, redis-py may send a PING, and take an answer for its own.
        connection.send_packed_command(connection.pack_commands(commands))

    def _brpop_read(self, **options: Any) -> bool:
        connection = self.client.connection
        if self._sweeping:
            self._sweeping = False
            several = self._answer(connection, "LMPOP")
            self._in_vain = 0 if several else min(_LONGEST_REST, 2 * self._in_vain or 1)
            self._rest = self._in_vain
            if several:
                self._take(*several)
            stopping = self._closing or not self._consumers
            if not stopping and not connection.can_read(timeout=0):
                return True  # that to BRPOP is still to come
        try:
            one = self._answer(connection, "BRPOP", **options)
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()
        if not one:
            raise Empty
        key, item = one
        self._take(key, [item])
        return True

    def _answer(self, connection: Any, command: str, **options: Any) -> Any:
        try:
            return self.client.parse_response(connection, command, **options)
        except Exception as error:
            if "unknown command" in str(error):
                # A broker's server may be older than the ledger's: one message at a time, then.
                self._swept = ()
                return None
            # What was asked besides is not read any more.
            self._in_poll = None
            connection.disconnect()
            raise

    def _take(self, key: bytes, items: Sequence[bytes]) -> None:
        queue = key.decode().removeprefix(self.global_keyprefix).rsplit(self.sep, 1)[0]
        self._queue_cycle.rotate(queue)
        left = iter(items)
        try:
            for item in left:
                self.connection._deliver(envelope(item, queue), queue)
        except Exception:
            # The one that failed is kept in mind, and goes back when the channel is closed. Those
            # behind it nobody knows of.
            self._put_back(queue, list(left))
            raise

    def _put_back(self, queue: str, items: Sequence[bytes]) -> None:
        """Put items that were taken several at a time, as they are, to where they came from."""
        if not items:
            return
        try:
            self._create_client().rpush(queue, *reversed(items))
        except Exception as error:  # noqa: BLE001 -- their alarms make up for it
            log.warning("%d messages could not be put back (%s)", len(items), type(error).__name__)


class Transport(stock.Transport):  # type: ignore[misc]
    """kombu's Redis transport with that channel."""

    Channel = Channel

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Have the hub read what comes; kombu tells it so of each socket anew at each turn."""
        before = set(loop.on_tick)
        super().register_with_event_loop(connection, loop)
        loop.on_tick.intersection_update(before)

        def on_poll_start() -> None:
            self.cycle.on_poll_start()
            for fd in self.cycle.fds:
                if loop.readers.get(fd) != (self.on_readable, (fd,)):
                    loop.add_reader(fd, self.on_readable, fd)

        loop.on_tick.add(on_poll_start)


class _Connection(Connection):  # type: ignore[misc]
    """A connection that takes our transport where the URL's would be kombu's.

    (Celery's `broker_transport` would do, but its name would stand for `redis` in all URLs shown.)
    """

    def get_transport_cls(self) -> Any:
        return _ours(super().get_transport_cls())

    def Pool(self, limit: int | None = None, **kwargs: Any) -> Any:  # noqa: N802 -- kombu's name
        return _Pool(self, limit, **kwargs)


class _Pooled(PooledConnection):  # type: ignore[misc]
    """The same, in a pool: kombu has a class of its own for these."""

    def get_transport_cls(self) -> Any:
        return _ours(super().get_transport_cls())


class _Pool(ConnectionPool):  # type: ignore[misc]
    def new(self) -> Any:
        return _Pooled(self, **dict(self.connection._info(resolve=False)))


def _ours(transport: Any) -> Any:
    return Transport if transport is stock.Transport else transport


class Messaging(AMQP):  # type: ignore[misc]
    """Celery's messaging on such connections: given to the app as `amqp`."""

    Connection = _Connection


def envelope(item: bytes, queue: str) -> Any:
    """An item of a list as the envelope that kombu takes; one that is none is put into one."""
    try:
        text = item.decode()
        # kombu's own reader knows marked values, as which kombu puts back a body of plain text.
        found = loads(text) if "__type__" in text else json.loads(text)
    except Exception:  # noqa: BLE001 -- not Unicode, nested too deep, a number too long ...
        return _wrapped(item, queue, "json")
    kind = malformed(found)
    return found if kind is None else _wrapped(item, queue, kind)


def malformed(found: Any) -> str | None:
    """What is wrong with an envelope, as a key of `REASONS`; None where kombu can take it."""
    if not _is_envelope(found):
        return "envelope"
    match found["properties"].get("body_encoding"):
        case None | "utf-8":
            return None
        case "base64":
            try:
                base64.b64decode(found["body"])
            except ValueError:
                return "body"
            return None
        case _:
            return "body"


def _wrapped(item: bytes, queue: str, kind: str) -> dict[str, Any]:
    return {
        "body": base64.b64encode(item).decode(),
        "content-type": "application/octet-stream",
        "content-encoding": "binary",
        "headers": {MALFORMED: kind},
        "properties": {
            "body_encoding": "base64",
            "delivery_tag": str(uuid4()),
            "delivery_info": {"exchange": "", "routing_key": queue},
        },
    }


def _is_envelope(value: Any) -> bool:
    match value:
        case {
            "body": str() | bytes(),
            "headers": dict(),
            "content-type": str(),
            "content-encoding": str(),
            "properties": {
                "delivery_tag": str(tag),
                "delivery_info": {"exchange": str(exchange), "routing_key": str(key)},
            },
        }:
            # These become keys and members in Redis.
            return all(
                name.isascii() and len(name) <= _LONGEST_NAME for name in (tag, exchange, key)
            )
        case _:
            return False

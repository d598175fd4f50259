"""Redis or Valkey as the broker: kombu's transport, made safe against any content.

kombu parses everything that it reads, without a check: an item of a list, a broadcast, an
unacknowledged message. If it is no message, kombu ends the worker and loses it. Here all of it
passes one check (`envelopes.py`).

kombu publishes each message with a command and a round trip. Here many messages to a queue are one
command.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import count
from queue import Empty
from typing import Any
from uuid import uuid4

from celery.app.amqp import AMQP
from kombu import Connection
from kombu.connection import ConnectionPool, PooledConnection
from kombu.transport import redis as stock
from kombu.transport import virtual
from kombu.utils.json import dumps
from redis.exceptions import ConnectionError, ResponseError  # noqa: A004

from regworker import tls
from regworker.ledger.servers import Sentinels, looking
from worker.broker.envelopes import (
    LONGEST_WAKE_UP,
    MALFORMED,
    broadcast,
    envelope,
    junk,
    left_out,
    returned,
    wrapped,
)
from worker.broker.redis_replies import parser
from worker.broker.wakeups import BODY, read

log = logging.getLogger(__name__)

#: The queue on which clients wait for replies to commands: `<their id>.reply.celery.pidbox`.
_REPLIES = ".reply.celery.pidbox"

#: Milliseconds for which a reply is kept: its client waits for a second or so.
_REPLY_KEPT = 60_000

#: How many unacknowledged messages of other workers are restored at a time.
_RESTORED = 100

#: An exchange of this product has four. A table that somebody has filled is not read.
_MOST_BINDINGS = 1000

#: KEYS: unacked, its index, the list. ARGV: tag, item, LPUSH or RPUSH. The first worker to find the
#: message restores it; a second one finds none.
_PUT_BACK = """
local found = redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
if found == 1 then redis.call(ARGV[3], KEYS[3], ARGV[2]) end
return found
"""


class Message(virtual.Message):  # type: ignore[misc]
    """A message with its body as received: kombu would decompress it while creating the message."""

    def __init__(self, payload: Any, channel: Any = None, **kwargs: Any) -> None:
        headers = payload.get("headers")
        compression = headers.pop("compression", None) if headers else None
        super().__init__(payload, channel, **kwargs)
        if compression:
            self.headers = payload["headers"] = {**headers, "compression": compression}


class Wakeup(Message):
    """A wake-up in our own form: what its parts say needs neither parsing nor checks."""

    def __init__(self, payload: Any, channel: Any = None, **kwargs: Any) -> None:
        """`payload`: queue, delivery tag, task, member, origin."""
        queue, self.delivery_tag, task, member, origin = payload
        self.channel, self.errors, self.accept, self._state = channel, (), None, "RECEIVED"
        self.content_type, self.content_encoding = "application/json", "utf-8"
        self.body = (BODY % member).encode()
        self._decoded_cache: Any = ([member], {}, None)
        self.delivery_info = {"exchange": "", "routing_key": queue}
        self.headers = {
            "lang": "py", "task": task, "id": member, "root_id": member, "origin": origin,
        }  # fmt: skip
        self.properties = {
            "body_encoding": "base64",
            "correlation_id": member,
            "delivery_info": self.delivery_info,
            "delivery_mode": 2,
            "delivery_tag": self.delivery_tag,
            "priority": 0,
        }


class QoS(stock.QoS):  # type: ignore[misc]
    """Unacknowledged messages: the server keeps a copy of each, unless it is expendable.

    A copy costs four commands. Expendable messages may get lost, since an alarm replaces them; they
    are only kept in this process's memory.
    """

    def can_consume(self) -> bool:
        """Whether there is room for a message, for the channel's consumer."""
        # Asked at each turn of the hub: while a read is under way, the answer changes nothing.
        found: bool = bool(self.channel._in_poll) or (
            self.channel.room() > 0 and super().can_consume()
        )
        return found

    def append(self, message: Any, delivery_tag: str) -> None:
        """Keep a message until it is acknowledged."""
        if self.channel.expendable(message):
            virtual.QoS.append(self, message, delivery_tag)
        else:
            super().append(message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """Forget an acknowledged message."""
        if self._kept_in_mind(delivery_tag):
            virtual.QoS.ack(self, delivery_tag)
        else:
            super().ack(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Restore a message, or forget it."""
        if self._kept_in_mind(delivery_tag):
            virtual.QoS.reject(self, delivery_tag, requeue)
        else:
            super().reject(delivery_tag, requeue)

    def restore_unacked(self, client: Any = None) -> None:
        """Restore all unacknowledged messages; if that fails, log it with their number."""
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

    def restore_visible(self, start: int = 0, num: int = 10, interval: int = 10) -> None:
        """Restore messages that others have not acknowledged for too long; some at a time.

        kombu's lock is not used, since anybody who sets its key could hold it for ever:
        `restore_by_tag` makes sure that only one worker restores each message.
        """
        self._vrestore_count += 1
        if (self._vrestore_count - 1) % (interval or 1):
            return
        with self.channel.conn_or_acquire() as client:
            before = time.time() - self.visibility_timeout
            try:
                tags = client.zrange(
                    self.unacked_index_key, "-inf", before, byscore=True, offset=0, num=_RESTORED
                )
                for tag in tags:
                    self.restore_by_tag(tag, client)
            except ResponseError as error:
                if "WRONGTYPE" not in str(error):
                    raise
                self.channel.set_wrong_keys_aside()

    def restore_by_tag(self, tag: Any, client: Any = None, leftmost: bool = False) -> None:
        """Restore a message to its queue; what is no message goes where it is set aside."""
        with self.channel.conn_or_acquire(client) as client:
            value = client.hget(self.unacked_key, tag)
            queue, item = self.channel.put_back_as(value) if value else ("", b"")
            names = (self.unacked_key, self.unacked_index_key, queue)
            keys = [self.channel.global_keyprefix + name for name in names]
            client.eval(_PUT_BACK, len(keys), *keys, tag, item, "LPUSH" if leftmost else "RPUSH")

    def _kept_in_mind(self, delivery_tag: str) -> bool:
        message = self._delivered.get(delivery_tag)
        return message is not None and self.channel.expendable(message)


class Channel(stock.Channel):  # type: ignore[misc]
    """A channel on which everything that is popped becomes a message, even what is none.

    Of its consumed queues, those in `apart` are read elsewhere (`wake_reader.py`).
    """

    Message = Message
    QoS = QoS
    from_transport_options = (
        *(one for one in stock.Channel.from_transport_options if one != "ack_emulation"),
        *("expendable_queues", "sentinels", "master_name", "sentinel_kwargs"),
    )

    sentinels: Sequence[tuple[str, int]] = ()
    """The Sentinels that know the broker, if there are any."""

    master_name = ""
    """The Sentinels' name for it."""

    sentinel_kwargs: Mapping[str, Any] = {}
    """Options of connections to the Sentinels."""

    expendable_queues: Sequence[str] = ()
    """Queues of expendable messages: the server keeps no copies of these."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._active: list[str] = []
        self._publisher: Any = None
        self._tag, self._tags = str(uuid4()), count()
        self.answered = time.monotonic()
        """When the server last answered whether there are messages."""
        self.room: Callable[[], int] = lambda: 1
        """How many messages may be taken now; set by the consumer."""
        self.apart: tuple[str, ...] = ()
        """Queues that another reader reads while they are consumed, and hands on with `take`."""
        self.active_apart: tuple[str, ...] = ()
        """Those of them that are consumed now."""
        self.on_cancel: Callable[[], None] = lambda: None
        """Called before the last queue is cancelled: then nothing more may be handed on."""
        self.on_wake_up: Callable[[Wakeup], Any] | None = None
        """If it is set, it gets the wake-ups in our own form that were read elsewhere."""
        super().__init__(*args, **kwargs)

    def expendable(self, message: Any) -> bool:
        """Whether a message is expendable. Then any thread may acknowledge it."""
        return message.delivery_info.get("routing_key") in self.expendable_queues

    def put_many(self, queue: str, envelopes: Iterable[str]) -> None:
        """Put ready-made envelopes into a queue, all or none of them. Thread-safe.

        They go into the list that kombu uses for messages to the default exchange without priority,
        so that no bindings need to be read.
        """
        self._create_client().lpush(self._q_for_pri(queue, 0), *envelopes)

    def probe(self, queue: str) -> None:
        """Put a value into a queue and delete it at once; raises if the server refuses."""
        name = self._q_for_pri(queue, 0)
        with self._create_client().pipeline() as pipe:
            pipe.lpush(name, "").delete(name).execute()

    def set_wrong_keys_aside(
        self, queues: Iterable[str] = (), exchanges: Iterable[str] = ()
    ) -> None:
        """Rename keys of a wrong type that stand in the place of kombu's own keys.

        Every command on such a key fails, so that no message could be taken.
        """
        lists = [self._q_for_pri(one, step) for one in queues for step in self.priority_steps]
        tables = (self.keyprefix_queue, self.keyprefix_binding_permanent)
        kinds = {
            **dict.fromkeys(lists, "list"),
            **{table % one: "set" for table in tables for one in exchanges},
            self.keyprefix_binding_deadlines: "zset",
            self.unacked_key: "hash",
            self.unacked_index_key: "zset",
        }
        client = self._create_client()
        for name, kind in kinds.items():
            key = self.global_keyprefix + name
            found = client.type(key).decode()
            if found not in {kind, "none"}:
                client.rename(key, f"{key}.set-aside")
                log.error("the key %s was a %s where a %s belongs: renamed", name, found, kind)

    def get_table(self, exchange: str) -> list[tuple[str, ...]]:
        """The valid bindings of an exchange."""
        key = self.keyprefix_queue % exchange
        client = self._create_client()
        if client.scard(self.global_keyprefix + key) > _MOST_BINDINGS:
            return []
        found = (one.decode(errors="replace").split(self.sep) for one in client.smembers(key))
        return [tuple(one) for one in found if len(one) == 3]

    def put_back_as(self, value: bytes) -> tuple[str, bytes]:
        """The list for an unacknowledged message, and the item for it.

        What is no message goes unchanged to one of this worker's queues, where it is set aside.
        """
        found = returned(value)
        if found is None:
            return (*self._active, *self.expendable_queues)[0], value
        message, exchange, key = found
        message["headers"]["redelivered"] = True
        try:
            [queue] = self._lookup(exchange, key)
        except Exception:  # noqa: BLE001 -- bindings are what anybody has put there
            queue = key
        priority = self._get_message_priority(message, reverse=False)
        return self._q_for_pri(queue, priority), dumps(message).encode()

    def _connparams(self, asynchronous: bool = False) -> Any:
        # If a channel is closed after its connection, kombu's AttributeError would end the worker;
        # it survives a connection's errors.
        if self.connection is None or self.connection.client is None:
            raise ConnectionError("the connection to the broker is closed")
        found = super()._connparams(asynchronous)
        if (bounded := parser()) is not None:
            found["parser_class"] = bounded
        found["connection_class"] = looking(found["connection_class"])
        if self.sentinels:
            hosts = tuple((host, port) for host, port in self.sentinels)
            found["sentinels"] = Sentinels(hosts, self.master_name, self.sentinel_kwargs)
        return found

    def _create_client(self, asynchronous: bool = False) -> Any:
        if asynchronous:
            return super()._create_client(asynchronous)
        # kombu would make one for each operation, which costs more than the operation itself.
        if self._publisher is None or self._publisher.connection_pool is not self.pool:
            self._publisher = super()._create_client()
        return self._publisher

    def _restore(self, message: Any, leftmost: bool = False) -> None:
        if not self.expendable(message):
            self.qos.restore_by_tag(message.delivery_tag, leftmost=leftmost)
        elif MALFORMED in message.headers and message.body:
            # Without our envelope, which would be put into another one.
            self._put_back(message.delivery_info["routing_key"], message.body)
        else:
            virtual.Channel._restore(self, message)

    def _put(self, queue: str, message: Any, **kwargs: Any) -> None:
        super()._put(queue, message, **kwargs)
        if queue.endswith(_REPLIES):
            self._create_client().pexpire(queue, _REPLY_KEPT)

    def _receive(self) -> Any:
        """Receive a broadcast; if that fails, subscribe again.

        A server closes a subscriber's connection if it cannot send a broadcast of some megabytes:
        that is no reason to restore the messages in work.
        """
        c = self.subclient
        try:
            self._receive_one(c)
            while c.connection.can_read(timeout=0):
                self._receive_one(c)
        except self.connection_errors as error:
            log.debug("the connection for broadcasts is made anew (%s)", type(error).__name__)
            self._in_listen = None
            c.connection.disconnect()
        return True

    def _receive_one(self, c: Any) -> Any:
        """Receive one broadcast; drop what is none. kombu's own code prints it, or ends the
        worker."""
        # With `parse_response`, redis-py would reconnect by itself, and then wait for ever.
        response = c.connection.read_response(push_request=True)
        if c.is_health_check_response(response):
            c.health_check_response_counter -= 1
            return None
        if not isinstance(response, list | tuple):
            return None
        said = self._handle_message(c, response)
        if said["type"] not in {b"message", b"pmessage"}:
            return None
        name = said["channel"].decode(errors="replace").removeprefix(self.keyprefix_fanout)
        queue = self._fanout_to_queue.get(name.partition("/")[0])
        message = broadcast(said["data"])
        if queue is None or message is None:
            junk.warning("what was broadcast is no message, and is dropped")
            return True
        self.connection._deliver(message, queue)
        return True

    def basic_cancel(self, consumer_tag: str) -> Any:
        """Stop consuming; with the last queue, restore what was popped meanwhile.

        kombu does so only when it closes the channel, and a stopping worker closes it after its
        calls.
        """
        if self._consumers == {consumer_tag}:
            self.on_cancel()
        canceled = super().basic_cancel(consumer_tag)
        if not self._consumers and self._in_poll and not self.connection.cycle._in_protected_read:
            with suppress(Empty):
                self._brpop_read()
        return canceled

    @property
    def active_queues(self) -> list[str]:
        """The queues that kombu reads: those consumed, without fanouts, and not apart. kombu
        computes this again at each turn of the hub."""
        return self._active

    def _update_queue_cycle(self) -> None:
        consumed = super().active_queues
        self._active = [one for one in consumed if one not in self.apart]
        self.active_apart = tuple(one for one in self.apart if one in consumed)
        super()._update_queue_cycle()

    def lists(self, queues: Sequence[str]) -> list[str]:
        """The lists of queues, as the server knows them."""
        return [
            self.global_keyprefix + self._q_for_pri(queue, step)
            for step in self.priority_steps
            for queue in queues
        ]

    def as_it_came(self, key: bytes, item: bytes) -> bytes:
        """An item that was not taken, for its list: what was left out of it is noted there."""
        if (size := left_out(item)) is None:
            return item
        note: str = dumps(wrapped(b"", self.queue_of(key), "large", size))
        return note.encode()

    def queue_of(self, key: bytes) -> str:
        """The queue of a list."""
        name = key.decode().removeprefix(self.global_keyprefix)
        return name.rsplit(self.sep, 1)[0]

    def take(self, key: bytes, item: bytes) -> str:
        """Hand an item of a list to its queue's consumer; return the queue's name.

        If the consumer raises, the message is restored when the channel is closed, unless its
        queue is read elsewhere: then an alarm replaces it.
        """
        queue = self.queue_of(key)
        # The worker's own tag: of two messages with one tag, one would get lost.
        tag = f"{self._tag}.{next(self._tags)}"
        take = self.on_wake_up if queue in self.active_apart else None
        try:
            if take is not None and (parts := read(item, queue)) is not None:
                wakeup = Wakeup((queue, tag, *parts), self)
                self.qos.append(wakeup, tag)
                take(wakeup)
                return queue
            if queue in self.expendable_queues and len(item) > LONGEST_WAKE_UP:
                # Not parsed: in the I/O loop, that would delay everything else.
                message = wrapped(item, queue, "wake-up")
            else:
                message = envelope(item, queue)
            message["properties"]["delivery_tag"] = tag
            self.connection._deliver(message, queue)
        except Exception:
            if queue in self.apart:
                self.qos._delivered.pop(tag, None)
            elif tag not in self.qos._delivered:
                self._put_back(key.decode().removeprefix(self.global_keyprefix), item)
            raise
        return queue

    def _brpop_read(self, **options: Any) -> bool:
        connection = self.client.connection
        try:
            one = self.client.parse_response(connection, "BRPOP", **options)
        except Exception:
            connection.disconnect()
            raise
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()
        self.answered = time.monotonic()
        if not one:
            raise Empty
        key, item = one
        self._queue_cycle.rotate(self.take(key, item))
        return True

    def _put_back(self, key: str, item: bytes) -> None:
        """Return an unchanged item to its list."""
        try:
            self._create_client().rpush(key, item)
        except Exception as error:  # noqa: BLE001
            log.warning("%d messages could not be put back (%s)", 1, type(error).__name__)


class Transport(stock.Transport):  # type: ignore[misc]
    """kombu's Redis transport with that channel."""

    Channel = Channel

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Let the hub read the sockets; kombu would register each socket again at each turn."""
        before = set(loop.on_tick)
        super().register_with_event_loop(connection, loop)
        loop.on_tick.intersection_update(before)

        def on_poll_start() -> None:
            self.cycle.on_poll_start()
            for fd in self.cycle.fds:
                if loop.readers.get(fd) != (self.on_readable, (fd,)):
                    loop.add_reader(fd, self.on_readable, fd)

        loop.on_tick.add(on_poll_start)


class _Verified:
    """Verifies the server that it connects to, also after each change to another URL."""

    ssl: Any

    def _init_params(self, **params: Any) -> None:
        super()._init_params(**params)  # type: ignore[misc]
        self.ssl = tls.of_broker(str(params["transport"]), params["hostname"], self.ssl)


class _Connection(_Verified, Connection):  # type: ignore[misc]
    """A connection that uses our transport where the URL's would be kombu's.

    (Celery's `broker_transport` would work, but its name would replace `redis` in all printed
    URLs.)
    """

    def get_transport_cls(self) -> Any:
        return _ours(super().get_transport_cls())

    def Pool(self, limit: int | None = None, **kwargs: Any) -> Any:  # noqa: N802 -- kombu's name
        return _Pool(self, limit, **kwargs)


class _Pooled(_Verified, PooledConnection):  # type: ignore[misc]
    """The same in a pool, for which kombu has a class of its own."""

    def get_transport_cls(self) -> Any:
        return _ours(super().get_transport_cls())


class _Pool(ConnectionPool):  # type: ignore[misc]
    def new(self) -> Any:
        return _Pooled(self, **dict(self.connection._info(resolve=False)))


def _ours(transport: Any) -> Any:
    # kombu's own transport for Sentinels reads replies without any check.
    if transport in {stock.Transport, stock.SentinelTransport}:
        return Transport
    if transport.driver_type == "amqp":
        from kombu.transport import pyamqp

        from worker.broker import amqp_transport

        if transport is pyamqp.Transport:
            return amqp_transport.Transport
        if transport is pyamqp.SSLTransport:
            return amqp_transport.SSLTransport
    return transport


class Messaging(AMQP):  # type: ignore[misc]
    """Celery's messaging with such connections; passed to the app as `amqp`."""

    Connection = _Connection

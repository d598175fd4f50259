"""Queues: an event as a plain message on the Celery broker, for consumers that know no Celery.

RabbitMQ   a persistent message on a durable quorum queue, confirmed; `message_id` is the event's.
Redis      an item of a list, put in at the left: `BRPOP` takes the oldest, and
           `BLMOVE <queue> <mine> RIGHT LEFT` loses none that its consumer dies with.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from amqp.exceptions import ChannelError, MessageNacked, NotFound
from kombu import Connection
from redis.backoff import NoBackoff
from redis.retry import Retry

from worker.publishers.base import Arrived, Delivered, Later

#: The time limit of one try, in seconds, as for a webhook.
BUDGET = 15.0

#: Seconds for RabbitMQ to confirm: a quorum queue without its majority never does.
CONFIRM_TIMEOUT = 5.0

CONTENT_TYPE = "application/cloudevents+json"

_PERSISTENT = 2
_NO_ROUTE = 312


class QueuePublisher:
    """Publishes events to one queue. kombu is synchronous: a thread publishes one after another.

    `connect`: makes a connection to the broker, with publisher confirms on RabbitMQ.
    """

    def __init__(self, queue: str, connect: Callable[[], Connection]) -> None:
        self._queue = queue
        self._connect = connect
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="queue")
        self._broker: _Broker | None = None
        self._gone: tuple[type[BaseException], ...] = ()

    async def publish(
        self, event_id: str, event: bytes, *, fresh: bool = False, traceparent: str = ""
    ) -> Delivered:
        """Publish the event once; it is on the queue when the broker has confirmed it."""
        put = asyncio.get_running_loop().run_in_executor(self._thread, self._put, event_id, event)
        try:
            async with asyncio.timeout(BUDGET):
                await put
        except TimeoutError:
            return Later("the broker did not answer in time")
        except MessageNacked:
            return Later("the broker refused it")
        except ChannelError as error:
            # By its number: the error of a returned message has no class of its own.
            unroutable = error.reply_code == _NO_ROUTE
            return Later("no such queue" if unroutable else f"refused ({type(error).__name__})")
        except Exception as error:  # noqa: BLE001 -- each transport raises its own
            return Later(f"the broker did not accept it ({type(error).__name__})")
        return Arrived("accepted by the broker")

    async def aclose(self) -> None:
        """Close the connection, unless the broker hangs."""
        with suppress(Exception):
            async with asyncio.timeout(BUDGET):
                await asyncio.get_running_loop().run_in_executor(self._thread, self._let_go)
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _put(self, event_id: str, event: bytes) -> None:
        used = self._broker is not None
        try:
            self._put_once(event_id, event)
        except Exception as error:
            # A connection that was idle for a while may have died silently.
            if not used or not isinstance(error, self._gone):
                raise
            self._put_once(event_id, event)

    def _put_once(self, event_id: str, event: bytes) -> None:
        if self._broker is None:
            connection = self._connect()
            self._gone = connection.connection_errors
            self._broker = _Broker(connection, self._queue)
        try:
            self._broker.put(event_id, event)
        except BaseException:
            # After any error: a late confirmation would be taken for the next message's.
            self._let_go()
            raise

    def _let_go(self) -> None:
        broker, self._broker = self._broker, None
        if broker is not None:
            broker.close()


class _Broker:
    """A connection to the broker with the queue."""

    def __init__(self, connection: Connection, queue: str) -> None:
        self._connection = connection
        self._queue = queue
        self._channel: Any = None

    def put(self, event_id: str, event: bytes) -> None:
        """Publish an event. Raises the transport's error if it did not reach the queue."""
        if self._channel is None:
            self._channel = self._open()
        if self._connection.transport.driver_type == "redis":
            self._channel.client.lpush(self._queue, event)
            return
        message = self._channel.prepare_message(
            event,
            content_type=CONTENT_TYPE,
            content_encoding="utf-8",
            properties={"delivery_mode": _PERSISTENT, "message_id": event_id},
        )
        self._channel.basic_publish(
            message,
            exchange="",
            routing_key=self._queue,
            # Without it, a message to a deleted queue is confirmed and lost.
            mandatory=True,
            confirm_timeout=CONFIRM_TIMEOUT,
        )

    def close(self) -> None:
        """Close the connection, without a message to a broker that may not read it."""
        with suppress(Exception):
            self._connection.collect()

    def _open(self) -> Any:
        tries = max(1, len(self._connection.alt))  # each node of a cluster once
        self._connection.ensure_connection(max_retries=tries, interval_start=0)
        channel = self._connection.channel()
        if self._connection.transport.driver_type == "redis":
            # redis-py would by itself repeat a push after a lost answer.
            channel.client.set_retry(Retry(NoBackoff(), 0))
            return channel
        try:
            # An existing queue may have any type.
            channel.queue_declare(self._queue, passive=True)
        except NotFound:
            channel = self._connection.channel()
            channel.queue_declare(
                self._queue,
                durable=True,
                auto_delete=False,
                arguments={"x-queue-type": "quorum"},
            )
        return channel

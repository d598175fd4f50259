"""Publishes what is only for display: Celery's events, and answers to Flower.

RabbitMQ stops reading from publishers while it is short of memory or disk, and a hanging broker
does not answer. The thread that consumes messages must not wait for either. So it only puts such a
message into a queue in memory; another thread publishes it, on its own connection and without a
confirmation. A message that cannot be published is dropped.
"""

import socket
import threading
from contextlib import suppress
from functools import cache
from queue import Empty, Full, Queue
from typing import Any

from celery import Celery
from kombu import Producer

#: The most messages that wait: each batch of events is one.
MOST = 1000

#: Seconds after a failure until the next message is published: a broker that refuses is not tried
#: without a pause.
PAUSE = 2.0

#: Seconds without a message after which the connection is checked.
QUIET = 2.0

#: Seconds for which a stopping worker waits until its last events are published.
GRACE = 1.0


class BackgroundPublisher:
    """Publishes in a thread of its own, or drops. Thread-safe."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._waiting: Queue[tuple[Any, dict[str, Any]] | None] = Queue(MOST)
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._closing = threading.Event()
        self._connection: Any = None
        self._producer: Any = None
        self._blocked = False
        """Whether RabbitMQ has said that it does not read from publishers."""

    def publish(self, body: Any, **how: Any) -> None:
        """Publish soon; `how`: as for `kombu.Producer.publish`. Never waits, never raises."""
        with self._starting:
            if self._thread is None:
                self._closing.clear()
                self._thread = threading.Thread(target=self._run, name="events", daemon=True)
                self._thread.start()
        with suppress(Full):
            self._waiting.put_nowait((body, how))

    def close(self) -> None:
        """Publish the waiting messages, for a moment at most."""
        with self._starting:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._closing.set()
            with suppress(Full):
                self._waiting.put_nowait(None)
            thread.join(GRACE)

    def _run(self) -> None:
        while not (self._closing.is_set() and self._waiting.empty()):
            try:
                message = self._waiting.get(timeout=QUIET)
            except Empty:
                message = None
            # Try twice: the connection may have died since the last message.
            if not (self._published(message) or self._published(message)):
                self._closing.wait(PAUSE)
        self._disconnect(orderly=True)

    def _published(self, message: tuple[Any, dict[str, Any]] | None) -> bool:
        try:
            if message is None and self._connection is None:
                return True
            connection = self._connected()
            if connection.transport.driver_type == "amqp":
                # Read what the broker has sent: heartbeats, and whether it is short of memory.
                with suppress(socket.timeout):
                    connection.drain_events(timeout=0)
                connection.heartbeat_check()
            if message is not None and not self._blocked:
                body, how = message
                self._producer.publish(body, **how)
        except Exception:  # noqa: BLE001 -- whatever a transport raises, this is only for show
            self._disconnect()
            return False
        return True

    def _connected(self) -> Any:
        if self._connection is None:
            connection = self._app.connection_for_write(heartbeat=self._app.conf.broker_heartbeat)
            if connection.transport.driver_type == "amqp":
                connection.transport_options = {
                    **connection.transport_options,
                    "confirm_publish": False,
                    "on_blocked": lambda _reason: self._block(True),
                    "on_unblocked": lambda: self._block(False),
                }
            self._connection, self._blocked = connection, False
            self._producer = Producer(connection.default_channel, auto_declare=False)
        return self._connection

    def _block(self, blocked: bool) -> None:
        self._blocked = blocked

    def _disconnect(self, orderly: bool = False) -> None:
        connection, self._connection, self._producer = self._connection, None, None
        if connection is not None:
            with suppress(Exception):
                if orderly or connection.transport.driver_type != "amqp":
                    connection.release()
                else:  # RabbitMQ may not read a close
                    connection.collect()


class NotConnected:
    """Replaces the connection, which Celery's dispatcher of events does not need here."""

    supports_heartbeats = False

    def __bool__(self) -> bool:
        return False


@cache
def background(app: Celery) -> BackgroundPublisher:
    """The publisher of an app in this process."""
    return BackgroundPublisher(app)

"""Brokers for tests: put messages on queues, read the quarantine, and break connections."""

import base64
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import redis
from kombu import Connection

from regworker.ledger.admin import quarantined
from regworker.ledger.records import Quarantined
from regworker.ledger.transitions import ALARMS
from regworker.producer import Producer
from tests.integration.installation import PATIENCE, Installation, installation
from tests.integration.jobs import skypostal
from tests.rabbitmq import amqp_url, publishing
from worker.broker.wakeups import ATTEMPT, QUEUES
from worker.cli.local import stack

LIVE = QUEUES["live"]
BROKERS = ["redis", "rabbitmq"]


@dataclass
class Message:
    """A message as a client may send it: valid, except for what a test changes."""

    body: bytes = b'[["nobody"], {}, null]'
    headers: dict[str, Any] = field(default_factory=lambda: {"task": ATTEMPT, "id": "nobody"})
    content_type: str = "application/json"
    content_encoding: str = "utf-8"

    def envelope(self) -> dict[str, Any]:
        """The message in kombu's format for a Redis list."""
        return {
            "body": base64.b64encode(self.body).decode(),
            "headers": self.headers,
            "content-type": self.content_type,
            "content-encoding": self.content_encoding,
            "properties": {
                "body_encoding": "base64",
                "delivery_tag": str(uuid4()),
                "delivery_info": {"exchange": "", "routing_key": LIVE},
            },
        }


def body(value: Any) -> bytes:
    """The body of a message."""
    return json.dumps(value).encode()


def headers(**changed: Any) -> dict[str, Any]:
    """The headers of a valid message, with changes; None removes a header."""
    given = {"task": ATTEMPT, "id": "nobody", **changed}
    return {name: value for name, value in given.items() if value is not None}


@dataclass
class Broken:
    """An installation, with access to its broker."""

    here: Installation
    broker: str
    url: str

    @property
    def redis(self) -> Any:
        """The broker's client, if the broker is Redis."""
        return self.here.ledger.redis

    def put(self, message: Message, queue: str = LIVE) -> None:
        """Put a message on a queue directly, without the checks of a client library."""
        if self.broker == "redis":
            # With the time that a busy machine needs for a very large one.
            url = self.here.environment["REGWORKER_REDIS_URL"]
            with redis.Redis.from_url(url, socket_timeout=PATIENCE) as client:
                client.lpush(queue, json.dumps(message.envelope()))
            return
        with publishing(self.url) as connection, connection.channel() as channel:
            channel.basic_publish(
                channel.prepare_message(
                    message.body,
                    content_type=message.content_type,
                    content_encoding=message.content_encoding,
                    headers=message.headers,
                ),
                exchange="",
                routing_key=queue,
            )

    def drop_all(self) -> None:
        """Delete every wake-up that is queued."""
        for queue in QUEUES.values():
            if self.broker == "redis":
                self.redis.delete(queue)
            else:
                with Connection(self.url) as connection:
                    connection.default_channel.queue_purge(queue)

    def quarantine(self) -> tuple[Quarantined, ...]:
        """The messages in quarantine."""
        return self.here.ledger(quarantined(1000))[2]

    def set_aside(self, put: Callable[[], None]) -> Quarantined:
        """Put a message, wait until it is in quarantine, and return its entry there."""
        before = {one.id: one.times for one in self.quarantine()}

        def came() -> bool:
            return any(before.get(one.id) != one.times for one in self.quarantine())

        put()
        stack.until(came, "the message in quarantine", PATIENCE)
        [entry] = [one for one in self.quarantine() if before.get(one.id) != one.times]
        return entry

    def goes_on(self) -> None:
        """Assert that the same worker process still runs and registers a new job."""
        event = self.here.run(skypostal(lane="live"))
        assert event["type"] == "registration.registered"
        assert self.here.workers[0].poll() is None


@contextmanager
def broken(folder: Path, broker: str, **environment: Any) -> Iterator[Broken]:
    """An installation on a broker whose queues are empty."""
    with ExitStack() as running:
        if broker == "rabbitmq":
            environment.setdefault("broker_url", amqp_url())
            _purge()
        else:
            environment.setdefault("broker_url", "")
        here = running.enter_context(installation(folder, **environment))
        here.wait_for_line("ready.")
        yield Broken(here, broker, environment.get("broker_url", ""))
    if broker == "rabbitmq":
        _purge()


def _purge() -> None:
    for queue in QUEUES.values():
        with Connection(amqp_url()) as connection, suppress(connection.channel_errors):
            connection.default_channel.queue_purge(queue)


def enqueue_unheard(here: Installation, **job: Any) -> str:
    """Accept a job whose wake-up is lost and whose alarm is far in the future; return its id."""
    away = here.producer.settings.model_copy(update={"broker_url": "redis://127.0.0.1:1/0"})
    with Producer(away) as producer:
        job_id = producer.enqueue(skypostal(**job)).job_id
    here.ledger.redis.zadd(ALARMS, {job_id: 9e12})
    return job_id


def ring(here: Installation, job_id: str) -> None:
    """Make a job's alarm due."""
    here.ledger.redis.zadd(ALARMS, {job_id: 1}, xx=True)


class Proxy:
    """A TCP proxy that can reset its connections."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def reset(self) -> None:
        """Reset every connection, in both directions."""
        taken, self._open = self._open, []
        for one in taken:
            with suppress(OSError):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                one.shutdown(socket.SHUT_RD)
            one.close()

    def close(self) -> None:
        """Accept no more connections."""
        self._listener.close()
        self.reset()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self._target)
            except OSError:
                near.close()
                continue
            self._open += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    def _pump(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
        for end in (one, other):
            with suppress(OSError):
                end.close()

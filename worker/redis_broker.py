"""Redis or Valkey as the broker: kombu's transport, which no item of a list can stop.

kombu parses each item it has popped before anybody is asked: one that is no JSON, or no envelope,
ends the worker, and is lost. Here such an item is put whole into an envelope of our own, so that
it travels on as every message does, unacknowledged until `consuming.py` has it in quarantine.
"""

import base64
import logging
from contextlib import suppress
from queue import Empty
from typing import Any
from uuid import uuid4

from celery.app.amqp import AMQP
from kombu import Connection
from kombu.transport import redis as stock
from kombu.transport import virtual
from kombu.utils.json import dumps, loads
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


class QoS(virtual.QoS):  # type: ignore[misc]
    """Without acknowledgement emulation: what was taken, and is not done with yet."""

    def restore_unacked(self) -> list[Any]:
        """Put it back; where that fails, say so, and how much it is.

        kombu would write the messages, registrations in them, into a file of its own in /tmp.
        """
        left = super().restore_unacked()
        if left:
            log.warning("%d messages could not be put back", len(left))
        return []


class Channel(stock.Channel):  # type: ignore[misc]
    """A channel whose every popped item becomes a message."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self.ack_emulation:
            self.QoS = QoS

    def _connparams(self, asynchronous: bool = False) -> Any:
        # A channel that is closed after its connection: kombu's AttributeError would end the
        # worker, where an error of a connection is what it expects and lives through.
        if self.connection is None or self.connection.client is None:
            raise ConnectionError("the connection to the broker is closed")
        return super()._connparams(asynchronous)

    def _create_client(self, asynchronous: bool = False) -> Any:
        # A response callback is redis-py's own hook into a reply, and sees it before kombu does.
        client = super()._create_client(asynchronous)
        client.set_response_callback("BRPOP", self._read)
        return client

    def basic_cancel(self, consumer_tag: str) -> Any:
        """Stop consuming; with the last queue, put back what was popped meanwhile.

        kombu does so when the channel is closed, for which a stopping worker waits for its calls.
        """
        canceled = super().basic_cancel(consumer_tag)
        if not self._consumers and self._in_poll and not self.connection.cycle._in_protected_read:
            with suppress(Empty):
                self._brpop_read()
        return canceled

    def _read(self, reply: Any, **_: Any) -> tuple[bytes, bytes | str] | None:
        if not reply:
            return None
        key, item = reply
        kind = malformed(item)
        return (key, item) if kind is None else (key, self._wrapped(key, item, kind))

    def _wrapped(self, key: bytes, item: bytes, kind: str) -> str:
        queue = key.decode().removeprefix(self.global_keyprefix).rsplit(self.sep, 1)[0]
        return str(
            dumps(
                {
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
            )
        )


class Transport(stock.Transport):  # type: ignore[misc]
    """kombu's Redis transport with that channel."""

    Channel = Channel


class _Connection(Connection):  # type: ignore[misc]
    """A connection that takes our transport where the URL's would be kombu's.

    (Celery's `broker_transport` would do, but its name would stand for `redis` in all URLs shown.)
    """

    def get_transport_cls(self) -> Any:
        found = super().get_transport_cls()
        return Transport if found is stock.Transport else found


class Messaging(AMQP):  # type: ignore[misc]
    """Celery's messaging on such connections: given to the app as `amqp`."""

    Connection = _Connection


def malformed(item: bytes) -> str | None:
    """What is wrong with an item, as a key of `REASONS`; None where kombu can take it."""
    try:
        # kombu's own reader: it knows marked values (`__type__`), and fails at more than JSON's.
        envelope = loads(item.decode())
    except Exception:  # noqa: BLE001 -- not Unicode, nested too deep, a number too long ...
        return "json"
    if not _is_envelope(envelope):
        return "envelope"
    match envelope["properties"].get("body_encoding"):
        case None | "utf-8":
            return None
        case "base64":
            try:
                base64.b64decode(envelope["body"])
            except ValueError:
                return "body"
            return None
        case _:
            return "body"


def _is_envelope(value: Any) -> bool:
    match value:
        case {
            "body": str(),
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

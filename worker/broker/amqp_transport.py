"""RabbitMQ as the broker: kombu's transport, made safe against any message.

py-amqp collects a whole message, however large, and its parser of properties raises in the loop
that consumes messages: the worker would end, and the broker would deliver the message to the next
one. Here a body that is too large is dropped as it arrives, and unreadable properties are omitted:
the message is still delivered, marked as malformed (`envelopes.py`), and goes into quarantine.
"""

from collections.abc import Callable
from struct import pack, unpack_from
from typing import Any

from amqp import spec
from amqp.basic_message import Message as Content
from amqp.method_framing import frame_handler
from amqp.serialization import PROPERTY_CLASSES
from kombu.transport import pyamqp as stock

from worker.broker import amqps, nodes
from worker.broker.envelopes import MAX_VALUE_BYTES, marked

_METHOD, _HEADER, _BODY = 1, 2, 3

#: A header frame: the class, two unused bytes, the body's size; then the properties.
_HEAD = ">HxxQ"
_PROPERTIES = 12

#: A `basic.deliver` frame: the method, then the consumer's tag; nine bytes after it, the exchange
#: and the routing key, which the publisher chose.
_TAG = 4
_BEHIND_TAG = 9

Handler = Callable[[tuple[int, int, Any]], Any]


class Message(stock.Message):  # type: ignore[misc]
    """A message with its body as received: kombu would decompress it while creating the message."""

    def __init__(self, msg: Any, channel: Any = None, **kwargs: Any) -> None:
        headers = msg.properties.get("application_headers")
        compression = headers.pop("compression", None) if headers else None
        super().__init__(msg, channel, **kwargs)
        if compression:
            self.headers: Any = {**headers, "compression": compression}


class Channel(stock.Channel):  # type: ignore[misc]
    """A channel that creates such messages."""

    Message = Message


class Connection(stock.Connection):  # type: ignore[misc]
    """A connection whose frames are checked before py-amqp parses them."""

    Channel = Channel

    leaving = False
    """Whether this side is about to close it: a broker that does not answer is waited for once."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"frame_handler": guarded, **kwargs})

    def blocking_read(self, timeout: float | None = None) -> Any:
        """Read a frame. `timeout`: seconds; None: those of the connection."""
        try:
            return super().blocking_read(timeout)
        except TimeoutError:
            if self.leaving and timeout is None:
                self.collect()  # what follows fails at once
            raise


class _Known:
    """A mix-in for kombu's transports: they try the node that answered last first."""

    def establish_connection(self) -> Any:
        made = super().establish_connection()  # type: ignore[misc]
        client = self.client  # type: ignore[attr-defined]
        nodes.answered(client.hostname, client.port or self.default_port)  # type: ignore[attr-defined]
        return made


class Transport(_Known, stock.Transport):  # type: ignore[misc]
    """kombu's AMQP transport with that connection."""

    Connection = Connection


class _Encrypted(amqps.Encrypted, Connection):
    pass


class SSLTransport(_Known, stock.SSLTransport):  # type: ignore[misc]
    """The same, over TLS."""

    Connection = _Encrypted


def guarded(connection: Any, callback: Callable[..., None]) -> Handler:
    """py-amqp's handler of frames, safe for messages from anybody."""
    handle: Handler = frame_handler(connection, callback)
    dropping: dict[int, int] = {}
    """By channel: the remaining bytes of a body that is dropped."""

    def on_frame(frame: tuple[int, int, Any]) -> Any:
        kind, channel, payload = frame
        if kind == _BODY:
            if channel not in dropping:
                return handle(frame)
            connection.bytes_recv += 1  # counts as a heartbeat
            dropping[channel] -= len(payload)
            if dropping[channel] <= 0:
                del dropping[channel]
            return False
        if kind == _HEADER:
            _, size = unpack_from(_HEAD, payload)
            if size > MAX_VALUE_BYTES:
                dropping[channel] = size
                return handle((kind, channel, _header(0, marked("large", size))))
            if not size and not _readable(payload):
                return handle((kind, channel, _header(0, marked("properties", 0))))
            try:
                return handle(frame)
            except Exception:
                if not size:  # the message was complete, so its size or properties did not fail
                    raise
                return handle((kind, channel, _header(size, marked("properties", size))))
        elif kind == _METHOD and unpack_from(">HH", payload) == spec.Basic.Deliver:
            return handle((kind, channel, _readable_names(payload)))
        return handle(frame)

    return on_frame


def _header(size: int, headers: dict[str, Any]) -> bytes:
    properties: bytes = Content(application_headers=headers)._serialize_properties()
    return pack(">HHQ", Content.CLASS_ID, 0, size) + properties


def _readable(payload: bytes) -> bool:
    try:
        PROPERTY_CLASSES[Content.CLASS_ID](payload, _PROPERTIES)
    except Exception:  # noqa: BLE001 -- no Unicode, no date, nested too deep, cut off ...
        return False
    return True


def _readable_names(payload: bytes) -> bytes:
    names = _TAG + 1 + payload[_TAG] + _BEHIND_TAG
    if payload[names:].isascii():
        return payload
    exchange, after = _name(payload, names)
    key, _ = _name(payload, after)
    return payload[:names] + exchange + key


def _name(payload: bytes, at: int) -> tuple[bytes, int]:
    """A name with its length prefix and without invalid UTF-8; and the offset of its end."""
    end = at + 1 + payload[at]
    name = payload[at + 1 : end].decode("utf-8", "ignore").encode()
    return bytes([len(name)]) + name, end

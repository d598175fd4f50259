"""What anybody may send: malformed payloads for every path into a worker, and compression bombs."""

import bz2
import gzip
import json
import lzma
import pickle
import zlib
from functools import cache
from typing import Any

from tests.integration.brokers import Message, body, headers

DEEP = b"[" * 100_000
HUGE = b"9" * 5000

#: Bytes that are no envelope: on a list, in a broadcast, or among the unacknowledged.
PAYLOADS: dict[str, bytes] = {
    "a list": b"[]",
    "null": b"null",
    "a number": b"5",
    "a number that is too long": HUGE,
    "not a number": b"NaN",
    "a text": b'"canary"',
    "nested too deep": DEEP,
    "nested as deep as can be read": b"[" * 900 + b"]" * 900,
    "no Unicode": b"\xff\xfe\x00canary",
    "no JSON": b"}{ canary",
    "an object": b'{"canary": 1}',
    "half of a surrogate pair": b'"\\ud800"',
    "a marked value that is none": b'{"__type__": "canary", "__value__": 1}',
}


def _changed(**changed: Any) -> bytes:
    envelope = Message().envelope()
    found = {**envelope, **{name.replace("_", "-"): value for name, value in changed.items()}}
    return json.dumps({name: value for name, value in found.items() if value is not ...}).encode()


def _properties(**changed: Any) -> bytes:
    given = {**Message().envelope()["properties"], **changed}
    return _changed(properties={name: one for name, one in given.items() if one is not ...})


#: Envelopes that kombu cannot parse.
ENVELOPES: dict[str, bytes] = {
    "properties that are a list": _changed(properties=[]),
    "no properties": _changed(properties=...),
    "a delivery tag that is a number": _properties(delivery_tag=5),
    "a delivery tag that is a list": _properties(delivery_tag=[]),
    "no delivery tag": _properties(delivery_tag=...),
    "a delivery that is a text": _properties(delivery_info="canary"),
    "a delivery that is null": _properties(delivery_info=None),
    "an exchange that is a number": _properties(
        delivery_info={"exchange": 5, "routing_key": "canary"}
    ),
    "a routing key that is null": _properties(delivery_info={"exchange": "", "routing_key": None}),
    "headers that are a list": _changed(headers=["task", "canary"]),
    "headers that are null": _changed(headers=None),
    "headers nested deep": _changed(headers=json.loads(b'{"a":' * 300 + b"1" + b"}" * 300)),
    "a body that is a number": _changed(body=5),
    "a body that is null": _changed(body=None),
    "a body that is a list": _changed(body=["canary"]),
    "a content type that is a number": _changed(content_type=5),
    "a content encoding that is null": _changed(content_encoding=None),
    "a body in an unknown encoding": _properties(body_encoding="canary"),
    "a body encoding that is a list": _properties(body_encoding=[]),
    "a body that is no base64": _changed(body="canary!"),
}

#: Messages that kombu accepts and the worker cannot use.
MESSAGES: dict[str, Message] = {
    "pickle": Message(
        pickle.dumps("canary"),
        content_type="application/x-python-serialize",
        content_encoding="binary",
    ),
    "yaml": Message(b"!!python/object/apply:os.getcwd []", content_type="application/x-yaml"),
    "msgpack": Message(b"\x93\x01\x02\x03", content_type="application/x-msgpack"),
    "an unknown content type": Message(content_type="application/x-canary"),
    "an unknown content encoding": Message(content_encoding="canary"),
    "a content encoding of two bytes": Message(content_encoding="utf-16"),
    "a body that is a list": Message(b"[]"),
    "a body that is null": Message(b"null"),
    "a body that is a number": Message(HUGE),
    "a body nested too deep": Message(DEEP),
    "a body that is no Unicode": Message(b"\xff\xfe"),
    "arguments that are a text": Message(body(["canary", {}, None])),
    "named arguments that are a list": Message(body([["nobody"], [], None])),
    "an id that is a number": Message(headers=headers(id=5)),
    "a task that is a list": Message(headers=headers(task=["canary"])),
    "a task of Celery's own": Message(
        body([[], {}, None]), headers=headers(task="celery.backend_cleanup")
    ),
    "a chord": Message(
        body([["group", "callback"], {"interval": 0}, None]),
        headers=headers(task="celery.chord_unlock"),
    ),
}

#: Valid envelopes with odd values in fields that are ignored.
ODD: dict[str, bytes] = {
    "an infinite priority": _properties(priority=float("inf")),
    "a priority that is a list": _properties(priority=[]),
    "a reply to a list": _properties(reply_to=["canary"], correlation_id=5),
    "another's delivery tag": _properties(delivery_tag="1"),
    "another's delivery tag, again": _properties(delivery_tag="1"),
    "another's queue": _properties(delivery_info={"exchange": "canary", "routing_key": "canary"}),
}

_REPLY = {"exchange": "reply.celery.pidbox", "routing_key": "canary"}

#: Bodies of control commands.
COMMANDS: dict[str, Any] = {
    "a list": [],
    "null": None,
    "a number": 5,
    "a text": "canary",
    "no method": {"arguments": {}},
    "a method that is a list": {"method": ["ping"]},
    "a method that nobody has": {"method": "canary", "arguments": {}},
    "arguments that are a list": {"method": "ping", "arguments": ["canary"]},
    "arguments that name the state": {"method": "ping", "arguments": {"state": 5}},
    "a destination that is a text": {"method": "ping", "destination": "canary"},
    "a destination that is a number": {"method": "ping", "destination": 5},
    "a destination of lists": {"method": "ping", "destination": [["canary"]]},
    "a pattern that takes for ever": {
        "method": "ping",
        "pattern": "((((.*)*)*)*)*%",
        "matcher": "pcre",
    },
    "a matcher that nobody has": {"method": "ping", "pattern": "a", "matcher": "canary"},
    "a reply to a text": {"method": "ping", "reply_to": "canary"},
    "a reply to a list": {"method": "ping", "reply_to": ["canary"]},
    "a reply to nobody": {"method": "ping", "reply_to": {}},
    "a reply to an exchange of numbers": {"method": "ping", "reply_to": {"exchange": 5}},
    "a reply to our own queue": {
        "method": "ping",
        "reply_to": {"exchange": "", "routing_key": "registrations"},
    },
    "a reply by another exchange": {
        "method": "ping",
        "reply_to": {"exchange": "celeryev", "routing_key": "canary"},
    },
    "a reply to no Unicode": {"method": "ping", "reply_to": {**_REPLY, "routing_key": "\udc80"}},
    "a ticket that is a list": {"method": "ping", "reply_to": _REPLY, "ticket": ["canary"]},
    "unknown fields": {"method": "ping", "canary": 1, "self": 2},
}


#: How each kind of bomb is named in a message's headers.
BOMBS = {"bzip2": "application/x-bz2", "gzip": "application/x-gzip", "xz": "xz", "zlib": "zlib"}


@cache
def bomb(kind: str) -> bytes:
    """A gigabyte, compressed. This takes a second, so no file of tests does it at import."""
    block = bytes(10 * 1024 * 1024)
    match kind:
        case "bzip2":
            return bz2.compress(block) * 100
        case "gzip":
            return gzip.compress(block) * 10
        case "xz":
            return lzma.compress(block) * 100
        case _:
            return zlib.compress(10 * block)


def control(command: Any) -> bytes:
    """A control command as kombu broadcasts it through Redis."""
    message = Message(json.dumps(command).encode(), headers={"clock": 1, "expires": 0})
    return json.dumps(message.envelope()).encode()


def enveloped(message: Message) -> bytes:
    """A message as kombu puts it on a Redis list."""
    return json.dumps(message.envelope()).encode()

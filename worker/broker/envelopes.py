"""Checks everything that comes from a broker: first its size, then its form; nothing is
decompressed.

Anybody may have put anything into a queue, a broadcast channel or the table of unacknowledged
messages. What is no Celery message is put unchanged into an envelope of our own, so that it travels
like any message, until `worker/process/consumer.py` puts it into quarantine. What is too large
travels without its content.
"""

import base64
import json
import logging
import os
import time
from typing import Any

from kombu.utils.json import loads

from regworker.domain.job import MAX_JOB_BYTES

log = logging.getLogger(__name__)

#: A whole job as JSON still fits when it is encoded as JSON again with every character escaped.
MAX_BODY_BYTES = 8 * MAX_JOB_BYTES

#: The largest value that is read: the largest body in an envelope with each character escaped (`é`
#: becomes `\u00e9`), in one more envelope while it is unacknowledged.
MAX_VALUE_BYTES = 4 * MAX_BODY_BYTES

#: Bytes of a wake-up in its envelope, at most. It contains an id, in some 500 bytes.
LONGEST_WAKE_UP = 16 * 1024

MALFORMED = "x-malformed"
"""A header of envelopes that this worker made; its value is a key of `REASONS`."""

SIZE = "x-malformed-size"
"""The number of bytes of content that was dropped."""

REASONS = {
    "json": "not JSON",
    "envelope": "JSON, but no envelope of Celery's",
    "body": "an envelope whose body cannot be decoded",
    "large": f"larger than {MAX_VALUE_BYTES} bytes, alone or with others: kept without its content",
    "wake-up": f"larger than {LONGEST_WAKE_UP} bytes, in a queue of wake-ups",
    "properties": "its properties cannot be read",
}

#: Longer than any name of a delivery tag, an exchange or a queue.
_LONGEST_NAME = 255

#: AMQP's priorities; with others, kombu fails when it restores a message.
_PRIORITIES = range(10)

#: The most levels of lists and objects in an envelope. What can just be parsed could not be written
#: again deeper in the call stack.
_DEEPEST = 100

#: Seconds during which junk of one kind is logged only once.
_SAMPLE = 60.0


def envelope(item: bytes, queue: str) -> Any:
    """An item of a list as an envelope for kombu; an item that is none is put into one."""
    if (size := left_out(item)) is not None:
        return wrapped(b"", queue, "large", size)
    try:
        found = _parsed(item)
    except Exception:  # noqa: BLE001 -- not Unicode, nested too deep, a number too long ...
        return wrapped(item, queue, "json")
    kind = malformed(found)
    if kind is not None:
        return wrapped(item, queue, kind)
    properties = found["properties"]
    if properties["delivery_info"] != {"exchange": "", "routing_key": queue}:
        # It came from this queue and goes back to it, whatever it says itself.
        properties["delivery_info"] = {"exchange": "", "routing_key": queue}
    return found


def broadcast(item: bytes) -> Any:
    """The envelope of a broadcast; None if it is none."""
    try:
        found = None if left_out(item) is not None else _parsed(item)
    except Exception:  # noqa: BLE001 -- as above
        return None
    return None if malformed(found) else found


def returned(value: bytes) -> tuple[Any, str, str] | None:
    """An unacknowledged message in kombu's form: envelope, exchange, routing key."""
    try:
        found = None if left_out(value) is not None else _parsed(value)
    except Exception:  # noqa: BLE001 -- as above
        return None
    match found:
        case [message, str(exchange), str(key)] if not malformed(message) and _names(exchange, key):
            return message, exchange, key
        case _:
            return None


def malformed(found: Any) -> str | None:
    """The error of an envelope, as a key of `REASONS`; None if kombu can process it.

    An invalid priority is removed.
    """
    if not _is_envelope(found):
        return "envelope"
    properties = found["properties"]
    if type(priority := properties.get("priority", 0)) is not int or priority not in _PRIORITIES:
        del properties["priority"]
    match properties.get("body_encoding"):
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


def wrapped(item: bytes, queue: str, kind: str, size: int | None = None) -> dict[str, Any]:
    """An envelope around an item that is none. `size`: the number of bytes, if they were
    dropped."""
    return {
        "body": base64.b64encode(item).decode(),
        "content-type": "application/octet-stream",
        "content-encoding": "binary",
        "headers": marked(kind, len(item) if size is None else size),
        "properties": {
            "body_encoding": "base64",
            "delivery_tag": "",
            "delivery_info": {"exchange": "", "routing_key": queue},
        },
    }


def marked(kind: str, size: int) -> dict[str, Any]:
    """The headers of an envelope that this worker made."""
    return {MALFORMED: kind, SIZE: size}


class JunkLog:
    """Logs what anybody may cause at will: one line a minute for each kind."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[float, int]] = {}

    def warning(self, what: str) -> None:
        """Log it, unless it was logged a moment ago. `what`: never text from outside."""
        now = time.monotonic()
        last, missed = self._said.get(what, (-_SAMPLE, 0))
        if now - last < _SAMPLE:
            self._said[what] = last, missed + 1
            return
        self._said[what] = now, 0
        log.warning("%s (and %d like it since the last line)", what, missed)


junk = JunkLog()
"""Logs what is dropped without being kept."""


def left_out(value: bytes) -> int | None:
    """The size of a value whose content was dropped on the way here; otherwise None."""
    if len(value) > MAX_VALUE_BYTES:
        return len(value)
    size = value[len(_LEFT_OUT) :]
    return int(size) if value.startswith(_LEFT_OUT) and size.isdigit() else None


def stand_in(size: int) -> bytes:
    """What replaces a value that is too large."""
    return _LEFT_OUT + b"%d" % size


#: This is no JSON, and only this process knows it.
_LEFT_OUT = b"left out " + os.urandom(8).hex().encode() + b" "


def _parsed(value: bytes) -> Any:
    text = value.decode()
    # Only kombu's own parser understands marked values, in which kombu restores a body of plain
    # text.
    found = loads(text) if "__type__" in text else json.loads(text)
    if text.count("[") + text.count("{") > _DEEPEST and _too_deep(found):
        raise ValueError("nested too deep")
    return found


def _too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(_DEEPEST):
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
    return bool(level)


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
            return _names(tag, exchange, key)
        case _:
            return False


def _names(*names: str) -> bool:
    return all(name.isascii() and len(name) <= _LONGEST_NAME for name in names)

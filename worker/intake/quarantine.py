"""The quarantine: messages and entries that could not be processed, kept for a person.

A message may contain anything, even a registration with its password: what is kept is sealed, and
by default only reason, queue and size are shown. The newest `MOST` messages are kept, at most
`KEPT_BYTES` of each.
"""

import base64
import hashlib
import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

from kombu.utils.json import dumps, loads

from regworker.domain.actor import Actor
from regworker.domain.errors import RegistrationWorkerError
from regworker.domain.job import MAX_JOB_BYTES
from regworker.ledger import SyncLedger
from regworker.ledger.admin import (
    look_into_quarantine,
    note_plain,
    quarantine,
    quarantined,
    unquarantine,
)
from regworker.ledger.records import Quarantined
from regworker.ledger.transitions import JOBS
from regworker.sealing import seals
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from worker.broker.envelopes import MALFORMED, SIZE
from worker.broker.wakeups import CONFIRM_TIMEOUT, REQUESTS
from worker.celery import new_app

log = logging.getLogger(__name__)

#: Messages that are kept. With `KEPT_BYTES` this limits what anybody with access to the broker can
#: store in the ledger (sealing adds a third): some 50 MB.
MOST = 300

#: A job of the largest accepted size, in an envelope.
KEPT_BYTES = 2 * MAX_JOB_BYTES

#: Seconds between tries while the ledger is away.
PAUSE = 1.0

#: Bytes of content, as JSON, that may wait for the ledger: a worker's memory is limited.
MOST_WAITING = 4 * 1024 * 1024

#: The size of an entry besides its content.
_PARCEL = 4096


class NotInQuarantine(RegistrationWorkerError):  # noqa: N818
    """Raised when no message with that id is in quarantine: dropped, requeued, or never there."""


class NotRequeued(RegistrationWorkerError):  # noqa: N818
    """Raised when a message cannot be requeued; it stays in quarantine."""


@dataclass(frozen=True, slots=True)
class QuarantineEntry:
    """A message on its way into quarantine. `content`: all of it, as JSON."""

    queue: str
    reason: str
    size: int
    content: bytes = field(repr=False)
    whole: bool = True
    """Whether the content is complete."""

    @classmethod
    def of(cls, message: Any, reason: str, queue: str = "") -> Self:
        """Pack any message of kombu's. `queue`: where it was taken from."""
        body = message.body or b""
        if isinstance(body, str):
            body = body.encode("utf-8", "surrogatepass")
        body = bytes(body)
        where = queue or (message.delivery_info or {}).get("routing_key")
        name = where if isinstance(where, str) and where.isprintable() else "?"
        content: dict[str, Any] = {"body": base64.b64encode(body[:KEPT_BYTES]).decode()}
        size = len(body)
        if isinstance(message.headers, dict) and MALFORMED in message.headers:
            content["raw"] = True
            if isinstance(left_out := message.headers.get(SIZE), int):
                size = content["size"] = max(size, left_out)
        else:
            content["content_type"] = message.content_type
            content["content_encoding"] = message.content_encoding
            content["headers"] = _as_sent(message.headers)
            content["properties"] = _without_delivery(message.properties)
        packed = _json(content)
        if len(packed) > 2 * KEPT_BYTES:  # because of its headers
            packed = json.dumps({"body": content["body"], "raw": True, "size": size}).encode()
            size = max(size, KEPT_BYTES + 1)
        return cls(name[:255], reason, size, packed)

    @classmethod
    def of_entry(cls, fields: Mapping[bytes, bytes], reason: str) -> Self:
        """Pack any entry of the job stream."""
        size = sum(len(name) + len(value) for name, value in fields.items())
        kept = [[_text(name), _text(value)] for name, value in fields.items()]
        return cls(JOBS, reason, size, json.dumps({"fields": kept}).encode())

    @classmethod
    def too_large(cls, entry: str, size: int, shown: Mapping[bytes, bytes], reason: str) -> Self:
        """Pack an entry of the job stream that is too large to read, without its content."""
        names = b", ".join(shown).decode(errors="backslashreplace")
        line = f"entry {entry} of {size} bytes, its first fields: {names}"
        content = json.dumps({"body": _text(line.encode()), "raw": True}).encode()
        return cls(JOBS, reason, size, content, whole=False)

    @classmethod
    def of_task(cls, task: str, id_: str, argument: Any, reason: str) -> Self:
        """Pack a valid message that the worker failed to process."""
        body = _json([[argument], {}, None])
        content = {
            "body": _text(body),
            "content_type": "application/json",
            "content_encoding": "utf-8",
            "headers": {"task": task, "id": id_},
            "properties": {"correlation_id": id_},
        }
        return cls(REQUESTS, reason, len(body), _json(content))


class MessageKeeper:
    """Puts messages into quarantine in a thread of its own, however long the ledger is away.

    Until then a message stays unacknowledged: if the worker stops, the broker gives it to another
    worker.
    """

    def __init__(self, settings: Settings, keyring: Keyring) -> None:
        """`keyring`: that of the process, whose keys may change while it runs."""
        self._settings = settings
        self._keyring = keyring
        self._entries: queue.SimpleQueue[tuple[QuarantineEntry, Callable[[], None]]] = (
            queue.SimpleQueue()
        )
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._waiting = 0

    @property
    def full(self) -> bool:
        """Whether so much waits for the ledger that the worker must take no more from the
        broker."""
        return self._waiting > MOST_WAITING

    def keep(self, quarantined: QuarantineEntry, kept: Callable[[], None]) -> None:
        """Take a message; `kept` is called, in the thread, once the ledger has it."""
        with self._lock:
            self._waiting += len(quarantined.content) + _PARCEL
        self._entries.put((quarantined, kept))
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="quarantine", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        store = Quarantine(self._settings, self._keyring)
        while True:
            quarantined, kept = self._entries.get()
            while True:
                try:
                    store.keep(quarantined)
                    with self._lock:
                        self._waiting -= len(quarantined.content) + _PARCEL
                    kept()
                    break
                except Exception as error:  # noqa: BLE001 -- not to be lost for any of them
                    log.warning("the quarantine waits for the ledger (%s)", type(error).__name__)
                    time.sleep(PAUSE)


class Quarantine:
    """The messages in quarantine: keep, list, open, drop, requeue."""

    def __init__(self, settings: Settings, keyring: Keyring | None = None) -> None:
        """`keyring`: that of the process, if it has one; otherwise that of the settings."""
        self._settings = settings
        self._keyring = keyring or Keyring.of(settings)
        self._ledger = SyncLedger(settings.redis_url)

    def keep(self, quarantined: QuarantineEntry) -> str:
        """Keep a message, sealed; return its id, which is the same for the same message."""
        small = quarantined.size <= KEPT_BYTES and len(quarantined.content) <= 2 * KEPT_BYTES
        whole = quarantined.whole and small
        content = quarantined.content if whole else _beginning(quarantined.content)
        # Keyed: with a plain hash, anybody could test guesses of a short message.
        print_ = self._keyring.fingerprints(
            quarantined.queue.encode() + b"\0" + quarantined.content
        )[0]
        id_ = hashlib.sha256(print_.encode()).hexdigest()[:12]
        fields: dict[str, str | bytes | int | float] = {
            "queue": quarantined.queue,
            "reason": quarantined.reason,
            "size": quarantined.size,
            "whole": int(whole),
            "content": self._keyring.seal(content, seals.quarantine(id_, quarantined.queue)),
        }
        # Its content is unknown: it is in plain text in the files of the server that delivered it.
        self._ledger(note_plain())
        self._ledger(quarantine(id_, fields, MOST))
        return id_

    def all(self, most: int = MOST) -> tuple[int, int, tuple[Quarantined, ...]]:
        """The number in quarantine, the number dropped to limit it, and the newest, without
        content."""
        return self._ledger(quarantined(most))

    def get(self, id_: str) -> Quarantined:
        """One message. Raises `NotInQuarantine`."""
        found = self._ledger(look_into_quarantine(id_))
        if found is None:
            raise NotInQuarantine(f"no message {id_} in quarantine")
        return found

    def content(self, entry: Quarantined) -> dict[str, Any]:
        """The message as received: secret. `body` is bytes; `raw`: there was no envelope.

        For an entry of the job stream, `body` has one line for each field.
        """
        found = self._open(entry)
        if (fields := _fields(found)) is not None:
            return {"body": _lines(fields)}
        return {**found, "body": base64.b64decode(found["body"])}

    def drop(self, id_: str, actor: Actor, times: int = 0) -> None:
        """Drop a message; `times`: unless it was received again since. Raises `NotInQuarantine`."""
        if not self._ledger(unquarantine(id_, actor, "dropped", times)):
            raise NotInQuarantine(f"no message {id_} in quarantine")

    def requeue(self, id_: str, actor: Actor) -> Quarantined:
        """Requeue a message unchanged, and remove it from quarantine.

        In this order: after a crash in between, it is on the queue and in quarantine, not lost.
        """
        entry = self.get(id_)
        if not entry.whole:
            raise NotRequeued(f"message {id_} was too large to be kept completely")
        fields = _fields(self._open(entry))
        if fields is not None:
            # Twice if the answer is lost: a job's key makes that harmless.
            self._ledger.patiently(lambda: self._ledger.redis.xadd(JOBS, dict(fields)), 10)
        else:
            self._send(entry)
        # Unless it was received again meanwhile: a worker is quick, and the new one must stay.
        self._ledger(unquarantine(id_, actor, "requeued", entry.times))
        return entry

    def close(self) -> None:
        """Close all connections."""
        self._ledger.close()

    def _open(self, entry: Quarantined) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            self._keyring.open(entry.content, seals.quarantine(entry.id, entry.queue))
        )
        return found

    def _send(self, entry: Quarantined) -> None:
        app = new_app(self._settings)
        try:
            with app.producer_or_acquire() as producer:
                _publish(producer, entry, self.content(entry))
        except app.connection_for_write().channel_errors as error:
            what = f"the broker has no queue {entry.queue}, or accepts nothing for it"
            raise NotRequeued(f"{what} ({type(error).__name__})") from None
        except (OSError, *app.connection_for_write().connection_errors) as error:
            raise NotRequeued(f"the broker did not accept it ({type(error).__name__})") from None
        finally:
            app.close()


def _publish(producer: Any, entry: Quarantined, content: dict[str, Any]) -> None:
    if content.get("raw"):
        client = getattr(producer.channel, "client", None)
        if client is None:
            raise NotRequeued(
                f"message {entry.id} came without an envelope, so it cannot be requeued"
            )
        client.lpush(entry.queue, content["body"])
        return
    headers = loads(json.dumps(content["headers"])) or {}
    producer.publish(
        content["body"],
        exchange="",
        routing_key=entry.queue,
        content_type=content["content_type"],
        content_encoding=content["content_encoding"],
        headers=headers,
        # Otherwise RabbitMQ confirms messages that no queue accepts.
        mandatory=True,
        confirm_timeout=CONFIRM_TIMEOUT,
        **(content["properties"] or {}),
    )


def _as_sent(headers: Any) -> Any:
    # kombu marks redelivered messages; it is the same message, with the same id.
    if not isinstance(headers, dict):
        return headers
    return {name: value for name, value in headers.items() if name not in _BY_DELIVERY}


#: Headers that kombu and RabbitMQ add to redelivered messages. Sent along, they would count.
_BY_DELIVERY = frozenset({"redelivered", "x-delivery-count", "x-acquired-count", "x-death"})


def _without_delivery(properties: Any) -> dict[str, Any]:
    # kombu and RabbitMQ set all others for each message.
    kept = {"correlation_id", "reply_to"}
    given = properties if isinstance(properties, dict) else {}
    return {name: value for name, value in given.items() if name in kept}


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _fields(content: Mapping[str, Any]) -> list[tuple[bytes, bytes]] | None:
    """An entry's fields; None for a message from the broker."""
    pairs = content.get("fields")
    if pairs is None:
        return None
    return [(base64.b64decode(name), base64.b64decode(value)) for name, value in pairs]


def _lines(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"\n".join(name + b" " + value for name, value in fields)


def _json(content: Any) -> bytes:
    # Headers may contain what JSON cannot represent, or be nested too deeply.
    for options in ({}, {"default": repr}):
        with suppress(Exception):
            return str(dumps(content, **options)).encode()
    return json.dumps({"body": content["body"], "raw": True}).encode()


def _beginning(content: bytes) -> bytes:
    found = json.loads(content)
    fields = _fields(found)
    body = found["body"] if fields is None else _text(_lines(fields)[:KEPT_BYTES])
    return json.dumps({"body": body, "raw": True}).encode()

"""The quarantine: messages and entries that nothing could be made of, kept for a person to look at.

A message may hold anything, a registration with its password too: what is kept is sealed, and
only reason, queue and size are ever shown unasked. Kept are the newest `MOST`, of each at most
`KEPT_BYTES`.
"""

import base64
import hashlib
import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from kombu.utils.json import dumps, loads

from worker.celery import new_app
from worker.errors import RegistrationWorkerError
from worker.job import MAX_JOB_BYTES
from worker.ledger import SyncLedger
from worker.ledger.commands import JOBS
from worker.ledger.operations import look_into_quarantine, quarantine, quarantined, unquarantine
from worker.ledger.records import Quarantined
from worker.redis_broker import MALFORMED
from worker.sealing import Keyring
from worker.settings import Settings
from worker.wakeups import DOOR

log = logging.getLogger(__name__)

#: Messages kept. With `KEPT_BYTES` it bounds what anybody who can reach the broker can make the
#: ledger hold (sealing adds a third): some 50 MB.
MOST = 300

#: A job of the largest size taken, in an envelope.
KEPT_BYTES = 2 * MAX_JOB_BYTES

#: Seconds between tries while the ledger is away.
PAUSE = 1.0


class NotInQuarantine(RegistrationWorkerError):  # noqa: N818
    """Raised when no message of that id is in quarantine: dropped, requeued, or never there."""


class NotRequeued(RegistrationWorkerError):  # noqa: N818
    """Raised when a message cannot be put back on its queue; it stays in quarantine."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """A message on its way into quarantine. `content`: all of it, as JSON."""

    queue: str
    reason: str
    size: int
    content: bytes = field(repr=False)

    @classmethod
    def of(cls, message: Any, reason: str) -> Self:
        """Pack a message of kombu's, whatever is in it."""
        body = message.body or b""
        if isinstance(body, str):
            body = body.encode("utf-8", "surrogatepass")
        body = bytes(body)
        where = (message.delivery_info or {}).get("routing_key")
        name = where if isinstance(where, str) and where.isprintable() else "?"
        content: dict[str, Any] = {"body": base64.b64encode(body[:KEPT_BYTES]).decode()}
        if isinstance(message.headers, dict) and MALFORMED in message.headers:
            content["raw"] = True
        else:
            content["content_type"] = message.content_type
            content["content_encoding"] = message.content_encoding
            content["headers"] = _as_sent(message.headers)
            content["properties"] = _without_delivery(message.properties)
        return cls(name[:255], reason, len(body), _json(content))

    @classmethod
    def of_entry(cls, fields: Mapping[bytes, bytes], reason: str) -> Self:
        """Pack an entry of the job stream, whatever is in it."""
        size = sum(len(name) + len(value) for name, value in fields.items())
        kept = [[_text(name), _text(value)] for name, value in fields.items()]
        return cls(JOBS, reason, size, json.dumps({"fields": kept}).encode())

    @classmethod
    def of_task(cls, task: str, id_: str, argument: Any, reason: str) -> Self:
        """Pack a message that was a good one, and that we failed at."""
        body = _json([[argument], {}, None])
        content = {
            "body": _text(body),
            "content_type": "application/json",
            "content_encoding": "utf-8",
            "headers": {"task": task, "id": id_},
            "properties": {"correlation_id": id_},
        }
        return cls(DOOR, reason, len(body), _json(content))


class Warden:
    """Takes parcels into quarantine in a thread of its own, however long the ledger is away.

    Until then a message stays unacknowledged: a worker that is stopped before leaves it with the
    broker, which gives it to another.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._parcels: queue.SimpleQueue[tuple[Parcel, Callable[[], None]]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def keep(self, parcel: Parcel, kept: Callable[[], None]) -> None:
        """Take a parcel in; `kept` is called, in the thread, once the ledger has it."""
        self._parcels.put((parcel, kept))
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="quarantine", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        store = Quarantine(self._settings)
        while True:
            parcel, kept = self._parcels.get()
            while True:
                try:
                    store.keep(parcel)
                    kept()
                    break
                except Exception as error:  # noqa: BLE001 -- not to be lost for any of them
                    log.warning("the quarantine waits for the ledger (%s)", type(error).__name__)
                    time.sleep(PAUSE)


class Quarantine:
    """The messages set aside: keep, list, open, drop, put back."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._keyring = Keyring.parse(settings.sealing_keys.get_secret_value())
        self._ledger = SyncLedger(settings.redis_url)

    def keep(self, parcel: Parcel) -> str:
        """Keep a message, sealed; its id, the same for the same message."""
        whole = parcel.size <= KEPT_BYTES and len(parcel.content) <= 2 * KEPT_BYTES
        content = parcel.content if whole else _beginning(parcel.content)
        # Keyed: a plain hash of a short message would tell what it held.
        print_ = self._keyring.fingerprints(parcel.queue.encode() + b"\0" + parcel.content)[0]
        id_ = hashlib.sha256(print_.encode()).hexdigest()[:12]
        fields: dict[str, str | bytes | int | float] = {
            "queue": parcel.queue,
            "reason": parcel.reason,
            "size": parcel.size,
            "whole": int(whole),
            "content": self._keyring.seal(content),
        }
        self._ledger(quarantine(id_, fields, MOST))
        return id_

    def all(self, most: int = MOST) -> tuple[int, int, tuple[Quarantined, ...]]:
        """How many there are, how many were dropped for room, and the newest, without content."""
        return self._ledger(quarantined(most))

    def get(self, id_: str) -> Quarantined:
        """One message. Raises `NotInQuarantine`."""
        found = self._ledger(look_into_quarantine(id_))
        if found is None:
            raise NotInQuarantine(f"no message {id_} in quarantine")
        return found

    def content(self, entry: Quarantined) -> dict[str, Any]:
        """What came: secret. `body` is bytes; `raw`: there was no envelope around it.

        Of an entry of the job stream, `body` is a line for each field.
        """
        found = self._open(entry)
        if (fields := _fields(found)) is not None:
            return {"body": _lines(fields)}
        return {**found, "body": base64.b64decode(found["body"])}

    def drop(self, id_: str) -> None:
        """Forget a message. Raises `NotInQuarantine`."""
        if not self._ledger(unquarantine(id_)):
            raise NotInQuarantine(f"no message {id_} in quarantine")

    def requeue(self, id_: str) -> Quarantined:
        """Put a message back on its queue as it came, and out of quarantine.

        In this order: cut off between the two, it is on the queue and in quarantine, not nowhere.
        """
        entry = self.get(id_)
        if not entry.whole:
            raise NotRequeued(f"message {id_} was too large to be kept whole")
        fields = _fields(self._open(entry))
        if fields is not None:
            # Twice, where the answer is lost: a job's key makes that harmless.
            self._ledger.patiently(lambda: self._ledger.redis.xadd(JOBS, dict(fields)), 10)
        else:
            self._send(entry)
        # Not if it has come again meanwhile: a worker is quick, and that one must stay.
        self._ledger(unquarantine(id_, entry.times))
        return entry

    def close(self) -> None:
        """Close all connections."""
        self._ledger.close()

    def _open(self, entry: Quarantined) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._keyring.open(entry.content))
        return found

    def _send(self, entry: Quarantined) -> None:
        app = new_app(self._settings)
        try:
            with app.producer_or_acquire() as producer:
                _publish(producer, entry, self.content(entry))
        except (OSError, *app.connection_for_write().connection_errors) as error:
            raise NotRequeued(f"the broker did not take it ({type(error).__name__})") from None
        finally:
            app.close()


def _publish(producer: Any, entry: Quarantined, content: dict[str, Any]) -> None:
    if content.get("raw"):
        client = getattr(producer.channel, "client", None)
        if client is None:
            raise NotRequeued(f"message {entry.id} came by a Redis broker, without an envelope")
        client.lpush(entry.queue, content["body"])
        return
    own = loads(json.dumps(content["headers"])) or {}
    headers = {name: value for name, value in own.items() if name != "compression"}
    producer.publish(
        content["body"],
        exchange="",
        routing_key=entry.queue,
        content_type=content["content_type"],
        content_encoding=content["content_encoding"],
        headers=headers,
        **(content["properties"] or {}),
    )


def _as_sent(headers: Any) -> Any:
    # kombu marks what it delivers again; it is the same message, under the same id.
    if not isinstance(headers, dict):
        return headers
    return {name: value for name, value in headers.items() if name != "redelivered"}


def _without_delivery(properties: Any) -> dict[str, Any]:
    # What kombu and RabbitMQ set by themselves for each message.
    kept = {"correlation_id", "reply_to"}
    given = properties if isinstance(properties, dict) else {}
    return {name: value for name, value in given.items() if name in kept}


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _fields(content: Mapping[str, Any]) -> list[tuple[bytes, bytes]] | None:
    """An entry's fields; None of what came by a broker."""
    pairs = content.get("fields")
    if pairs is None:
        return None
    return [(base64.b64decode(name), base64.b64decode(value)) for name, value in pairs]


def _lines(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"\n".join(name + b" " + value for name, value in fields)


def _json(content: Any) -> bytes:
    try:
        return str(dumps(content)).encode()
    except Exception:  # noqa: BLE001 -- headers may hold what JSON cannot say
        return str(dumps(content, default=repr)).encode()


def _beginning(content: bytes) -> bytes:
    found = json.loads(content)
    fields = _fields(found)
    body = found["body"] if fields is None else _text(_lines(fields)[:KEPT_BYTES])
    return json.dumps({"body": body, "raw": True}).encode()

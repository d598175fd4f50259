"""Wakes workers: one Celery message per job or delivery, which contains only an id.

Losing a message or sending it twice is harmless: the alarm replaces a lost one, and the lease ends
a second one.
"""

import base64
import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import groupby
from threading import Lock
from typing import Any
from uuid import uuid4

from celery import Celery
from celery.utils.nodenames import anon_nodename

from regworker import addresses
from regworker.ledger.records import Wake
from regworker.ledger.transitions import CROWD
from worker.broker import nodes

ATTEMPT = "registrations.attempt"
DELIVER = "registrations.deliver"
REGISTER = "registrations.register"
CANCEL = "registrations.cancel"

#: Entry point 2, open to any Celery client.
REQUESTS = "registrations"
QUEUES = {
    "live": "registrations.live",
    "delivery": "registrations.deliveries",
    "bulk": "registrations.bulk",
}
"""The queue of each lane, in the order in which they are consumed."""

_LANES = {queue: lane for lane, queue in QUEUES.items()}
_ORDER = {lane: number for number, lane in enumerate(QUEUES)}

#: The routing key of a message that only tests whether the broker accepts messages. No queue has
#: this name.
PROBE = f"{REQUESTS}.probe"

#: The sender's name in wake-ups that the ledger's scripts make.
LEDGER = "ledger"

logger = logging.getLogger(__name__)


#: Seconds RabbitMQ has to confirm a wake-up; a queue without a leader never would.
CONFIRM_TIMEOUT = 4.0

#: After a failed publish, the worker waits this many times as long as it took before the next one:
#: a hanging broker must not delay every task by its timeout. At most `LONGEST_PAUSE` seconds: it
#: may have been one dead connection of a pool.
PATIENCE_RATIO = 5
LONGEST_PAUSE = 5.0


class Wakeups:
    """Publishes wake-ups; alarms replace those that cannot be published. Thread-safe."""

    def __init__(
        self,
        app: Celery,
        now: Callable[[], float] = time.monotonic,
        on_published: Callable[[int, int], None] = lambda wanted, sent: None,
    ) -> None:
        """`on_published`: gets the number of wake-ups, and how many of them the broker accepted."""
        self._app = app
        self._on_published = on_published
        self._now = now
        self._not_before = 0.0
        self._connecting = Lock()
        self._kept: tuple[Any, Any] | None = None
        """A connection to Redis and its channel."""
        self._confirmed = False
        """Whether the broker is known to confirm each message."""

    def __call__(self, wakes: Iterable[Wake]) -> int:
        """Publish; return the number that was published. Never raises if the broker fails."""
        wakes = list(wakes)
        return len(wakes) - len(self.publish(wakes))

    def publish(self, wakes: Sequence[Wake]) -> list[Wake]:
        """The same; return those that were not published."""
        left = sorted(wakes, key=lambda wake: _ORDER[wake.lane])  # one command for each lane
        started = self._now()
        if not left or started < self._not_before:
            self._on_published(len(left), 0)
            return left
        try:
            for taken in self._published(tuple(left)):
                del left[:taken]
        except Exception as error:  # noqa: BLE001
            # Any exception: a broker refuses in more ways (READONLY, OOM, a nack, a closed channel)
            # than kombu has classes for, and the ledger has the job in any case.
            self.close()
            now = self._now()
            self._not_before = now + min(PATIENCE_RATIO * (now - started), LONGEST_PAUSE)
            logger.warning(
                "the broker did not take %d of %d wake-ups (%s); their alarms will",
                len(left),
                len(wakes),
                type(error).__name__,
            )
        self._on_published(len(wakes), len(wakes) - len(left))
        return left

    def envelopes(self, ledger_url: str) -> dict[str, tuple[str, str]]:
        """By lane, the broker's list and a wake-up's envelope; empty if the ledger's server is not
        the broker.

        The ledger's scripts fill in an envelope: `$id$`, `$tag$` and, of a delivery, `$body$`; of a
        job only the id as `$base64$`, since its client may have encoded it.
        """
        connection = self._app.connection_for_write()
        try:
            ours = hasattr(getattr(connection.transport, "Channel", None), "put_many")
            if not ours or _place(connection) != addresses.read(ledger_url).place:
                return {}
            prefix = (connection.transport_options or {}).get("global_keyprefix", "")
        finally:
            connection.release()
        # So that an id fills whole groups of base64: three bytes are four characters.
        before, after = (_base64(part) for part in BODY.split("%s"))
        of_job = f"{before}$base64${after}"
        bodies = {"live": of_job, "bulk": of_job, "delivery": "$body$"}
        return {
            lane: (
                f"{prefix}{QUEUES[lane]}",
                _form(lane, LEDGER) % {"id": "$id$", "body": body, "tag": "$tag$"},
            )
            for lane, body in bodies.items()
        }

    def crowded(self) -> set[str]:
        """The lanes with so many queued wake-ups that another would only be a duplicate."""
        crowded = set()
        for lane, queue in QUEUES.items():
            # In Redis an empty list does not exist; if the broker does not answer, no lane counts
            # as crowded.
            with suppress(Exception), self._app.connection_or_acquire() as connection:
                declared = connection.default_channel.queue_declare(queue, passive=True)
                if declared.message_count > CROWD:
                    crowded.add(lane)
        return crowded

    def heard(self) -> bool:
        """Whether the broker accepts messages now; if so, wake-ups are published again at once."""
        try:
            self.probe()
        except Exception:  # noqa: BLE001 -- kombu has no one name for it
            return False
        self._not_before = 0.0
        return True

    def probe(self) -> None:
        """Publish messages that reach no queue; raises if the broker does not accept them.

        An open connection is no proof: RabbitMQ opens one under an alarm of memory or disk, and for
        a user without the right to publish; Redis opens one without free memory.
        """
        connection = self._app.connection_for_write()
        try:
            nodes.reach(connection)
            channel = connection.default_channel
            if hasattr(channel, "put_many"):
                channel.probe(PROBE)
            else:
                message = channel.prepare_message(b"")
                # Under a memory alarm, it still confirms the first message of each connection.
                for _ in range(2):
                    channel.basic_publish(
                        message, routing_key=PROBE, confirm_timeout=CONFIRM_TIMEOUT
                    )
            connection.release()
        except Exception:
            with suppress(Exception):
                connection.collect()  # it may not read a close either
            raise

    def close(self) -> None:
        """Close the connection; the next wake-ups connect again."""
        kept, self._kept = self._kept, None
        if kept is not None:
            with suppress(Exception):
                kept[0].close()

    def _published(self, wakes: Sequence[Wake]) -> Iterator[int]:
        """Publish in order; yield after each step how many more the broker has accepted."""
        put_many = self._put_many()
        if put_many is None:  # RabbitMQ confirms each message
            # A producer out of the pool; the pool replaces one whose connection failed.
            with self._app.producer_or_acquire() as producer:
                try:
                    for wake in wakes:
                        self._send(wake, producer)
                        yield 1
                except Exception:
                    # Closing would wait as long as the confirmation did.
                    with suppress(Exception):
                        producer.connection.collect()
                    raise
            return
        origin = anon_nodename()
        for lane, some in groupby(wakes, key=lambda wake: wake.lane):
            members = [wake.member for wake in some]
            put_many(QUEUES[lane], envelopes(lane, members, origin))
            yield len(members)

    def _put_many(self) -> Callable[[str, Iterable[str]], None] | None:
        """A function that puts wake-ups into a Redis broker's lists, thread-safe; None for other
        brokers.

        It is kept: borrowing a producer from Celery's pool for each job costs as much as the
        command.
        """
        if self._confirmed:
            return None
        # Concurrent threads share one connection; otherwise each would leave one open.
        with self._connecting:
            kept = self._kept
            if kept is None:
                connection = self._app.connection_for_write()
                if not hasattr(getattr(connection.transport, "Channel", None), "put_many"):
                    self._confirmed = True
                    return None
                kept = self._kept = connection, connection.default_channel
        put_many: Callable[[str, Iterable[str]], None] = kept[1].put_many
        return put_many

    def _send(self, wake: Wake, producer: Any) -> None:
        self._app.send_task(
            task_of(wake.lane),
            args=(wake.member,),
            task_id=wake.member,
            queue=QUEUES[wake.lane],
            argsrepr=f"({wake.member!r},)",
            kwargsrepr="{}",
            ignore_result=True,
            producer=producer,
            retry=False,
            confirm_timeout=CONFIRM_TIMEOUT,
        )


def _place(connection: Any) -> tuple[Any, ...] | None:
    """The place of a kombu connection, in the form of an address; None: unknown."""
    options = connection.transport_options or {}
    if hosts := options.get("sentinels"):
        database = int(connection.virtual_host or 0)
        return ("redis", tuple(sorted(map(tuple, hosts))), "", options["master_name"], database)
    try:
        return addresses.read(connection.as_uri(include_password=True)).place
    except ValueError:
        return None


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def envelopes(lane: str, members: Iterable[str], origin: str) -> Iterator[str]:
    """Wake-ups of a lane in kombu's form for its list. `origin`: the sender's name.

    They differ in little, and encoding each one anew would be most of their cost.
    """
    form, call = _form(lane, origin), uuid4()
    for number, member in enumerate(members):
        spelt = json.dumps(member)[1:-1]
        body = _base64(BODY % spelt)
        yield form % {"id": spelt, "body": body, "tag": f"{call}.{number}"}


BODY = '[["%s"], {}, {}]'
"""A wake-up's arguments by Celery's protocol 2: the member, no named arguments, no callbacks."""


@lru_cache(maxsize=64)  # some for each forked process
def _form(lane: str, origin: str) -> str:
    """The envelope of a lane's wake-ups by Celery's protocol 2, to be filled in with `%`.

    Without the empty fields of `send_task`, which would be most of what is parsed of a message.
    """
    envelope = {
        "body": "%(body)s",
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            "lang": "py",
            "task": task_of(lane),
            "id": "%(id)s",
            "root_id": "%(id)s",
            "origin": origin.replace("%", "%%"),
        },
        "properties": {
            "body_encoding": "base64",  # kombu cannot restore a body of plain text
            "correlation_id": "%(id)s",
            "delivery_info": {"exchange": "", "routing_key": QUEUES[lane]},
            "delivery_mode": 2,
            "delivery_tag": "%(tag)s",
            "priority": 0,
        },
    }
    return json.dumps(envelope)


def read(item: bytes, queue: str) -> tuple[str, str, str] | None:
    """The task, the member and the origin of a wake-up as `envelopes` and the ledger's scripts make
    it; None for anything else. Parsing and checking any envelope takes ten times as long."""
    lane = _LANES[queue]
    found = _pattern(lane).fullmatch(item)
    if found is None:
        return None
    body, member, origin = found.groups()
    if base64.b64encode(BODY.encode() % member) != body:
        return None
    return task_of(lane), member.decode(), origin.decode()


@lru_cache
def _pattern(lane: str) -> re.Pattern[bytes]:
    text = r"[ !#-\[\]-~]{1,255}"  # printable, and as it is in JSON
    blank = {name: f"@{name}@" for name in ("body", "id", "tag")}
    pattern = re.escape(_form(lane, "@origin@") % blank)
    pattern = pattern.replace("@body@", "([A-Za-z0-9+/=]{1,400})").replace("@tag@", text)
    pattern = pattern.replace("@id@", f"(?P<id>{text})", 1).replace("@id@", "(?P=id)")
    return re.compile(pattern.replace("@origin@", f"({text})").encode())


def task_of(lane: str) -> str:
    """The task that a wake-up of a lane calls."""
    return DELIVER if lane == "delivery" else ATTEMPT

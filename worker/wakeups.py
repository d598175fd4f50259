"""Waking workers: one Celery message a job or delivery, which carries nothing but an id.

Losing a message, or sending it twice, is harmless: the alarm makes up for the one, the lease ends
the other.
"""

import base64
import json
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from typing import Any
from uuid import uuid4

from celery import Celery
from celery.utils.nodenames import anon_nodename

from worker.ledger.records import Wake

ATTEMPT = "registrations.attempt"
DELIVER = "registrations.deliver"
REGISTER = "registrations.register"
CANCEL = "registrations.cancel"

#: Door 2, open to any Celery client.
DOOR = "registrations"
QUEUES = {
    "live": "registrations.live",
    "delivery": "registrations.deliveries",
    "bulk": "registrations.bulk",
}
"""The queue of each lane, in the order in which they are emptied."""

logger = logging.getLogger(__name__)


#: Seconds RabbitMQ has to confirm a wake-up; a queue without a leader never would.
CONFIRM_TIMEOUT = 4.0

#: After a publish that failed, others wait this many times as long as it took before they try
#: again: a broker that hangs must not hold up every task for its timeout. At most `LONGEST_PAUSE`
#: seconds: it may have been one dead connection of a pool.
PATIENCE_RATIO = 5
LONGEST_PAUSE = 5.0

#: Wake-ups that wait in a lane, above which no more are added for those that are in it already:
#: twice what a process has slots for by default.
CROWD = 200


class Wakeups:
    """Publishes wake-ups; what cannot be published is left to the alarms. Safe to share."""

    def __init__(
        self,
        app: Celery,
        now: Callable[[], float] = time.monotonic,
        told: Callable[[int, int], None] = lambda wanted, sent: None,
    ) -> None:
        """`told` hears how many were to be woken each time, and how many the broker took."""
        self._app = app
        self._told = told
        self._now = now
        self._not_before = 0.0
        self._kept: tuple[Any, Any] | None = None
        """A connection and its channel, on Redis."""
        self._confirmed = False
        """Whether the broker is known to be one that confirms each message."""

    def __call__(self, wakes: Iterable[Wake]) -> int:
        """Publish; the number published. Never raises for the broker's sake."""
        wakes = list(wakes)
        started = self._now()
        if not wakes or started < self._not_before:
            self._told(len(wakes), 0)
            return 0
        sent = 0
        try:
            for taken in self._publish(wakes):
                sent += taken
        except Exception as error:  # noqa: BLE001
            # Any: a broker refuses in more ways (READONLY, OOM, a nack, a closed channel) than
            # kombu has a name for, and none of them is a reason to fail what is in the ledger.
            self.close()
            now = self._now()
            self._not_before = now + min(PATIENCE_RATIO * (now - started), LONGEST_PAUSE)
            logger.warning(
                "the broker did not take %d of %d wake-ups (%s); their alarms will",
                len(wakes) - sent,
                len(wakes),
                type(error).__name__,
            )
        self._told(len(wakes), sent)
        return sent

    def crowded(self) -> set[str]:
        """The lanes in which so many wake-ups wait that another would only breed duplicates."""
        crowded = set()
        for lane, queue in QUEUES.items():
            # A list that is empty is none to Redis, and what can't be asked isn't known to be full.
            with suppress(Exception), self._app.connection_or_acquire() as connection:
                declared = connection.default_channel.queue_declare(queue, passive=True)
                if declared.message_count > CROWD:
                    crowded.add(lane)
        return crowded

    def reachable(self) -> bool:
        """Whether the broker can be connected to now; if so, it is tried again at once."""
        try:
            with self._app.connection_for_write() as connection:
                connection.ensure_connection(max_retries=1, interval_start=0)
        except Exception:  # noqa: BLE001 -- kombu has no one name for it
            return False
        self._not_before = 0.0
        return True

    def close(self) -> None:
        """Let go of the broker; the next wake-ups connect again."""
        kept, self._kept = self._kept, None
        if kept is not None:
            with suppress(Exception):
                kept[0].close()

    def _publish(self, wakes: Iterable[Wake]) -> Iterator[int]:
        """Publish, and say after each step how many more the broker has taken."""
        put_many = self._put_many()
        if put_many is None:  # RabbitMQ: each is confirmed
            # A producer of one's own out of a pool; one whose connection failed is replaced there.
            with self._app.producer_or_acquire() as producer:
                for wake in wakes:
                    self._send(wake, producer)
                    yield 1
            return
        origin = anon_nodename()
        lanes = defaultdict(list)
        for wake in wakes:
            lanes[wake.lane].append(wake.member)
        for lane, members in lanes.items():
            put_many(QUEUES[lane], envelopes(lane, members, origin))
            yield len(members)

    def _put_many(self) -> Callable[[str, Iterable[str]], None] | None:
        """What puts wake-ups into a Redis broker's lists, from any thread; None on another broker.

        Kept: to borrow a producer out of Celery's pool for each job costs what the command does.
        """
        if self._confirmed:
            return None
        kept = self._kept
        if kept is None:
            connection = self._app.connection_for_write()
            if not hasattr(getattr(connection.transport, "Channel", None), "put_many"):
                self._confirmed = True
                return None
            # Two threads may come here at once: each has its own, and one of them is kept.
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


def envelopes(lane: str, members: Iterable[str], origin: str) -> Iterator[str]:
    """Wake-ups of a lane as kombu puts them into its list. `origin`: the sender's name.

    For the most part they are alike, and most of what a wake-up costs is to spell that out anew.
    """
    form, call = _form(lane, origin), uuid4()
    for number, member in enumerate(members):
        spelt = json.dumps(member)[1:-1]
        body = base64.b64encode((BODY % spelt).encode()).decode()
        yield form % {"id": spelt, "body": body, "tag": f"{call}.{number}"}


BODY = '[["%s"], {}, {}]'
"""A wake-up's arguments by Celery's protocol 2: the member, nothing by name, nobody to call."""


@lru_cache(maxsize=64)  # some for each process that was forked off
def _form(lane: str, origin: str) -> str:
    """The envelope of a lane's wake-ups by Celery's protocol 2, to be filled in by `%`.

    Without what `send_task` adds to say that there is none of it: most of what is read of a
    message would be that.
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
            "body_encoding": "base64",  # kombu can't put a body back that came as plain text
            "correlation_id": "%(id)s",
            "delivery_info": {"exchange": "", "routing_key": QUEUES[lane]},
            "delivery_mode": 2,
            "delivery_tag": "%(tag)s",
            "priority": 0,
        },
    }
    return json.dumps(envelope)


def task_of(lane: str) -> str:
    """The task that a wake-up of a lane calls."""
    return DELIVER if lane == "delivery" else ATTEMPT

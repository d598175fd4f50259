"""Taking messages from the broker: what is no message of ours is set aside, and work goes on.

Set as Celery's `worker_consumer` and `task_cls`. Stock Celery logs a malformed message, arguments
and all, and drops it; or it raises, and the worker ends. Here each message is checked
(`messages.py`) before Celery's strategy sees it, and what fails goes to the quarantine
(`quarantine.py`).
"""

import logging
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from celery.app.task import Task as CeleryTask
from celery.worker import state
from celery.worker.consumer import Consumer as CeleryConsumer
from celery.worker.request import Request as CeleryRequest
from kombu.exceptions import OperationalError

from worker import vitals
from worker.messages import Malformed, Messages
from worker.quarantine import Parcel, Warden
from worker.redis_broker import Channel
from worker.settings import Settings

log = logging.getLogger(__name__)

HIDDEN = "(hidden)"
"""What Flower, events, `celery inspect` and logs show in place of arguments."""

#: Seconds between two batches of Celery's events. Flower shows them as they come; each batch costs
#: as much as some twenty events do.
EVENTS = 0.1


class Request(CeleryRequest):  # type: ignore[misc]
    """A task's request. Its arguments may be a whole registration: only an id is ever shown."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # A wake-up's argument is its id, which is shown in any case.
        self._argsrepr = f"({self.id!r},)" if self._args == [self.id] else HIDDEN
        self._kwargsrepr = HIDDEN if self._kwargs else "{}"
        self._request_dict["argsrepr"] = self._argsrepr
        self._request_dict["kwargsrepr"] = self._kwargsrepr
        # What has been read already need not be read once more by the task's tracer, which takes
        # it as it is where no content type is given.
        self._body = (self._args, self._kwargs, None)
        self._content_type = self._content_encoding = None

    def revoked(self) -> bool:
        """Never: a wake-up has its job's id, and a worker keeps from what is revoked for good.

        A click in Flower would leave the job unfinished. `regworker cancel` takes a job back.
        """
        return False

    def info(self, safe: bool = False) -> dict[str, Any]:
        """What `celery inspect` shows."""
        shown: dict[str, Any] = super().info(safe=True)
        return shown


class Task(CeleryTask):  # type: ignore[misc]
    """The base of all our tasks."""

    Request = "worker.consuming:Request"


class Consumer(CeleryConsumer):  # type: ignore[misc]
    """Celery's consumer, for queues into which anybody may have put anything."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._warden = Warden(Settings.load())
        # Both have workers tell each other what ours have no use for, cost a second at every
        # reconnect, and fail themselves while the broker is away.
        super().__init__(*args, **{**kwargs, "without_gossip": True, "without_mingle": True})
        # What kombu makes of them where it connects by itself: for Celery a reason to end.
        self.connection_errors = (*self.conninfo.connection_errors, OperationalError)

    def register_with_event_loop(self, hub: Any) -> None:
        """Called with each connection; what is repeated, Celery ends with it."""
        super().register_with_event_loop(hub)
        hub.call_repeatedly(vitals.TICK, vitals.consumer().tick)
        if self.event_dispatcher is not None:
            # Only the hub sends events: elsewhere it would hold up the tasks that they tell of.
            self.event_dispatcher.buffer_limit = sys.maxsize
            hub.call_repeatedly(EVENTS, self._flush_events)
        channel = self.task_consumer.channel
        if isinstance(channel, Channel):
            channel.room = self._room

    def on_send_event_buffered(self) -> None:
        """Nothing: an event waits for others. (Celery would send what has come at each turn.)"""

    def _room(self) -> int:
        """How many messages to take. No wake-up without a slot, or bulk would go before live."""
        room = self._free()
        if room <= 0:
            # Asked once more: a slot that came free in between would tell nobody.
            self.pool.full = True
            room = self._free()
        return room

    def _free(self) -> int:
        free: int = self.pool.num_processes - len(state.reserved_requests)
        return free

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Let go of a broken connection, whatever kombu makes of that.

        Closing a Redis channel puts back its messages, and fails with an `AttributeError` where
        the connection it would do that by is gone already: no reason to end the worker.
        """
        try:
            super().on_connection_error_after_connected(exc)
        except Exception as error:  # noqa: BLE001
            log.warning("a broken connection could not be closed (%s)", type(error).__name__)

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], None]:
        """Check each message; only a good one comes before Celery."""
        handle = super().create_task_handler(*args, **kwargs)
        check = Messages(self.app.tasks).check
        broken = (*self.connection_errors, *self.channel_errors)

        def received(message: Any) -> None:
            try:
                check(message)
            except Malformed as error:
                self.set_aside(message, str(error))
                return
            except Exception as error:  # noqa: BLE001 -- no fault of the broker's: it stays with us
                self.set_aside(message, f"it could not be checked ({type(error).__name__})")
                return
            try:
                handle(message)
            except broken:
                raise
            except Exception as error:  # noqa: BLE001 -- whatever it was, it must not stop us
                self.set_aside(message, f"no task could be made of it ({type(error).__name__})")

        return received

    def set_aside(self, message: Any, reason: str) -> None:
        """Put a message into quarantine; it is acknowledged once the ledger has it."""
        parcel = Parcel.of(message, reason)
        log.warning(
            "a message on %s is set aside: %s (%d bytes)", parcel.queue, reason, parcel.size
        )

        def kept() -> None:
            self.call_soon(_acknowledge, message)

        self._warden.keep(parcel, kept)

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """A body that kombu could not even unpack."""
        compressed = "compression" in (message.headers or {})
        what = "its body is not compressed as it says" if compressed else "its body is no text"
        self.set_aside(message, f"{what} ({type(exc).__name__})")

    def on_unknown_message(self, body: Any, message: Any) -> None:
        """Not reached by a message that was checked; nor are the next two."""
        self.set_aside(message, "not a task message")

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        """A task that no worker of ours has."""
        self.set_aside(message, "an unknown task")

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        """A task message that Celery refuses."""
        self.set_aside(message, "an invalid task message")

    def shutdown(self) -> None:
        """Tell Flower what the last tasks came to, before the connection is closed."""
        with suppress(Exception):
            self._flush_events()
        super().shutdown()

    def call_soon_ack(self, p: Any, *args: Any, **kwargs: Any) -> Any:
        """Acknowledge, but survive that the connection the message came by is closed.

        Celery expects the broker's errors there; kombu's closed Redis channels raise others
        (`AttributeError`), which would end the worker. The broker delivers again in any case.
        """

        message = p.__self__
        channel = message.channel
        if isinstance(channel, Channel) and channel.expendable(message):
            # Nothing goes to the broker, so that the hub need not be woken for it.
            return p(*args, **kwargs)

        def safely(*given: Any, **named: Any) -> None:
            try:
                p(*given, **named)
            except self.connection_errors:
                raise
            except Exception as error:  # noqa: BLE001
                log.warning("a message could not be acknowledged (%s)", type(error).__name__)

        return super().call_soon_ack(safely, *args, **kwargs)


def _acknowledge(message: Any) -> None:
    try:
        message.ack()
    except Exception as error:  # noqa: BLE001 -- delivered again, and kept under the same id
        log.warning("a message set aside was not acknowledged (%s)", type(error).__name__)

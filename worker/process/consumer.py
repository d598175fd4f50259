"""Takes messages from the broker: what is no message of ours is set aside, and work goes on.

Set as Celery's `worker_consumer` and `task_cls`. Stock Celery logs a malformed message with its
arguments, and drops it; or it raises, and the worker ends. Here each message is checked
(`message_check.py`) before Celery's strategy sees it, and what fails goes to the quarantine
(`worker/intake/quarantine.py`).
"""

import logging
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from celery.app.task import Task as CeleryTask
from celery.bootsteps import RUN
from celery.worker import loops, state
from celery.worker.consumer import Consumer as CeleryConsumer
from celery.worker.request import Request as CeleryRequest
from kombu.exceptions import OperationalError
from redis.exceptions import ResponseError

from regworker import addresses
from regworker.ledger.snapshot import BrokerOf
from regworker.settings import Settings, variable
from worker.broker.background_publisher import NotConnected, background
from worker.broker.broker_url import of_kombu
from worker.broker.queue_marks import QueueMarks
from worker.broker.redis_transport import Channel, Transport, Wakeup
from worker.intake.quarantine import MessageKeeper, QuarantineEntry
from worker.monitoring import liveness
from worker.monitoring.heartbeat import own_name
from worker.process.message_check import Malformed, Messages, built_in
from worker.process.runtime import ONE_BROKER, runtime, watch_stop
from worker.process.wake_reader import WakeReader
from worker.telemetry.sampling import Sampled

#: Seconds between checks of the queues, on RabbitMQ.
LOOK = 5.0

#: AMQP's ACCESS_REFUSED and RESOURCE_LOCKED: another user owns the queue.
_REFUSED = frozenset({403, 405})

log = logging.getLogger(__name__)
warn_of_junk = Sampled(log.warning)

HIDDEN = "(hidden)"
"""Replaces arguments in Flower, events, `celery inspect` and logs."""

#: Seconds before the worker reconnects after a connection that broke at once, doubled each time, up
#: to the longest. A permanent cause must not lead to a new connection at every turn.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0

#: Seconds between checks whether a pausing worker was asked to stop.
STOPPED = 0.1

#: Seconds within which a Redis server must have answered whether there are messages, except an
#: endless wait: it is asked every second.
ANSWERED = 4.0

#: Celery's attribute: whether the prefetch count has its value from before a reconnection.
RESTORED = "_maximum_prefetch_restored"

#: Seconds between two batches of Celery's events. A batch costs as much as some twenty events.
EVENTS = 0.1


class TaskRequest(CeleryRequest):  # type: ignore[misc]
    """A task's request. Its arguments may be a whole registration: only an id is ever shown."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # A wake-up's argument is its id, which is not secret.
        self._argsrepr = f"({self.id!r},)" if self._args == [self.id] else HIDDEN
        self._kwargsrepr = HIDDEN if self._kwargs else "{}"
        self._request_dict["argsrepr"] = self._argsrepr
        self._request_dict["kwargsrepr"] = self._kwargsrepr
        # The task's tracer need not parse the body again: without a content type it uses it as it
        # is.
        self._body = (self._args, self._kwargs, None)
        self._content_type = self._content_encoding = None

    def revoked(self) -> bool:
        """Never: a wake-up has its job's id, and a worker never runs a revoked id again.

        A click in Flower would leave the job unfinished. `regworker cancel` cancels a job.
        """
        return False

    def info(self, safe: bool = False) -> dict[str, Any]:
        """The fields that `celery inspect` shows."""
        shown: dict[str, Any] = super().info(safe=True)
        return shown


class Task(CeleryTask):  # type: ignore[misc]
    """The base of all our tasks."""

    Request = "worker.process.consumer:TaskRequest"


class Consumer(CeleryConsumer):  # type: ignore[misc]
    """Celery's consumer, for queues that may contain anything."""

    class Blueprint(CeleryConsumer.Blueprint):  # type: ignore[misc]
        """Celery's steps, with our remote control, and without delayed delivery.

        That step declares 28 queues for countdowns, which are not used here; it does so at each
        node of a cluster in turn, and one node that is away delays the start by 20 seconds.
        """

        default_steps = tuple(
            "worker.process.remote_control:Control" if step.endswith(":Control") else step
            for step in CeleryConsumer.Blueprint.default_steps
            if not step.endswith(":DelayedDelivery")
        )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        app, settings = kwargs["app"], Settings.load()
        self._keeper = MessageKeeper(settings, runtime(app).keyring)
        self._queues = tuple(app.amqp.queues.consume_from)
        """The queues of this worker, whatever becomes of its consumer."""
        self._refused: set[str] = set()
        """Its queues that the broker refuses at present."""
        self._marks = QueueMarks(own_name())
        self._reader = self._wake_reader(app, settings)
        self.box: Any = None
        """The mailbox for commands, if there is one."""
        self._connected_at = 0.0
        self._failures = 0
        # In both, workers exchange messages that are not needed here; it costs a second at every
        # reconnect, and fails while the broker is away.
        super().__init__(*args, **{**kwargs, "without_gossip": True, "without_mingle": True})
        # kombu raises this when it connects by itself; for Celery it would be a reason to stop.
        self.connection_errors = (*self.conninfo.connection_errors, OperationalError)

    def register_with_event_loop(self, hub: Any) -> None:
        """Called with each connection; Celery cancels the timers with the connection."""
        super().register_with_event_loop(hub)
        hub.call_repeatedly(liveness.TICK, self._tick)
        if self.event_dispatcher is not None:
            # Many events in one message.
            self.event_dispatcher.buffer_limit = sys.maxsize
            hub.call_repeatedly(EVENTS, self._flush_events)
        channel = self.task_consumer.channel
        if isinstance(channel, Channel):
            channel.room = self._room
            if self._reader is not None:
                lanes = channel.expendable_queues
                channel.apart = tuple(one for one in lanes if one in self._queues)
                channel.on_cancel = self._reader.stop
                channel.on_wake_up = self.task_consumer.on_message
                self.pool.on_free = self._reader.look
        else:
            self._claim_broker()
            self._marks.put(self.connection, self._own())
            hub.call_repeatedly(LOOK, self._look)

    def _claim_broker(self) -> None:
        """Refuse to start on another installation's RabbitMQ; later, report it."""
        found = self._whose_broker()
        if found == "other" and not liveness.consumer().happened():
            name = variable("broker_url")
            raise SystemExit(f"registration-worker cannot start:\n  {name}: {ONE_BROKER}")
        runtime(self.app).note_owner(found)

    def _whose_broker(self) -> BrokerOf:
        return runtime(self.app).owner.claim_rabbitmq(self.connection, own_name())

    def on_ready(self) -> None:
        """Called with each connection, once the queues are consumed."""
        super().on_ready()
        channel = self.task_consumer.channel
        if self._reader is not None and isinstance(channel, Channel) and channel.apart:
            self._reader.start(channel)

    def connection_for_write(self, url: Any = None, heartbeat: Any = None) -> NotConnected:
        """Celery's step for events would wait for a connection; ours publishes them in the
        background."""
        return NotConnected()

    def connect(self) -> Any:
        """Connect, and prepare the worker's keys in Redis."""
        connection = super().connect()
        self._connected_at = time.monotonic()
        if isinstance(connection.transport, Transport):
            exchanges = (queue.exchange.name for queue in self.app.amqp.queues.values())
            mailbox = self.app.control.mailbox.exchange.name
            names = {*exchanges, mailbox} - {""}
            try:
                connection.default_channel.set_wrong_keys_aside(self._queues, names)
            except ResponseError as error:
                # It may lack the right; it works as long as no key is wrong.
                log.warning("keys of the broker were not looked at (%s)", type(error).__name__)
        return connection

    def loop(self, *args: Any) -> None:
        """Celery's loop. An error leads to a new connection, and never ends the worker."""
        run = loops.asynloop if self.hub else loops.synloop
        try:
            run(*args)
        except (*self.connection_errors, *self.channel_errors):
            raise
        except Exception as error:
            # Without its text, which may quote a message.
            log.error("the loop that takes messages stumbled (%s)", type(error).__name__)  # noqa: TRY400
            raise OperationalError(type(error).__name__) from error

    def update_strategies(self) -> None:
        """Prepare to run our tasks, and none of Celery's own."""
        super().update_strategies()
        for name in filter(built_in, list(self.strategies)):
            del self.strategies[name]

    def _tick(self) -> None:
        # A turn of this loop alone proves little: it also turns without any queue.
        if all(map(self._consumes, self._queues)):
            liveness.consumer().tick()

    def _look(self) -> None:
        """Reconnect if a queue, or its consumer, is gone: this declares the queue and consumes it.
        Look whose broker it is now.

        RabbitMQ does not always notify the consumers of a quorum queue that it was deleted. A
        deleted exchange or binding is declared again, without waiting for an answer.
        """
        for name in sorted(self._refused):
            self._try_again(name)
        with self.connection.channel() as channel:
            for name in self._own():
                if self._marks.another(channel, name):
                    raise ConnectionError(f"the queue {name} was deleted")
                try:
                    found = channel.queue_declare(name, passive=True).consumer_count
                except self.connection.channel_errors:
                    found = 0
                if not found:
                    raise ConnectionError(f"this worker no longer consumes the queue {name}")
            for queue in (*self.app.amqp.queues.consume_from.values(), *self._mailbox()):
                queue.exchange.declare(nowait=True, channel=channel)
                queue.queue_bind(nowait=True, channel=channel)
        runtime(self.app).note_owner(self._whose_broker())

    def _own(self) -> list[str]:
        """The queues that this worker consumes at present."""
        return [name for name in self._queues if name not in self._refused]

    def _select(self) -> None:
        """Let Celery consume these queues, in their order, from the next connection on."""
        queues = self.app.amqp.queues
        queues.deselect(self._queues)
        queues.consume_from.update({name: queues[name] for name in self._own()})

    def _leave_out(self, error: Exception) -> None:
        """Do without a queue that the broker refuses, so that the others are consumed.

        Another client may consume it exclusively, or this user may have lost its right to it.
        """
        if getattr(error, "code", None) not in _REFUSED:
            return
        text = str(getattr(error, "reply_text", ""))
        for name in self._own():
            if f"'{name}'" in text:
                self._refused.add(name)
                self._select()
                log.error(
                    "the broker refuses the queue %s (%s); the others are consumed, and this one "
                    "is tried every %d s: see who holds it, or what this user may do",
                    name,
                    text,
                    LOOK,
                )

    def _try_again(self, name: str) -> None:
        """Consume a refused queue again, if the broker now allows it."""
        try:
            # On a separate channel: the broker closes it if it refuses.
            with self.connection.channel() as channel:
                channel.basic_qos(0, 1, False)
                channel.basic_consume(name, no_ack=False, callback=lambda _: None)
        except self.connection.channel_errors as error:
            if getattr(error, "code", None) in _REFUSED:
                return
        self._refused.discard(name)
        self._select()
        log.warning("the queue %s is consumed again", name)
        raise ConnectionError(f"the queue {name} is to be consumed again")

    def _mailbox(self) -> Iterable[Any]:
        """The queues on which commands arrive."""
        return self.box.consumer.queues if self.box is not None and self.box.consumer else ()

    def _consumes(self, queue: str) -> bool:
        consumer = self.task_consumer
        if consumer is None or not consumer.consuming_from(queue):
            return False
        channel = consumer.channel
        if isinstance(channel, Channel):
            # Without room for a message the broker is not asked. But if nothing runs, there is
            # room; if a fault hides it, no work is ever done again.
            rests = self.pool.busy or self._keeper.full
            if self._reader is not None and queue in channel.apart:
                hears = self._reader.hears or (rests and self._room_for_wakeups() <= 0)
                return queue in channel.active_apart and hears
            asks = time.monotonic() - channel.answered < ANSWERED
            asks = asks or (rests and not channel.qos.can_consume())
            return queue in channel.active_queues and asks
        # py-amqp forgets the tag of a consumer that the broker has cancelled.
        return bool(channel.is_open and consumer._active_tags[queue] in channel.callbacks)

    def on_send_event_buffered(self) -> None:
        """Nothing: events are sent in batches. (Celery would send them at each turn.)"""

    def _wake_reader(self, app: Any, settings: Settings) -> WakeReader | None:
        """The reader of wake-ups; None if the broker is not one Redis, or not that of our settings
        (but of `celeryconfig.py`): then kombu reads them, one by one."""
        url = app.conf.get("broker_read_url") or app.conf["broker_url"]
        if ";" in url or url != of_kombu(settings.broker)[0]:
            return None
        if addresses.read(settings.broker).kind != "redis":
            return None
        timeout = app.conf["broker_connection_timeout"]
        return WakeReader(settings.broker, runtime(app).loop, self._room_for_wakeups, timeout)

    def _room(self) -> int:
        """How many messages the hub may take. None without a free slot, or bulk would start before
        live."""
        if self._keeper.full:
            return 0  # the next acknowledgement of its messages wakes the hub
        room = self._free()
        if room <= 0:
            # Check once more: a slot that became free in between would not wake the hub.
            self.pool.hub_waits()
            room = self._free()
        if room > 0 and self.pool.full:
            self.pool.full = False
            if self._reader is not None:
                self._reader.look_soon()
        return room

    def _room_for_wakeups(self) -> int:
        if self._keeper.full:
            return 0
        # A hub that found no slot gets the next one, before it is used for wake-ups.
        return self._free() - int(self.pool.full)

    def _free(self) -> int:
        free: int = self.pool.num_processes - len(state.reserved_requests)
        return free

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Close a broken connection, whatever kombu raises.

        Closing a Redis channel restores its messages, and raises an `AttributeError` if the
        connection for that is gone already: no reason to end the worker.
        """
        self._leave_out(exc)
        try:
            super().on_connection_error_after_connected(exc)
        except Exception as error:  # noqa: BLE001
            log.warning("a broken connection could not be closed (%s)", type(error).__name__)
        self._pause()

    def _pause(self) -> None:
        """Wait, after connections that broke at once, unless the worker is asked to stop."""
        now = time.monotonic()
        self._failures = self._failures + 1 if now - self._connected_at < LOOK else 0
        if self._failures:
            until = now + min(FIRST_PAUSE * 2 ** (self._failures - 1), LONGEST_PAUSE)
            while time.monotonic() < until:
                state.maybe_shutdown()
                time.sleep(STOPPED)

    def on_close(self) -> None:
        """Forget what this connection brought and no task has begun."""
        for _ in range(100):
            # Celery copies sets that the I/O loop's thread may change meanwhile.
            with suppress(RuntimeError):
                super().on_close()
                return

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], None]:
        """Check each message; only a valid one reaches Celery."""
        handle = super().create_task_handler(*args, **kwargs)
        check = Messages(self.app.tasks).check
        callbacks = self.on_task_message
        broken = (*self.connection_errors, *self.channel_errors)

        def received(message: Any) -> None:
            try:
                if not isinstance(message, Wakeup):
                    check(message)
            except Malformed as error:
                self.set_aside(message, str(error))
                return
            except Exception as error:  # noqa: BLE001 -- no fault of the broker's: it stays with us
                self.set_aside(message, f"it could not be checked ({type(error).__name__})")
                return
            try:
                if isinstance(message, Wakeup) and getattr(self, RESTORED, False):
                    # Acknowledging it sends nothing: Celery's promises would have nothing to do.
                    start = self.strategies[message.headers["task"]]
                    ends = message.ack_log_error, message.reject_log_error
                    start(message, None, *ends, callbacks)
                else:
                    handle(message)
            except broken:
                raise
            except Exception as error:  # noqa: BLE001 -- whatever it was, it must not stop us
                _forget(message)
                self.set_aside(message, f"it is not a valid task ({type(error).__name__})")

        return received

    def set_aside(self, message: Any, reason: str) -> None:
        """Put a message into quarantine; it is acknowledged once the ledger has it."""
        quarantined = QuarantineEntry.of(message, reason, self._queue_of(message))
        warn_of_junk(
            "a message on %s is set aside: %s (%d bytes)",
            quarantined.queue,
            reason,
            quarantined.size,
        )

        # The parsed form may take twenty times its size, and many wait for the ledger.
        message._decoded_cache = None
        if not isinstance(message.channel, Channel):
            message.body = b""  # the broker still has it, and delivers far ahead

        def kept() -> None:
            self.call_soon(_acknowledge, message)
            if self._reader is not None:
                self._reader.look_soon()  # there is room for junk again

        self._keeper.keep(quarantined, kept)

    def _queue_of(self, message: Any) -> str:
        """The queue of a message; empty if only its routing key can tell.

        On RabbitMQ the publisher chooses that key; it names a queue only in the default exchange.
        """
        tag = (message.delivery_info or {}).get("consumer_tag")
        tags = getattr(self.task_consumer, "_active_tags", {})
        return next((name for name, one in tags.items() if one == tag), "") if tag else ""

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """A body that kombu could not decompress."""
        self.set_aside(message, f"its body is not text ({type(exc).__name__})")

    def on_unknown_message(self, body: Any, message: Any) -> None:
        """Not reached, since messages are checked before; nor are the next two."""
        self.set_aside(message, "not a task message")

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        """A task that our workers do not have."""
        self.set_aside(message, "an unknown task")

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        """A task message that Celery refuses."""
        self.set_aside(message, "an invalid task message")

    def stop(self) -> None:
        """Stop consuming. RabbitMQ is waited for once, and not at each of Celery's steps."""
        watch_stop()  # a fault may be the reason, and no signal
        if self.connection is not None and not isinstance(self.connection.transport, Transport):
            try:
                self.connection.connection.leaving = True
                with self.connection.channel() as channel:
                    self._marks.remove(channel)
            except Exception:  # noqa: BLE001 -- it does not answer: that leaves nothing to be said
                with suppress(Exception):
                    self.connection.collect()
        super().stop()

    def shutdown(self) -> None:
        """Publish the last tasks' events for Flower, before the connection is closed."""
        with suppress(Exception):
            self._flush_events()
        super().shutdown()
        background(self.app).close()

    def call_soon_ack(self, p: Any, *args: Any, **kwargs: Any) -> Any:
        """Acknowledge, even if the connection of the message is closed.

        Celery expects the broker's errors here; kombu's closed Redis channels raise others
        (`AttributeError`), which would end the worker. The broker delivers again in any case.
        """

        message = p.__self__
        channel = message.channel
        if isinstance(channel, Channel) and channel.expendable(message):
            # Nothing is sent to the broker, so the hub need not be woken.
            return p(*args, **kwargs)

        def safely(*given: Any, **named: Any) -> None:
            try:
                p(*given, **named)
            except Exception as error:
                if self.blueprint.state == RUN and isinstance(error, self.connection_errors):
                    raise  # the loop reconnects
                log.warning("a message could not be acknowledged (%s)", type(error).__name__)

        return super().call_soon_ack(safely, *args, **kwargs)


def _forget(message: Any) -> None:
    """Give back the slot of a request that failed between Celery's count and the pool."""
    for _ in range(100):
        # The I/O loop's thread may change the set meanwhile.
        with suppress(RuntimeError):
            for request in [one for one in state.reserved_requests if one.message is message]:
                state.task_ready(request)
            return


def _acknowledge(message: Any) -> None:
    try:
        message.ack()
    except Exception as error:  # noqa: BLE001 -- delivered again, and kept under the same id
        log.warning("a message set aside was not acknowledged (%s)", type(error).__name__)

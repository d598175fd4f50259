"""Taking messages from the broker: what is no message of ours is set aside, and work goes on.

Set as Celery's `worker_consumer` and `task_cls`. Stock Celery logs a malformed message, arguments
and all, and drops it; or it raises, and the worker ends. Here each message is checked before
Celery's strategy sees it, and what fails goes to the quarantine (`quarantine.py`).
"""

import inspect
import logging
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import UnionType
from typing import Any, Union, get_args, get_origin

from celery.app.task import Task as CeleryTask
from celery.worker import state
from celery.worker.consumer import Consumer as CeleryConsumer
from celery.worker.request import Request as CeleryRequest
from kombu.exceptions import OperationalError
from kombu.utils.json import dumps

from worker import entry, vitals
from worker.job import MAX_JOB_BYTES
from worker.quarantine import Parcel, Warden
from worker.redis_broker import MALFORMED, REASONS, Channel
from worker.settings import Settings
from worker.wakeups import ATTEMPT, BODY, CANCEL, DELIVER, REGISTER

log = logging.getLogger(__name__)

HIDDEN = "(hidden)"
"""What Flower, events, `celery inspect` and logs show in place of arguments."""

#: A whole job as JSON, in JSON once more with every sign escaped, still fits.
MAX_BODY_BYTES = 8 * MAX_JOB_BYTES

#: Tasks whose argument is a request of anybody's.
_REQUESTS: Mapping[str, entry.Request] = {REGISTER: "register", CANCEL: "cancel"}

#: What a message of Celery's first protocol asks for besides.
_FOLLOWERS = ("callbacks", "errbacks", "chord", "taskset")

#: A request that came back so often has ended each worker that took it. Below RabbitMQ's own limit
#: (20, since its version 4), at which it would drop the request in silence.
MOST_RETURNS = 15

#: Seconds between two batches of Celery's events. Flower shows them as they come; each batch costs
#: as much as some twenty events do.
EVENTS = 0.1

#: An id becomes part of a key in Redis.
_LONGEST_ID = 255

#: Headers that are passed on. All else that Celery acts upon (eta, expires, time limits, retries,
#: a name of its own) is dropped: a delay held in this process's memory, or a message thrown away
#: for its age, is how a job gets lost; the ledger knows the delays and the deadline.
_KEPT = (
    *("lang", "origin", "root_id", "parent_id"),
    # Tracing that spans services.
    *("traceparent", "tracestate", "baggage", "sentry-trace"),
)


class Malformed(ValueError):  # noqa: N818
    """Raised for a message that is not as our tasks take it; says why, without its content."""


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
        expected = {name: _Task(task) for name, task in self.app.tasks.items()}
        broken = (*self.connection_errors, *self.channel_errors)

        def received(message: Any) -> None:
            try:
                _not_too_often(message)
                tidy(message, expected)
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


def _not_too_often(message: Any) -> None:
    # RabbitMQ counts how often a message came back from who did not acknowledge it. (A wake-up may
    # come as often as it likes: losing one is harmless, so the broker may drop it.)
    headers = message.headers if isinstance(message.headers, dict) else {}
    times = headers.get("x-delivery-count")
    if (
        isinstance(times, int)
        and times >= MOST_RETURNS
        and headers.get("task") not in {ATTEMPT, DELIVER}
    ):
        raise Malformed(f"it came back {times} times: no worker has lived to be done with it")


def tidy(message: Any, tasks: Mapping[str, "_Task"]) -> None:
    """Check a message and reduce its headers to what our tasks go by. Raises `Malformed`."""
    headers = message.headers
    if not isinstance(headers, dict):
        raise Malformed("its headers are no table")
    if (kind := headers.get(MALFORMED)) is not None:
        raise Malformed(REASONS.get(kind if isinstance(kind, str) else "", "malformed"))
    if "task" not in headers:
        headers = _by_first_protocol(message, headers)
    for name in ("task", "id"):
        value = headers.get(name)
        if not isinstance(value, str) or not value:
            raise Malformed(f"no header `{name}`")
        if len(value) > _LONGEST_ID or not value.isprintable():
            raise Malformed(f"a header `{name}` that names nothing")
    task = tasks.get(headers["task"])
    if task is None:
        raise Malformed("an unknown task")
    arguments = task.fit(*_arguments(message, headers["id"]))
    if request := _REQUESTS.get(headers["task"]):
        [argument] = arguments.values()
        _readable(request, argument, headers["id"])
    kept = {"task": headers["task"], "id": headers["id"]}
    for name in _KEPT:
        if isinstance(value := headers.get(name), str):
            kept[name] = value
    message.headers = kept


def _readable(request: entry.Request, argument: Any, id_: str) -> None:
    try:
        entry.read(request, argument, entry.Origin("task", id_))
    except entry.Unreadable as error:
        raise Malformed(f"its argument can't be answered: {error}") from None


def _by_first_protocol(message: Any, headers: dict[str, Any]) -> dict[str, Any]:
    """The headers of a message whose task stands in its body; the body becomes one of today's."""
    match _body(message):
        case {"task": task, "id": id_, **rest}:
            embed = {name: rest.get(name) for name in _FOLLOWERS}
            body = [rest.get("args") or [], rest.get("kwargs") or {}, embed]
            message.body = dumps(body).encode()
            message._decoded_cache = None
            return {**headers, "task": task, "id": id_}
        case _:
            return headers


def _arguments(message: Any, id_: str) -> tuple[list[Any], dict[str, Any]]:
    # By Celery's protocol 2: the body is [args, kwargs, embed].
    if message.body == (BODY % id_).encode():
        # As we spell wake-ups: known without reading.
        message._decoded_cache = ([id_], {}, None)
    match _body(message):
        case [list(args), dict(kwargs), dict() | None as embed]:
            if embed and any(embed.values()):
                raise Malformed("it wants other tasks called (callbacks, chain or chord)")
            return args, kwargs
        case _:
            raise Malformed("its body is not [args, kwargs, embed]")


def _body(message: Any) -> Any:
    if len(message.body or b"") > MAX_BODY_BYTES:
        raise Malformed(f"its body is larger than {MAX_BODY_BYTES} bytes")
    if message.content_type != "application/json":
        raise Malformed("its content type is not application/json")
    if str(message.content_encoding).lower() not in {"utf-8", "utf8"}:
        raise Malformed("its content encoding is not utf-8")
    try:
        return message.decode()
    except Exception:  # noqa: BLE001 -- nested too deep, a number too long, a marked value ...
        raise Malformed("its body is not JSON") from None


class _Task:
    """What a task takes, as its signature says."""

    def __init__(self, task: Any) -> None:
        self._signature = inspect.signature(task.run)
        parameters = self._signature.parameters.values()
        self._types = {one.name: _types(one.annotation) for one in parameters}

    def fit(self, args: list[Any], kwargs: dict[str, Any]) -> Mapping[str, Any]:
        """The arguments by name. Raises `Malformed` where they are not the task's."""
        if not kwargs and len(args) == len(self._types):
            found = dict(zip(self._types, args, strict=True))
        else:
            try:
                found = self._signature.bind(*args, **kwargs).arguments
            except TypeError:
                raise Malformed("its arguments are not those of the task") from None
        for name, value in found.items():
            wanted = self._types[name]
            if wanted and not isinstance(value, wanted):
                raise Malformed(f"its argument `{name}` is not of the task's type")
            if isinstance(value, str) and not _is_text(value):
                raise Malformed(f"its argument `{name}` is not Unicode")
        return found


def _types(annotation: Any) -> tuple[type, ...]:
    """What an annotation wants, as far as `isinstance` can tell."""
    options = get_args(annotation) if get_origin(annotation) in {Union, UnionType} else [annotation]
    found = tuple(get_origin(one) or one for one in options)
    plain = all(isinstance(one, type) and one is not inspect.Parameter.empty for one in found)
    return found if plain else ()


def _is_text(value: str) -> bool:
    # JSON can spell half of a surrogate pair, which nothing can write.
    return value.isascii() or not any("\ud800" <= sign <= "\udfff" for sign in value)


def _acknowledge(message: Any) -> None:
    try:
        message.ack()
    except Exception as error:  # noqa: BLE001 -- delivered again, and kept under the same id
        log.warning("a message set aside was not acknowledged (%s)", type(error).__name__)

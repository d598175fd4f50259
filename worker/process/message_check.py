"""Checks that messages fit our tasks; `Malformed` names what does not.

Anybody may have put anything into our queues. A message that passes cannot make Celery's strategy
fail, and contains nothing by which a job could get lost.
"""

import inspect
from collections.abc import Mapping
from types import UnionType
from typing import Any, Union, get_args, get_origin

from kombu.utils.json import dumps

from regworker.domain import request as entry
from regworker.domain.job import MAX_JOB_BYTES
from worker.broker.envelopes import MALFORMED, MAX_BODY_BYTES, REASONS
from worker.broker.wakeups import ATTEMPT, BODY, CANCEL, DELIVER, REGISTER

#: Tasks whose argument is a request from any client.
_REQUESTS: Mapping[str, entry.Request] = {REGISTER: "register", CANCEL: "cancel"}

#: Further fields of a message of Celery's first protocol.
_FOLLOWERS = ("callbacks", "errbacks", "chord", "taskset")

#: A request that was returned so often has ended each worker that took it. Below RabbitMQ's own
#: limit (20, since its version 4), at which it would drop the request silently.
MOST_RETURNS = 15

#: An id becomes part of a key in Redis.
_LONGEST_ID = 255

#: Bytes of a wake-up, which contains only an id. Hundreds wait in a worker's memory.
MAX_WAKE_BYTES = 4096

#: Celery sends about twenty.
_MOST_HEADERS = 100

#: Values in a request: a job of the largest size can hold so many `[],`. Each takes up to a hundred
#: times as much memory as characters.
_MOST_VALUES = MAX_JOB_BYTES // 3

#: Headers that are passed on. All others that Celery acts on (eta, expires, time limits, retries, a
#: display name) are dropped: a delay held in this process's memory, or a message dropped for its
#: age, could lose a job; the ledger knows the delays and the deadline.
_KEPT = (
    *("lang", "origin", "root_id", "parent_id"),
    # Tracing that spans services.
    *("traceparent", "tracestate", "baggage", "sentry-trace"),
)


class Malformed(ValueError):  # noqa: N818
    """Raised for a message that our tasks cannot take; says why, without its content."""


def built_in(task: str) -> bool:
    """Whether a task is one of Celery's own.

    None of them is used here, and `celery.chord_unlock` sends itself again for ever.
    """
    return task.startswith("celery.")


class Messages:
    """The messages that an app's tasks take."""

    def __init__(self, tasks: Mapping[str, Any]) -> None:
        self._tasks = {name: _Task(task) for name, task in tasks.items() if not built_in(name)}

    def check(self, message: Any) -> None:
        """Check a message and reduce its headers to those for our tasks. Raises `Malformed`."""
        _not_too_often(message)
        headers = message.headers
        if not isinstance(headers, dict):
            raise Malformed("its headers are not a table")
        if len(headers) > _MOST_HEADERS:
            raise Malformed(f"it has more than {_MOST_HEADERS} headers")
        if (kind := headers.get(MALFORMED)) is not None:
            raise Malformed(REASONS.get(kind if isinstance(kind, str) else "", "malformed"))
        if headers.get("compression"):
            raise Malformed("it is compressed: content is not unpacked before its size is known")
        if "task" not in headers:
            headers = _by_first_protocol(message, headers)
        for name in ("task", "id"):
            value = headers.get(name)
            if not isinstance(value, str) or not value:
                raise Malformed(f"no header `{name}`")
            if len(value) > _LONGEST_ID or not value.isprintable():
                raise Malformed(f"an empty header `{name}`")
        task = self._tasks.get(headers["task"])
        if task is None:
            raise Malformed("an unknown task")
        request = _REQUESTS.get(headers["task"])
        if request is None and len(message.body) > MAX_WAKE_BYTES:
            raise Malformed(f"it is a wake-up, and larger than {MAX_WAKE_BYTES} bytes")
        arguments = task.fit(*_arguments(message, headers["id"]))
        if request:
            [argument] = arguments.values()
            # As text, which takes little memory: it may wait with a hundred others.
            content = _readable(request, argument, headers["id"])
            message._decoded_cache = ([content.decode()], {}, None)
        kept = {"task": headers["task"], "id": headers["id"]}
        for name in _KEPT:
            if isinstance(value := headers.get(name), str):
                kept[name] = value
        message.headers = kept
        message.properties.pop("application_headers", None)  # py-amqp's own, as received


def _not_too_often(message: Any) -> None:
    # RabbitMQ counts how often an unacknowledged message was returned. (A wake-up may be returned
    # any number of times: losing one is harmless, so the broker may drop it.)
    headers = message.headers if isinstance(message.headers, dict) else {}
    times = headers.get("x-delivery-count")
    if (
        isinstance(times, int)
        and times >= MOST_RETURNS
        and headers.get("task") not in {ATTEMPT, DELIVER}
    ):
        raise Malformed(f"it came back {times} times: no worker has survived it")


def _readable(request: entry.Request, argument: Any, id_: str) -> bytes:
    """A request as JSON."""
    try:
        read = entry.read(request, argument, entry.Origin("task", id_))
    except entry.Unreadable as error:
        raise Malformed(f"its argument cannot be answered: {error}") from None
    if len(read.content) > MAX_WAKE_BYTES and _crowded(read.given):
        raise Malformed(f"its argument holds more than {_MOST_VALUES} values")
    return read.content


def _crowded(value: Any) -> bool:
    pending, seen = [value], 0
    while pending:
        one = pending.pop()
        if isinstance(one, Mapping):
            pending += one.values()
        elif isinstance(one, list | tuple):
            pending += one
        seen += 1
        if seen + len(pending) > _MOST_VALUES:
            return True
    return False


def _by_first_protocol(message: Any, headers: dict[str, Any]) -> dict[str, Any]:
    """The headers of a message of Celery's protocol 1, whose body names the task; the body is
    converted to protocol 2."""
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
    # By Celery's protocol 2, the body is [args, kwargs, embed].
    if message.body == (BODY % id_).encode():
        # Our own form of a wake-up: no parsing is needed.
        message._decoded_cache = ([id_], {}, None)
    match _body(message):
        case [list(args), dict(kwargs), dict() | None as embed]:
            if embed and any(embed.values()):
                raise Malformed("it asks for other tasks (callbacks, chain or chord)")
            if embed:
                message._decoded_cache = (args, kwargs, None)  # it may contain thousands of names
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
    """The parameters of a task, from its signature."""

    def __init__(self, task: Any) -> None:
        self._signature = inspect.signature(task.run)
        parameters = self._signature.parameters.values()
        self._types = {one.name: _types(one.annotation) for one in parameters}

    def fit(self, args: list[Any], kwargs: dict[str, Any]) -> Mapping[str, Any]:
        """The arguments by name. Raises `Malformed` if they do not fit the task."""
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
    """The types of an annotation, as far as `isinstance` can check them."""
    options = get_args(annotation) if get_origin(annotation) in {Union, UnionType} else [annotation]
    found = tuple(get_origin(one) or one for one in options)
    plain = all(isinstance(one, type) and one is not inspect.Parameter.empty for one in found)
    return found if plain else ()


def _is_text(value: str) -> bool:
    # JSON can contain half of a surrogate pair, which cannot be encoded.
    return value.isascii() or not any("\ud800" <= sign <= "\udfff" for sign in value)

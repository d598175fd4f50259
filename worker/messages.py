"""Messages as our tasks take them; what is none of ours is told by `Malformed`.

Anybody may have put anything into our queues. A message that passes here is one that Celery's
strategy cannot stumble over, and says nothing that a job could get lost by.
"""

import inspect
from collections.abc import Mapping
from types import UnionType
from typing import Any, Union, get_args, get_origin

from kombu.utils.json import dumps

from worker import entry
from worker.job import MAX_JOB_BYTES
from worker.redis_broker import MALFORMED, REASONS
from worker.wakeups import ATTEMPT, BODY, CANCEL, DELIVER, REGISTER

#: A whole job as JSON, in JSON once more with every sign escaped, still fits.
MAX_BODY_BYTES = 8 * MAX_JOB_BYTES

#: Tasks whose argument is a request of anybody's.
_REQUESTS: Mapping[str, entry.Request] = {REGISTER: "register", CANCEL: "cancel"}

#: What a message of Celery's first protocol asks for besides.
_FOLLOWERS = ("callbacks", "errbacks", "chord", "taskset")

#: A request that came back so often has ended each worker that took it. Below RabbitMQ's own limit
#: (20, since its version 4), at which it would drop the request in silence.
MOST_RETURNS = 15

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


class Messages:
    """The messages that an app's tasks take."""

    def __init__(self, tasks: Mapping[str, Any]) -> None:
        self._tasks = {name: _Task(task) for name, task in tasks.items()}

    def check(self, message: Any) -> None:
        """Check a message and reduce its headers to what our tasks go by. Raises `Malformed`."""
        _not_too_often(message)
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
        task = self._tasks.get(headers["task"])
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

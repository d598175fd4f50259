"""The way of a wake-up through Celery: `attempt` and `deliver`, from a checked message to its task.

Celery's own way serves any task: with a delay, an expiry, a rate limit, a chain, a stored result. A
wake-up has none of these, and its way would take a tenth of a job's CPU. What others see of a task
stays as it is: its events, `celery inspect`, its signals.
"""

import time
from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import Any

from celery import signals, states
from celery.app import trace
from celery.exceptions import Ignore, Reject, Retry
from celery.utils.saferepr import saferepr
from celery.worker import state
from celery.worker.strategy import default

from worker.process.consumer import HIDDEN, Task, TaskRequest

#: With a receiver of any of these, Celery's own tracer runs the tasks: receivers may use
#: `task.request`, `celery.current_task`, and the order of the signals.
_HEARD = (
    *(signals.task_prerun, signals.task_postrun, signals.task_success),
    *(signals.task_retry, signals.task_failure, signals.task_internal_error),
)

#: Methods of a task that `task_annotations` may set, and that expect what Celery's tracer prepares.
_HOOKS = ("before_start", "on_success", "on_failure", "on_retry", "after_return")


class WakeRequest(TaskRequest):
    """A wake-up's request; what all of a task have in common are attributes of a subclass."""

    _decoded = _utc = _ignore_result = True
    _eta = _expires = _content_type = _content_encoding = None

    def __init__(self, message: Any, *on_end: Callable[..., None]) -> None:
        """`on_end`: how the message is acknowledged, and how it is rejected."""
        headers = message.headers
        self._message = message
        self._on_ack, self._on_reject = on_end
        self.id = headers["id"]
        self._root_id, self._parent_id = headers.get("root_id"), headers.get("parent_id")
        self._args, self._kwargs, _ = self._body = message.payload
        self._argsrepr = f"({self.id!r},)" if self._args == [self.id] else HIDDEN
        self._kwargsrepr = HIDDEN if self._kwargs else "{}"

    @property
    def delivery_info(self) -> dict[str, Any]:
        """Where its message came from, in Celery's form."""
        info, properties = self._message.delivery_info, self._message.properties
        return {
            "exchange": info.get("exchange"),
            "routing_key": info.get("routing_key"),
            "priority": properties.get("priority"),
            "redelivered": info.get("redelivered", False),
        }

    @cached_property
    def _request_dict(self) -> dict[str, Any]:
        properties = self._message.properties
        return {
            **self._message.headers,
            "properties": properties,
            "reply_to": properties.get("reply_to"),
            "correlation_id": properties.get("correlation_id"),
            "hostname": self._hostname,
            "delivery_info": self.delivery_info,
            "args": self._args,
            "kwargs": self._kwargs,
            "argsrepr": self._argsrepr,
            "kwargsrepr": self._kwargsrepr,
        }

    @cached_property
    def _payload(self) -> Any:
        return self._body

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """Its task starts."""
        self.worker_pid, self.time_start = pid, time.time()
        state.requests[self.id] = self
        state.active_requests.add(self)
        state.total_count[self.name] += 1
        state.all_total_count[0] += 1
        self.acknowledge()
        self.send_event("task-started")

    def on_success(self, failed__retval__runtime: tuple[Any, ...], **kwargs: Any) -> None:
        """Its task has ended."""
        failed, shown, runtime = failed__retval__runtime
        if failed:
            super().on_success(failed__retval__runtime, **kwargs)
            return
        state.task_ready(self)
        self.send_event("task-succeeded", result=shown, runtime=runtime)


def strategy(task: Any, app: Any, consumer: Any) -> Callable[..., None]:
    """The task's `Strategy`: how its checked messages start it, on one connection.

    Celery's own, if `celeryconfig.py` asks for what only that can do.
    """
    if (
        _hooked(task)
        or not task.ignore_result
        or task.acks_late
        or consumer.task_buckets[task.name]
    ):
        found: Callable[..., None] = default(task, app, consumer)
        return found
    eventer, pool = consumer.event_dispatcher, consumer.pool
    sends_events = eventer and eventer.enabled and task.send_events

    class OfThisTask(WakeRequest):
        _type = name = task.name
        _app, _task, _eventer, _hostname = app, task, eventer, consumer.hostname
        _connection_errors = consumer.connection_errors

    def received(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any) -> None:
        request = OfThisTask(message, ack, reject)
        signals.task_received.send(sender=consumer, request=request)
        if sends_events:
            eventer.send(
                "task-received",
                uuid=request.id,
                name=request.name,
                args=request._argsrepr,
                kwargs=request._kwargsrepr,
                root_id=request._root_id,
                parent_id=request._parent_id,
                retries=0,
                eta=None,
                expires=None,
            )
        state.task_reserved(request)
        for callback in callbacks:
            callback(request)
        pool.on_apply(run, (request,), {}, request.on_success, request.on_accepted)

    return received


def _hooked(task: Any) -> bool:
    # Celery replaces its own `__call__` in a worker, so that its own check would always find one.
    called = any("__call__" in vars(one) for one in type(task).__mro__ if one is not trace.BaseTask)
    hooked = any(trace.task_has_custom(task, name) for name in _HOOKS)
    return hooked or called or task.Request != Task.Request


def run(request: WakeRequest) -> tuple[int, Any, float | None]:
    """Run the task as Celery's tracer would; return what that returns."""
    task = request.task
    if any(signal.receivers for signal in _HEARD):
        traced: tuple[int, Any, float | None] = trace.fast_trace_task(
            request.name, request.id, request.request_dict, request.body, None, None
        )
        return traced
    begun = time.monotonic()
    try:
        result = task.run(*request.args, **request.kwargs)
    except Exception as error:  # noqa: BLE001 -- reported as Celery does
        return 1, _ended(task, request, error), None
    show = _shown if type(result) is str else saferepr
    return 0, show(result, task.resultrepr_maxsize), time.monotonic() - begun


def _ended(task: Any, request: WakeRequest, error: Exception) -> Any:
    if isinstance(error, Ignore | Reject):
        found = trace.ExceptionInfo(internal=True)
        trace.TraceInfo(states.IGNORED, error).handle_ignore(task, request._context)
    else:
        kind = states.RETRY if isinstance(error, Retry) else states.FAILURE
        found = trace.TraceInfo(kind, error).handle_error_state(task, request._context)
    trace.traceback_clear(error)
    return found


@lru_cache(maxsize=64)
def _shown(result: str, length: int) -> str:
    # Few results differ, and they are short.
    found: str = saferepr(result, length)
    return found

"""The way of a wake-up through Celery: for others it must look like Celery's own."""

import json
import logging
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, current_task, signals
from celery.app import trace
from celery.concurrency.base import apply_target
from celery.exceptions import Ignore, Reject
from celery.worker import state
from celery.worker.request import Request
from celery.worker.strategy import default
from kombu.message import Message

from worker.broker.wakeups import QUEUES
from worker.process.consumer import HIDDEN, Task, TaskRequest
from worker.process.message_check import Messages
from worker.process.tasks import TriesAgain
from worker.process.wake_requests import run, strategy

ID = "0b0f9d3c-1111-5222-8333-444455556666"
ENDS: dict[str, Any] = {
    "done": "registered",
    "long": "rejected: " + "é'\n" * 600,
    "later": TriesAgain("queued: busy"),
    "superfluous": Ignore(),
    "back": Reject("no", requeue=True),
    "dropped": Reject("no", requeue=False),
    "fault": ValueError("a fault"),
}
"""What a task returns or raises, by its argument."""


@pytest.fixture
def app() -> Iterator[Celery]:
    """An app with a task like `attempt`."""
    app = Celery("woken", set_as_current=False, broker="memory://", task_cls=Task)
    app.conf.update(task_ignore_result=True)

    @app.task(name="wake", shared=False)  # type: ignore[untyped-decorator]
    def wake(job_id: str) -> Any:
        end = ENDS[job_id]
        if isinstance(end, BaseException):
            raise end
        return end

    before = list(trace._localized)
    trace.setup_worker_optimizations(app, "here")
    app.tasks["wake"].__trace__ = trace.build_tracer("wake", app.tasks["wake"], app=app)
    yield app
    trace.reset_worker_optimizations(app)
    trace._localized[:] = before
    state.reset_state()


class Consumer:
    """As much of the consumer as a strategy uses: it is also the pool, and takes events."""

    hostname, connection_errors, disable_rate_limits, enabled = "here", (OSError,), False, True
    timer = SimpleNamespace(call_at=None)
    controller = SimpleNamespace(state=SimpleNamespace(revoked=()))
    apply_eta_task = _limit_task = _limit_post_eta = None

    def __init__(self, app: Celery) -> None:
        self.pool = self.event_dispatcher = self
        self.task_buckets: dict[str, Any] = dict.fromkeys(app.tasks)
        self.seen: list[Any] = []
        self.requests: list[Any] = []

    def send(self, type: str, **fields: Any) -> None:  # noqa: A002
        """Take an event."""
        if "runtime" in fields:
            assert fields.pop("runtime") >= 0
        if text := fields.get("traceback"):
            fields["traceback"] = text.splitlines()[-1]
        known = (len(state.requests), len(state.reserved_requests), len(state.active_requests))
        self.seen.append((type, fields, known))

    def on_task_request(self, request: Request) -> None:
        """Celery's strategy hands a request over like this."""
        request.execute_using_pool(self)

    def apply_async(self, target: Any, args: Any, **options: Any) -> None:
        """The pool's way in for Celery's requests."""
        self.on_apply(target, args, {}, options["callback"], options["accept_callback"])

    def on_apply(self, target: Any, args: Any, kwargs: Any, callback: Any, accept: Any) -> None:
        """Run the task, as our pool does."""
        self.requests.append(accept.__self__)
        apply_target(target, args, kwargs, callback, accept)
        self.seen.append((dict(state.total_count), list(state.all_total_count)))

    def log(self, *what: Any) -> None:
        """What becomes of the message."""
        self.seen.append(what[-1] if isinstance(what[-1], bool) else "acknowledged")


def message(job_id: str = ID, body: Any = None, **headers: str) -> Message:
    """A checked message."""
    given = Message(
        json.dumps(body or [[job_id], {}, {}]),
        headers={"task": "wake", "id": job_id, "root_id": job_id, "lang": "py", **headers},
        content_type="application/json",
        content_encoding="utf-8",
        properties={"correlation_id": job_id, "priority": 0, "reply_to": "someone"},
        delivery_info={"exchange": "", "routing_key": QUEUES["live"]},
    )
    Messages({"wake": SimpleNamespace(run=lambda job_id: None)}).check(given)
    return given


def story(way: Any, app: Celery, job_id: str) -> list[Any]:
    """Everything that others see of a wake-up."""
    state.reset_state()
    consumer = Consumer(app)
    receive = way(app.tasks["wake"], app, consumer)
    receive(message(job_id), None, consumer.log, consumer.log, [consumer.seen.append])
    [_, request, *rest] = consumer.seen
    assert request.id == job_id
    left = [state.requests, set(state.reserved_requests), set(state.active_requests)]
    return [consumer.seen[0], *rest, left, request.acknowledged, request.worker_pid]


@pytest.mark.parametrize("job_id", ENDS)
def test_others_see_the_same_as_on_celerys_own_way(
    app: Celery, job_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Events with all their fields, counters, acknowledgements, and log lines."""
    stories = []
    with caplog.at_level(logging.WARNING):
        for way in (strategy, default):
            caplog.clear()
            stories.append((story(way, app, job_id), [one.msg for one in caplog.records]))
    ours, celerys = stories
    assert ours == celerys


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"body": [[], {"job_id": ID}, {"callbacks": None}]},
        {"body": [["another"], {}, None], "parent_id": "x", "origin": "gen1@there"},
    ],
)
def test_a_request_is_what_celerys_own_would_be(app: Celery, given: dict[str, Any]) -> None:
    """`celery inspect`, signals and Celery's tracer read any of its attributes."""
    consumer = Consumer(app)
    strategy(app.tasks["wake"], app, consumer)(message(**given), None, print, repr, [])
    [ours] = consumer.requests
    theirs = TaskRequest(
        ours.message, on_ack=print, hostname="here", eventer=consumer, app=app,
        connection_errors=(OSError,), task=app.tasks["wake"], on_reject=repr,
        headers=ours.message.headers,
    )  # fmt: skip
    names = [name for name, one in vars(Request).items() if isinstance(one, property)]
    assert len(names) > 20
    assert {n: getattr(ours, n) for n in names if n != "body"} == {
        n: getattr(theirs, n) for n in names if n != "body"
    }
    assert list(ours.body)[:2] == list(theirs.body)[:2]
    assert vars(ours._context) == vars(theirs._context)
    unlike = {"time_start", "worker_pid", "acknowledged"}
    shown, wanted = ours.info(), theirs.info()
    assert {n: one for n, one in shown.items() if n not in unlike} == {
        n: one for n, one in wanted.items() if n not in unlike
    }
    assert ("another" in str(shown)) is False
    assert (HIDDEN in str(shown)) == bool(given)
    assert weakref.ref(ours)() is ours


@pytest.mark.parametrize("signal", ["task_prerun", "task_postrun", "task_success"])
def test_a_receiver_of_a_signal_finds_the_task(app: Celery, signal: str) -> None:
    """As on Celery's own way: the current task, and its request."""
    found = []

    def receive(sender: Any, **_: Any) -> None:
        found.append((current_task.name, sender.request.id, sender.request.delivery_info))

    getattr(signals, signal).connect(receive)
    try:
        for way in (strategy, default):
            story(way, app, "done")
    finally:
        getattr(signals, signal).disconnect(receive)
    ours, celerys = found
    assert ours == celerys
    assert ours[:2] == ("wake", "done")


def test_a_receiver_of_a_received_task_gets_its_request(app: Celery) -> None:
    """The signal that is sent before the task starts."""
    found = []

    def receive(sender: Any, request: Any, **_: Any) -> None:
        found.append((type(sender), request.id, request.args))

    signals.task_received.connect(receive)
    try:
        story(strategy, app, "done")
    finally:
        signals.task_received.disconnect(receive)
    assert found == [(Consumer, "done", ["done"])]


@pytest.mark.parametrize(
    "asked",
    [
        *("ignore_result", "acks_late", "rate limit", "Request"),
        *("before_start", "on_success", "on_failure", "on_retry", "after_return", "__call__"),
    ],
)
def test_what_only_celerys_way_can_do_is_done(app: Celery, asked: str) -> None:
    """An operator's `celeryconfig.py` may ask for stored results, late acknowledgement, a pace, a
    hook."""
    consumer, task = Consumer(app), app.tasks["wake"]
    if asked == "rate limit":
        consumer.task_buckets["wake"] = True
    elif asked == "Request":
        task.Request = f"{__name__}:AnotherRequest"
    elif asked not in {"ignore_result", "acks_late"}:
        setattr(type(task), asked, lambda *_: None)
    else:
        setattr(task, asked, asked != "ignore_result")
    found = strategy(task, app, consumer)
    assert found.__module__ == default.__module__


class AnotherRequest(Request):  # type: ignore[misc]
    """An operator's own."""


def test_a_result_that_is_no_text_is_shown_too(app: Celery) -> None:
    """A wrapper of `run` may return anything."""
    ENDS["list"] = [1, {"a": []}]
    found = run(SimpleNamespace(task=app.tasks["wake"], args=["list"], kwargs={}))  # type: ignore[arg-type]
    assert found[:2] == (0, "[1, {'a': []}]")

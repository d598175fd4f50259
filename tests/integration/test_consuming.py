"""A worker that does not consume one of its queues is unhealthy, or consumes it again by itself."""

import json
import os
import signal
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from kombu import Connection

from regworker.ledger.snapshot import snapshot
from tests.integration.brokers import BROKERS, Broken, broken
from tests.integration.installation import PATIENCE
from tests.integration.jobs import skypostal
from worker.broker.wakeups import QUEUES, REQUESTS
from worker.cli.local import stack

#: Read by the worker like an operator's settings. At SIGUSR2 it stops consuming a queue, as with
#: Celery's `cancel_consumer`; at SIGUSR1 it consumes the queue again.
DEAF = """
import signal as _signal
from celery import signals as _signals

@_signals.worker_ready.connect(weak=False)
def _ready(sender, **_):
    def cancel(*_):
        sender.call_soon(sender.cancel_task_queue, {queue!r})
    def again(*_):
        sender.call_soon(sender.add_task_queue, {queue!r})
    _signal.signal(_signal.SIGUSR2, cancel)
    _signal.signal(_signal.SIGUSR1, again)
"""


def page(it: Broken, path: str) -> tuple[int, dict[str, Any]]:
    """The worker's answer over HTTP."""
    workers = it.here.ledger(snapshot()).workers
    if not workers:
        return 0, {}  # it has just started
    url = f"http://127.0.0.1:{workers[0].metrics.rpartition(':')[2]}{path}"
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def until(it: Broken, status: int) -> None:
    """Wait until the worker is healthy and ready (200), or neither (503)."""
    for path in ("/health", "/ready"):
        stack.until(
            lambda path=path: page(it, path)[0] == status,  # type: ignore[misc]
            f"{path} answers {status}",
            PATIENCE,
        )


@pytest.mark.parametrize("queue", [REQUESTS, *QUEUES.values()])
@pytest.mark.parametrize("broker", BROKERS)
def test_a_worker_that_does_not_consume_a_queue_is_not_well(
    tmp_path: Path, broker: str, queue: str
) -> None:
    """Although its loop runs, its events are sent and its other queues are consumed."""
    (tmp_path / "celeryconfig.py").write_text(DEAF.format(queue=queue))
    with broken(tmp_path, broker, metrics_port=0, health_patience=4) as it:
        until(it, 200)
        os.kill(it.here.workers[0].pid, signal.SIGUSR2)
        until(it, 503)
        stack.until(
            lambda: page(it, "/health")[1].get("silent", {}).keys() == {"consumer"},
            "only the consumer is silent",
            PATIENCE,
        )
        os.kill(it.here.workers[0].pid, signal.SIGUSR1)
        until(it, 200)
        it.goes_on()


@pytest.mark.parametrize("queue", [REQUESTS, *QUEUES.values()])
def test_a_worker_whose_queue_is_deleted_makes_it_anew(tmp_path: Path, queue: str) -> None:
    """If the next wake-up recreated the queue first, the old consumer might get nothing."""
    with broken(tmp_path, "rabbitmq", metrics_port=0, health_patience=4) as it:
        with Connection(it.url) as connection:
            connection.default_channel.queue_delete(queue)
        it.goes_on()
        until(it, 200)
        for lane in ("live", "bulk"):
            event = it.here.run(skypostal(lane=lane))
            assert event["type"] == "registration.registered"


def test_a_worker_whose_redis_does_not_answer_is_not_well(tmp_path: Path) -> None:
    """The connection on which it waits for messages is open, and silent."""
    own = stack.start_valkey(None)
    try:
        options = {"broker_url": own.connection_url, "metrics_port": 0, "health_patience": 4}
        with broken(tmp_path, "redis", **options) as it:
            until(it, 200)
            assert own._process is not None
            own._process.send_signal(signal.SIGSTOP)
            try:
                until(it, 503)
            finally:
                own._process.send_signal(signal.SIGCONT)
            until(it, 200)
            it.goes_on()
    finally:
        own.stop(timeout=PATIENCE)


#: Read when the worker starts: so many requests fail between Celery's count and the pool.
FAILING = """
from celery import signals as _signals

@_signals.worker_ready.connect(weak=False)
def fail(sender, **_):
    left = list(range(4))
    def failing(request):
        if left:
            left.pop()
            raise RuntimeError("a fault")
    sender.on_task_message.add(failing)
"""


@pytest.mark.parametrize("broker", BROKERS)
def test_a_request_that_fails_before_its_task_takes_no_slot(tmp_path: Path, broker: str) -> None:
    """It is set aside, and its alarm wakes the job again."""
    (tmp_path / "celeryconfig.py").write_text(FAILING)
    with broken(tmp_path, broker, concurrency=2) as it:
        it.here.wait_for_line("ready.")
        receipts = list(it.here.producer.enqueue_many(skypostal() for _ in range(6)))
        for receipt in receipts:
            ended = it.here.producer.wait(receipt.job_id, PATIENCE)  # type: ignore[union-attr]
            assert ended["type"] == "registration.registered"
        assert len(it.quarantine()) == 4


#: Read when the worker starts; at SIGUSR2 it loses all its slots.
LOST = """
import signal as _signal
from celery import signals as _signals
from celery.worker import state as _state

class _Request:
    message = id = None

_kept = [_Request() for _ in range(100)]

@_signals.worker_ready.connect(weak=False)
def prepare(**_):
    _signal.signal(_signal.SIGUSR2, lambda *_: _state.reserved_requests.update(_kept))
"""


def test_a_worker_whose_slots_are_taken_by_nothing_is_not_well(tmp_path: Path) -> None:
    """Whatever the fault was: it would take no job again."""
    (tmp_path / "celeryconfig.py").write_text(LOST)
    with broken(tmp_path, "redis", metrics_port=0, health_patience=4) as it:
        until(it, 200)
        os.kill(it.here.workers[0].pid, signal.SIGUSR2)
        until(it, 503)

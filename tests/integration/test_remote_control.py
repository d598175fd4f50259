"""Anybody who may send commands to workers gets answers, and changes nothing."""

import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from redis import Redis

from tests.integration.brokers import BROKERS, Broken, Message, broken
from tests.integration.installation import PATIENCE
from worker.broker.wakeups import QUEUES, REQUESTS
from worker.celery import new_app
from worker.cli.local import stack
from worker.process.remote_control import READING

#: Commands that Celery's own workers carry out, with arguments that would have an effect.
STEERING: dict[str, dict[str, Any]] = {
    "shutdown": {},
    "pool_restart": {"reload": True},
    "pool_grow": {"n": 500},
    "pool_shrink": {"n": 500},
    "autoscale": {"max": 1, "min": 0},
    "rate_limit": {"task_name": "registrations.attempt", "rate_limit": "1/h"},
    "time_limit": {"task_name": "registrations.attempt", "hard": 1, "soft": 1},
    "cancel_consumer": {"queue": QUEUES["live"]},
    "add_consumer": {"queue": "canary"},
    "revoke": {"task_id": ["canary"], "terminate": True},
    "revoke_by_stamped_headers": {"headers": {"canary": ["x"]}},
    "terminate": {"signal": "KILL", "task_id": ["canary"]},
    "election": {"id": "1", "topic": "task", "action": {"task": "canary"}},
    "disable_events": {},
    "heartbeat": {},
    "hello": {"from_node": "canary", "revoked": {"canary": 1.0}},
    "objgraph": {"num": 1},
    "memsample": {},
    "memdump": {},
    "report": {},
    "query_task": {"ids": ["canary"]},
    "clock": {},
    "dump_conf": {},
    "canary": {},
}

#: In the broker's URL; no answer may contain it.
SECRET = "canary-password"


@pytest.fixture(scope="module", params=BROKERS)
def shared(request: Any, tmp_path_factory: Any) -> Iterator[Broken]:
    """One installation for each broker."""
    with broken(tmp_path_factory.mktemp(request.param), request.param) as running:
        yield running


def ask(it: Broken, command: str, **arguments: Any) -> Any:
    """The worker's answer to a command."""
    found: list[Any] = []
    with closing(new_app(it.here.producer.settings)) as app:

        def answered() -> bool:
            # A command that is sent before the worker has subscribed is lost.
            found[:] = app.control.broadcast(
                command, arguments=arguments, reply=True, timeout=10, limit=1
            )
            return bool(found)

        stack.until(answered, f"an answer to {command}", PATIENCE)
    [answer] = found[0].values()
    return answer


def state(it: Broken) -> Any:
    """What a command could change: queues, slots, limits, revoked tasks."""
    stats = ask(it, "stats")
    return (
        sorted(one["name"] for one in ask(it, "active_queues")),
        stats["pool"]["max-concurrency"],
        stats["pid"],
        ask(it, "registered"),
        ask(it, "revoked"),
    )


@pytest.mark.parametrize("command", STEERING)
def test_a_command_that_would_steer_a_worker_is_refused(shared: Broken, command: str) -> None:
    """The worker continues as before, and answers with the refusal."""
    before = state(shared)
    assert "refused" in ask(shared, command, **STEERING[command])["error"]
    shared.goes_on()
    assert state(shared) == before
    assert before[0] == sorted([REQUESTS, *QUEUES.values()])


def test_every_command_that_celery_knows_is_answered_or_refused(shared: Broken) -> None:
    """A new command of a later Celery is refused until somebody has reviewed it."""
    import celery.worker.control as own

    assert set(own.Panel.data) <= READING | STEERING.keys() | {
        *("enable_events", "dump_active", "dump_reserved", "dump_revoked"),
        *("dump_schedule", "dump_tasks"),
    }
    for command in own.Panel.data:
        if command not in READING | {"enable_events"}:
            assert "refused" in ask(shared, command)["error"]


@pytest.mark.parametrize("command", sorted(READING))
def test_what_flower_asks_for_is_answered(shared: Broken, command: str) -> None:
    """Arguments are ignored: they could name anything of a task."""
    answer = ask(shared, command, taskinfoitems=["app", "__globals__"], safe=False, type="x")
    assert "error" not in answer
    assert "__globals__" not in json.dumps(answer)


def test_the_commands_are_all_that_celerys_registry_has_left(shared: Broken) -> None:
    """`celery.worker.control.Panel`, in the worker's process."""
    tasks = ask(shared, "registered")
    assert not [name for name in tasks if name.startswith("celery.")]


@pytest.mark.parametrize("url", ["redis://:{}@{}", "redis://:{}@{};redis://:{}@{}"])
def test_no_answer_holds_a_password(tmp_path: Any, url: str) -> None:
    """Neither the broker's password nor that of a fallback broker."""
    own = stack.start_valkey(None)
    with closing(Redis.from_url(own.connection_url)) as client:
        client.config_set("requirepass", SECRET)
    try:
        address = f"127.0.0.1:{own.port}/0"
        values = [SECRET, address] * (url.count("{}") // 2)
        with broken(tmp_path, "redis", broker_url=url.format(*values)) as it:
            for command in READING:
                assert SECRET not in json.dumps(ask(it, command))
    finally:
        own.stop()


def test_enabling_events_is_no_news(shared: Broken) -> None:
    """Flower sends it every five seconds: it is neither refused nor logged."""
    with closing(new_app(shared.here.producer.settings)) as app:
        app.control.enable_events()
    state(shared)
    assert "enable_events" not in shared.here.log().read_text()


@pytest.mark.parametrize("task", ["celery.chord_unlock", "celery.backend_cleanup", "celery.chain"])
def test_a_task_of_celerys_own_is_set_aside(shared: Broken, task: str) -> None:
    """As an unknown task; a chord's task would send itself again for ever."""
    message = Message(b'[["a", "b"], {}, null]', {"task": task, "id": "1"})
    entry = shared.set_aside(lambda: shared.put(message, REQUESTS))
    assert entry.reason == "an unknown task"
    shared.goes_on()

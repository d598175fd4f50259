"""Broker faults: malformed messages; wake-ups that are lost, doubled or out of order."""

import base64
import json
import pickle
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from kombu.compression import compress

from regworker.ledger.admin import quarantine, quarantined
from regworker.ledger.records import Wake
from tests.integration.brokers import (
    BROKERS,
    LIVE,
    Broken,
    Message,
    body,
    broken,
    enqueue_unheard,
    headers,
    ring,
)
from tests.integration.installation import PATIENCE, installation
from tests.integration.jobs import email_of, skypostal
from worker.broker.wakeups import ATTEMPT, QUEUES, Wakeups
from worker.celery import new_app
from worker.cli.app import run as run_cli
from worker.cli.local import stack
from worker.process.consumer import HIDDEN


class Harmful:
    """Unpickling it creates a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (Path(self.path),))


MESSAGES = {
    "no JSON in the body": Message(b"}{ canary"),
    "a body of no elements": Message(b"[]"),
    "a body of two elements": Message(body([["nobody"], {}])),
    "a body that is a number": Message(b"5"),
    "a body that is null": Message(b"null"),
    "an empty body": Message(b""),
    "a body of Celery's first protocol": Message(body({"args": ["nobody"], "kwargs": {}})),
    "a body nested too deep": Message(b"[" * 100_000),
    "a marked value that is none": Message(
        body([[{"__type__": "datetime", "__value__": "canary"}], {}, None])
    ),
    "no headers": Message(headers={}),
    "no id": Message(headers=headers(id=None)),
    "an id that is a list": Message(headers=headers(id=["canary"])),
    "no task": Message(headers=headers(task=None)),
    "a task that nobody has": Message(headers=headers(task="canary.task")),
    "pickle": Message(
        pickle.dumps(Harmful("harm-was-done")),
        content_type="application/x-python-serialize",
        content_encoding="binary",
    ),
    "pickle that says JSON": Message(pickle.dumps(Harmful("harm-was-done"))),
    "a content type that nobody has": Message(content_type="application/x-canary"),
    "an encoding that nobody has": Message(content_encoding="canary"),
    "no arguments": Message(body([[], {}, None])),
    "two arguments": Message(body([["a", "canary"], {}, None])),
    "an object for an argument": Message(body([[{"password": "canary"}], {}, None])),
    "an argument by a wrong name": Message(body([[], {"canary": "x"}, None])),
    "an argument that is no Unicode": Message(b'[["\\ud800"], {}, null]'),
    "callbacks": Message(body([["nobody"], {}, {"callbacks": [5], "chain": "canary"}])),
    "compressed garbage": Message(b"canary", headers=headers(compression="gzip")),
    "a good message, compressed": Message(
        compress(body([["nobody"], {}, None]), "gzip")[0], headers=headers(compression="gzip")
    ),
    "a compression that nobody has": Message(headers=headers(compression="canary")),
    "a megabyte": Message(b'[["' + b"canary" * 180_000 + b'"], {}, null]'),
}


def _without(name: str) -> bytes:
    envelope = Message().envelope()
    del envelope[name]
    return json.dumps(envelope).encode()


def _changed(**changed: Any) -> bytes:
    return json.dumps({**Message().envelope(), **changed}).encode()


ITEMS = {
    "no JSON": b"canary",
    "nothing": b"",
    "no Unicode": b"\xff\xfe\x00canary",
    "a number": b"5",
    "a list": b'["canary"]',
    "an object, but no envelope": b'{"canary": 1}',
    "nested too deep": b"[" * 100_000,
    "a megabyte": b"canary" * 180_000,
    "no properties": _without("properties"),
    "no headers": _without("headers"),
    "no body": _without("body"),
    "no content type": _without("content-type"),
    "properties without a delivery tag": _changed(properties={"delivery_info": {}}),
    "a body that is an object": _changed(body={"canary": 1}),
    "a body that is no base64": _changed(body="canary!"),
    "a body in an encoding that nobody has": _changed(
        properties={**Message().envelope()["properties"], "body_encoding": "canary"}
    ),
}


#: A call lasts as long as a busy machine needs: one that is given up is followed by a second call.
UNHURRIED = {"call_budget": 20, "settle_delay": 25}


@pytest.fixture(scope="module", params=BROKERS)
def shared(request: Any, tmp_path_factory: Any) -> Iterator[Broken]:
    """One installation for each broker, used by all tests."""
    with broken(tmp_path_factory.mktemp(request.param), request.param, **UNHURRIED) as running:
        yield running


@pytest.fixture(scope="module")
def on_redis(tmp_path_factory: Any) -> Iterator[Broken]:
    """An installation on Redis."""
    with broken(tmp_path_factory.mktemp("items"), "redis", **UNHURRIED) as running:
        yield running


# ── malformed messages ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", MESSAGES)
def test_a_malformed_message_is_set_aside_and_the_worker_goes_on(shared: Broken, kind: str) -> None:
    """The worker keeps it with the reason, and neither runs it nor receives it again."""
    entry = shared.set_aside(lambda: shared.put(MESSAGES[kind]))
    assert (entry.queue, entry.times) == (LIVE, 1)
    assert "canary" not in entry.reason
    shared.goes_on()
    assert {one.id: one.times for one in shared.quarantine()}[entry.id] == 1


@pytest.mark.parametrize("kind", ITEMS)
def test_an_item_that_is_no_message_is_set_aside_and_the_worker_goes_on(
    on_redis: Broken, kind: str
) -> None:
    """Any bytes that somebody pushed onto a Redis list."""
    entry = on_redis.set_aside(lambda: on_redis.redis.lpush(LIVE, ITEMS[kind]))
    assert (entry.queue, entry.size) == (LIVE, len(ITEMS[kind]))
    on_redis.goes_on()


@pytest.mark.parametrize("queue", ["registrations", *QUEUES.values()])
def test_every_queue_is_guarded(shared: Broken, queue: str) -> None:
    """Every queue is checked, not only the one most used."""
    entry = shared.set_aside(lambda: shared.put(Message(b"}{"), queue))
    shared.goes_on()
    if shared.broker == "rabbitmq":  # On Redis, the message itself names its queue.
        assert entry.queue == queue


def test_nothing_of_a_malformed_message_is_told_or_stored_plain(
    shared: Broken, on_redis: Broken
) -> None:
    """It may hold a password: logs and the ledger's files do not contain it; nothing is
    unpickled."""
    for one in (shared, on_redis):
        one.set_aside(lambda one=one: one.put(Message(b'{"customer_password": "canary"')))  # type: ignore[misc]
        one.goes_on()
        assert b"canary" not in one.here.log().read_bytes()
        for entry in one.quarantine():
            fields: Any = one.here.ledger.redis.hgetall("{reg}:quarantine:" + entry.id)
            assert b"canary" not in b" ".join(fields.values())
        assert not list(one.here.folder.rglob("harm-was-done"))


def test_a_wake_up_for_no_job_just_ends(shared: Broken) -> None:
    """An old wake-up may arrive after its job was deleted: that is no error."""
    before = shared.quarantine()
    shared.put(Message())
    shared.goes_on()
    assert shared.quarantine() == before


@pytest.mark.parametrize(
    "asked",
    [
        {"eta": "2100-01-01T00:00:00+00:00"},
        {"eta": "whenever"},
        {"expires": "2001-01-01T00:00:00+00:00"},
        {"timelimit": 5, "retries": "x", "shadow": "another", "group": 7, "stamps": 3},
    ],
    ids=lambda asked: ",".join(asked),
)
def test_a_delay_or_an_expiry_asked_for_in_a_message_is_ignored(
    shared: Broken, asked: dict[str, Any]
) -> None:
    """The job starts at once: a worker does not hold delayed messages in memory."""
    job_id = enqueue_unheard(shared.here)
    shared.put(Message(body([[job_id], {}, None]), {"task": ATTEMPT, "id": job_id, **asked}))
    event = shared.here.producer.wait(job_id, PATIENCE)
    assert event["type"] == "registration.registered"


def test_only_the_newest_messages_are_kept_and_the_others_counted(tmp_path: Path) -> None:
    """Nobody can fill the ledger through the broker."""
    with installation(tmp_path, workers=0) as here:
        fields: dict[str, str | int] = {
            "queue": "q",
            "reason": "r",
            "size": 1,
            "whole": 1,
            "content": "c",
        }
        for number in range(5):
            here.ledger(quarantine(f"m{number}", fields, most=3))
        total, dropped, entries = here.ledger(quarantined(10))
        assert (total, dropped) == (3, 2)
        assert {one.id for one in entries} == {"m2", "m3", "m4"}
        assert not here.ledger.redis.exists("{reg}:quarantine:m0")


def test_arguments_are_shown_to_nobody_unless_they_are_the_id(on_redis: Broken) -> None:
    """Task events, which Flower shows, and `celery inspect` hide them: they may be a job."""
    with closing(on_redis.redis.pubsub(ignore_subscribe_messages=True)) as listener:
        listener.psubscribe("*")
        message = Message(body([["canary-argument"], {}, None]))
        message.headers = headers(id="shown", argsrepr="('canary-argument',)")
        on_redis.put(message)
        bodies: list[bytes] = []

        def ended() -> bool:
            if heard := listener.get_message(timeout=1):
                bodies.append(base64.b64decode(json.loads(heard["data"])["body"]))
            return any(b"task-received" in one and b"shown" in one for one in bodies)

        stack.until(ended, "the task's events", PATIENCE)
    assert HIDDEN.encode() in b"".join(bodies)
    assert b"canary" not in b"".join(bodies)

    job = skypostal()
    on_redis.here.sandbox.faults.configure(
        {"script": [{"kind": "slow", "delay": 12, "email": email_of(job)}]}
    )
    receipt = on_redis.here.producer.enqueue(job)
    on_redis.here.wait_for(receipt.job_id, "calling")
    with closing(new_app(on_redis.here.producer.settings)) as app:
        [active] = app.control.inspect(timeout=30, limit=1).active().values()
    assert [one["args"] for one in active] == [f"('{receipt.job_id}',)"]
    on_redis.here.producer.wait(receipt.job_id, PATIENCE)


# ── the operator ──────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def command(
    shared: Broken, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Any]:
    """`regworker quarantine`: its exit code and what it printed."""
    for name, value in shared.here.environment.items():
        monkeypatch.setenv(name, value)

    def call(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        code = run_cli(["quarantine", *arguments])
        return code, capsys.readouterr().out

    return call


def test_an_operator_sees_why_a_message_was_set_aside(shared: Broken, command: Any) -> None:
    """The content is shown only on request."""
    entry = shared.set_aside(lambda: shared.put(Message(b"} secret-of-a-customer")))
    code, listed = command("list", "--json")
    assert code == 0
    assert entry.id in [json.loads(line)["id"] for line in listed.splitlines()]
    code, shown = command("show", entry.id)
    assert code == 0
    assert entry.reason in shown
    assert "secret-of-a-customer" not in shown
    _, content = command("show", entry.id, "--show-content")
    assert "secret-of-a-customer" in content


def test_an_operator_drops_a_message(shared: Broken, command: Any) -> None:
    """A message can be dropped once; then it is gone."""
    entry = shared.set_aside(lambda: shared.put(Message(b"} to be dropped")))
    assert command("drop", entry.id)[0] == 0
    assert entry.id not in {one.id for one in shared.quarantine()}
    assert command("drop", entry.id)[0] == 1


def test_a_message_that_is_put_back_comes_as_it_came(shared: Broken, command: Any) -> None:
    """With its own headers and body: the worker sets it aside again as the same message."""
    message = Message(body([["x"], {}, None]), headers(task="a.task.to.come"))
    entry = shared.set_aside(lambda: shared.put(message))
    code, _ = command("requeue", entry.id)
    assert code == 0
    shared.goes_on()
    stack.until(lambda: entry.id in {one.id for one in shared.quarantine()}, "it again", PATIENCE)


# ── wake-ups lost, doubled, out of order ──────────────────────────────────────────────────────


def test_jobs_whose_wake_ups_are_lost_complete_all_the_same(shared: Broken) -> None:
    """Their alarms wake the jobs."""
    here = shared.here
    here.sandbox.faults.configure({"rates": {"slow": {"probability": 1, "delay": 0.2}}})
    receipts = list(here.producer.enqueue_many([skypostal(lane="bulk") for _ in range(60)]))
    shared.drop_all()
    for receipt in receipts:
        ring(here, receipt.job_id)  # type: ignore[union-attr]
        shared.drop_all()
    here.sandbox.faults.configure({})
    for receipt in receipts:
        event = here.producer.wait(receipt.job_id, PATIENCE)  # type: ignore[union-attr]
        assert event["type"] == "registration.registered"


def test_a_wake_up_that_comes_five_times_makes_one_call(shared: Broken) -> None:
    """And one event."""
    here = shared.here
    jobs = [skypostal() for _ in range(10)]
    with closing(new_app(here.producer.settings)) as app:
        wake = Wakeups(app)
        receipts = [here.producer.enqueue(job) for job in jobs]
        assert wake([Wake(receipt.job_id, "live") for receipt in receipts] * 5) == 50
    for receipt in receipts:
        here.producer.wait(receipt.job_id, PATIENCE)
    shared.goes_on()
    for job, receipt in zip(jobs, receipts, strict=True):
        assert len(here.sandbox.requests.find(email=email_of(job))) == 1
        assert len(here.events(receipt.job_id)) == 1


def test_wake_ups_in_reverse_order_lose_nothing(tmp_path: Path) -> None:
    """The list is reversed while no worker runs."""
    with broken(tmp_path, "redis") as it:
        stack.stop(it.here.workers[0])
        receipts = [it.here.producer.enqueue(skypostal()) for _ in range(20)]
        items = it.redis.lrange(LIVE, 0, -1)
        it.redis.delete(LIVE)
        it.redis.lpush(LIVE, *items)
        it.here.start_worker()
        for receipt in receipts:
            it.here.producer.wait(receipt.job_id, PATIENCE)
            assert len(it.here.events(receipt.job_id)) == 1

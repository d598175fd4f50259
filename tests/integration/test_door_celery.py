"""Door 2: any Celery client may hand in a job, on both brokers, in any form that clients send."""

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from celery.exceptions import Reject
from celery.worker import state as celery_state
from kombu import Connection, Queue

from tests.integration.brokers import BROKERS, Broken, Message, body, broken
from tests.integration.doors import id_of, plain_client, refusals
from tests.integration.installation import KEYS, PATIENCE, Installation
from tests.integration.jobs import email_of, open2b, skypostal
from tests.rabbitmq import amqp_url, borrowed
from worker import tasks
from worker.cli import stack
from worker.errors import LedgerUnavailable
from worker.ledger.commands import look
from worker.messages import MOST_RETURNS
from worker.quarantine import Quarantine
from worker.sealing import Keyring
from worker.settings import Settings
from worker.wakeups import CANCEL, DOOR, REGISTER

KEYRING = Keyring.parse(KEYS)


@pytest.fixture(scope="module", params=BROKERS)
def door(request: Any, tmp_path_factory: Any) -> Iterator[Broken]:
    """One installation a broker; on RabbitMQ a client was there before the worker."""
    if request.param == "rabbitmq":
        declare_as_clients_do(amqp_url(), anew=True)
    with broken(tmp_path_factory.mktemp(request.param), request.param) as running:
        yield running
    if request.param == "rabbitmq":
        with Connection(amqp_url()) as connection:
            connection.default_channel.queue_delete(DOOR)


def declare_as_clients_do(url: str, *, anew: bool = False) -> None:
    """Declare the queue as plainly as it can be."""
    with Connection(url) as connection:
        if anew:
            connection.default_channel.queue_delete(DOOR)
        connection.default_channel.queue_declare(DOOR, durable=True, auto_delete=False)


def message(task: str, argument: Any, id_: str = "", **changed: Any) -> Message:
    """A message as clients of Celery's second protocol send it."""
    headers = {"lang": "js", "task": task, "id": id_ or str(uuid4())}
    return Message(body([[argument], {}, {}]), {**headers, **changed})


def by_first_protocol(task: str, argument: Any, **more: Any) -> Message:
    """A message as older clients send it: the task is named in its body."""
    content = {"task": task, "id": str(uuid4()), "args": [argument], "kwargs": {}, **more}
    return Message(body(content), {})


def sent(door: Broken, task: str, *args: Any, protocol: int = 2, **kwargs: Any) -> None:
    """Send a task with a plain Celery client, which is told to declare nothing."""
    with plain_client(door.url or door.here.valkey.connection_url) as client:
        client.conf.task_protocol = protocol
        client.send_task(task, args, kwargs, queue=Queue(DOOR, no_declare=True))


def registered(here: Installation, job: dict[str, Any]) -> None:
    """Wait until a job that is on its way has its customer."""
    stack.until(lambda: here.ledger(look(id_of(job))) is not None, "the job taken", PATIENCE)
    assert here.producer.wait(id_of(job), PATIENCE)["type"] == "registration.registered"
    assert here.made(email_of(job)) == 1
    assert len(here.events(id_of(job))) == 1


FORMS: dict[str, Callable[[Broken, dict[str, Any]], None]] = {
    "an object": lambda door, job: sent(door, REGISTER, job),
    "a JSON text": lambda door, job: sent(door, REGISTER, json.dumps(job)),
    "by name": lambda door, job: sent(door, REGISTER, job=job),
    "Celery's first protocol": lambda door, job: sent(door, REGISTER, job, protocol=1),
    "celery-node": lambda door, job: door.put(message(REGISTER, job), DOOR),
    "celery-node's first protocol": lambda door, job: door.put(
        by_first_protocol(REGISTER, job), DOOR
    ),
    "with a delay and an expiry": lambda door, job: door.put(
        message(REGISTER, job, eta="2100-01-01T00:00:00Z", expires="2001-01-01T00:00:00Z"), DOOR
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_job_is_taken_in_any_form_that_clients_send(door: Broken, form: str) -> None:
    """Sent twice, it is one job."""
    job = open2b()
    FORMS[form](door, job)
    FORMS[form](door, job)
    registered(door.here, job)
    door.goes_on()


def test_a_job_is_taken_back_by_a_task(door: Broken) -> None:
    """By its id, or by its key; what is not there is said not to be."""
    before = len(refusals(door.here))
    sent(door, CANCEL, id_of(open2b()))
    sent(door, CANCEL, {"provider": "open2b", "idempotency_key": "nobody's"})
    stack.until(lambda: len(refusals(door.here)) == before + 2, "both refused", PATIENCE)
    for event in refusals(door.here)[before:]:
        assert event["data"]["request"] == "cancel"
        assert event["data"]["errors"][0]["code"] == "not_found"


UNREADABLE = {
    "a number": message(REGISTER, 5),
    "nothing": message(REGISTER, None),
    "a list": message(REGISTER, ["canary"]),
    "no JSON": message(REGISTER, "canary"),
    "no key": message(REGISTER, {"registration": {"password": "canary"}}),
    "far too large": message(REGISTER, {"idempotency_key": "k", "canary": "canary" * 100_000}),
    "a cancel of nothing": message(CANCEL, {"account": "canary"}),
    "two jobs": Message(body([[{}, {}], {}, None]), {"task": REGISTER, "id": "canary"}),
    "first protocol, no job": by_first_protocol(REGISTER, "canary"),
    "first protocol, callbacks": by_first_protocol(
        REGISTER, {"idempotency_key": "k"}, callbacks=["canary"]
    ),
    "first protocol, no id": Message(body({"task": REGISTER, "args": ["canary"]}), {}),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_holds_no_key_is_set_aside(door: Broken, kind: str) -> None:
    """There is nobody to be answered; the worker goes on."""
    entry = door.set_aside(lambda: door.put(UNREADABLE[kind], DOOR))
    assert "canary" not in entry.reason
    door.goes_on()
    assert b"canary" not in door.here.log().read_bytes()


def test_a_message_that_is_delivered_again_is_told_of_once(door: Broken) -> None:
    """Brokers deliver again; another message with the same content is another request."""
    bad, before = {**skypostal(), "color": "red"}, len(refusals(door.here))
    seen = _refused(door.here)
    again = message(REGISTER, bad, "the same id")
    for one in (again, again, message(REGISTER, bad), again):
        door.put(one, DOOR)
    stack.until(lambda: _refused(door.here) == seen + 4, "all of them refused", PATIENCE)
    assert len({event["id"] for event in refusals(door.here)[before:]}) == 2
    assert len(refusals(door.here)) == before + 2


def test_nothing_of_a_job_is_shown(door: Broken) -> None:
    """Neither in logs, nor in the events that monitors show."""
    with monitored(door) as seen:
        job = open2b()
        job["registration"]["customer"]["password"] = "canary99"
        sent(door, REGISTER, job)
        registered(door.here, job)
        events: list[bytes] = []

        def told() -> bool:
            events.extend(seen())
            return any(b"task-succeeded" in event for event in events)

        stack.until(told, "the task in the events", PATIENCE)
    assert any(b"registrations.register" in event and b"(hidden)" in event for event in events)
    assert b"canary99" not in b"".join(events)
    assert b"canary99" not in door.here.log().read_bytes()


@contextmanager
def monitored(door: Broken) -> Iterator[Callable[[], list[bytes]]]:
    """What workers tell monitors, as it travels: each call gives what has come since."""
    if door.broker == "redis":
        channel = door.redis.pubsub(ignore_subscribe_messages=True)
        channel.psubscribe("*celeryev*")
        channel.get_message(timeout=PATIENCE)

        def published() -> list[bytes]:
            found = iter(channel.get_message, None)
            return [base64.b64decode(json.loads(one["data"])["body"]) for one in found]

        yield published
        channel.close()
        return
    with Connection(door.url) as connection:
        channel = connection.default_channel
        name = channel.queue_declare("", exclusive=True).queue
        channel.queue_bind(name, exchange="celeryev", routing_key="#")
        yield lambda: [one.body.encode() for one in iter(lambda: channel.basic_get(name), None)]


# ── RabbitMQ ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("door", ["rabbitmq"], indirect=True)
def test_a_job_waits_for_the_ledger_in_its_message(door: Broken) -> None:
    """The server has no room for a while; the worker tries, and then it has."""
    job = open2b()
    door.here.ledger.redis.config_set("maxmemory", 1)
    sent(door, REGISTER, job)
    stack.until(lambda: _waiting(door.url) == 0, "the message taken", PATIENCE)
    assert door.here.ledger(look(id_of(job))) is None
    door.here.ledger.redis.config_set("maxmemory", 0)
    registered(door.here, job)


def test_nothing_is_lost_when_the_worker_is_killed_between_reading_and_acknowledging(
    tmp_path: Path,
) -> None:
    """Whoever sent a job to a queue of RabbitMQ may forget it."""
    with borrowed() as url, broken(tmp_path, "rabbitmq", broker_url=url) as door:
        here, jobs = door.here, [open2b() for _ in range(5)]
        here.ledger.redis.config_set("maxmemory", 1)
        for job in jobs:
            sent(door, REGISTER, job)
        stack.until(lambda: _waiting(url) == 0, "the messages taken", PATIENCE)
        here.workers[0].kill()
        here.restart_valkey()
        assert not any(here.ledger(look(id_of(job))) for job in jobs)
        here.start_worker()
        for job in jobs:
            registered(here, job)


@pytest.mark.parametrize("door", ["rabbitmq"], indirect=True)
def test_a_queue_that_a_client_declared_first_is_taken_as_it_is(door: Broken) -> None:
    """Such a client declares a classic queue, and goes on declaring it with each job it sends."""
    door.here.wait_for_line("not as a quorum queue")
    declare_as_clients_do(door.url)
    job = open2b()
    sent(door, REGISTER, job)
    registered(door.here, job)


# ── our own faults ────────────────────────────────────────────────────────────────────────────


class Faulty:
    """A runtime whose requests fail, and its quarantine too, if it shall."""

    def __init__(self, error: Exception, quarantine: Quarantine | None = None) -> None:
        self.error = error
        self.quarantine = quarantine

    def take(self, *_: object) -> str:
        """Fail."""
        raise self.error

    def pause(self, seconds: float) -> None:
        """Wait, as the runtime does."""

    def set_aside(self, request: str, id_: str, argument: Any, reason: str) -> None:
        """Keep a request, as the runtime does."""
        from worker.quarantine import Parcel

        if self.quarantine is None:
            raise LedgerUnavailable("away")
        self.quarantine.keep(Parcel.of_task(f"registrations.{request}", id_, argument, reason))


def test_what_the_worker_fails_at_is_set_aside_and_can_be_put_back(
    door: Broken, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Acknowledged as failed, as Celery does it, it would be lost."""
    job = open2b()
    settings = Settings.load(
        redis_url=door.here.valkey.connection_url, sealing_keys=KEYS, broker_url=door.url or None
    )
    quarantine = Quarantine(settings)
    fault = Faulty(RuntimeError("canary"), quarantine)
    monkeypatch.setattr(tasks, "runtime", lambda _: fault)
    entry = door.set_aside(lambda: _is("set aside", tasks._take("register", "an id", job)))
    assert entry.reason == "the worker failed at it (RuntimeError)"
    quarantine.requeue(entry.id)
    registered(door.here, job)
    quarantine.close()


def test_a_request_goes_back_to_the_broker_when_the_worker_stops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The ledger does not answer, and others may have better luck."""
    monkeypatch.setattr(tasks, "runtime", lambda _: Faulty(LedgerUnavailable("away")))
    monkeypatch.setattr(celery_state, "should_stop", 0)
    with pytest.raises(Reject) as caught:
        tasks._take("register", "an id", open2b())
    assert caught.value.requeue


def test_a_request_goes_back_to_the_broker_when_it_cannot_be_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither taken nor set aside, it must not be acknowledged."""
    monkeypatch.setattr(tasks, "runtime", lambda _: Faulty(RuntimeError("canary")))
    monkeypatch.setattr(tasks, "PAUSE", 0)
    with pytest.raises(Reject) as caught:
        tasks._take("register", "an id", open2b())
    assert caught.value.requeue
    assert "canary" not in str(caught.value)


def _is(wanted: str, found: str) -> None:
    assert wanted == found


def _refused(here: Installation) -> int:
    return here.log().read_text("utf-8", "replace").count('"event": "refused"')


def _waiting(url: str) -> int:
    with Connection(url) as connection:
        return int(connection.default_channel.queue_declare(DOOR, passive=True).message_count)


def test_a_request_that_ends_every_worker_is_set_aside(tmp_path: Path) -> None:
    """RabbitMQ would drop it in silence in the end; what it counts is told before."""
    with borrowed() as url, broken(tmp_path, "rabbitmq", broker_url=url) as door:
        door.here.workers[0].terminate()
        assert door.here.workers[0].wait(PATIENCE) == 0
        door.put(message(REGISTER, open2b()), DOOR)
        with Connection(door.url) as connection, connection.channel() as channel:
            for _ in range(MOST_RETURNS + 1):
                stack.until(lambda: back(channel), "the request, back again", PATIENCE)
        entry = door.set_aside(lambda: start_another(door.here))
        assert "came back" in entry.reason
        assert entry.queue == DOOR
        door.here.workers.pop(0)
        door.goes_on()


def back(channel: Any) -> bool:
    """Take a request and die of it, as RabbitMQ sees it."""
    found = channel.basic_get(DOOR)
    if found is not None:
        channel.basic_reject(found.delivery_tag, requeue=True)
    return found is not None


def start_another(here: Installation) -> None:
    """A worker comes back."""
    here.start_worker()

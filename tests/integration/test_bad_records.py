"""One bad key among many: whatever processes all keys continues with the others."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from regworker.domain.states import State
from regworker.ledger import AsyncLedger, SyncLedger
from regworker.ledger.admin import QUARANTINE, Limits, announce, quarantine, quarantined
from regworker.ledger.endpoints import bury, endpoint_key, pending_key, replay
from regworker.ledger.endpoints import serve as serve_endpoints
from regworker.ledger.records import Claim, Settled, Wake
from regworker.ledger.snapshot import LATER, OPEN, WORKERS, place, repair, snapshot, worker_key
from regworker.ledger.transitions import (
    ALARMS,
    CONFIGURED,
    DEAD,
    REVIEWS,
    Decision,
    SettleRules,
    account_key,
    claim,
    delivery_key,
    job_key,
    renew,
    ring,
    settle,
)
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings, StreamEndpoint
from tests.integration.jobs import ACTOR
from tests.integration.ledger_steps import RULES, claimed, job, record, serve, take_in
from tests.integration.outbox import woken
from worker.execution.alarms import AlarmClock
from worker.execution.stream_retention import StreamTrimmer
from worker.operations.admin_actions import AdminActions
from worker.operations.deliveries import DeliveryAdmin, Filter
from worker.operations.key_rotation import Rotation

#: What a key may hold instead of its record: another type, or an incomplete record.
SHAPES: dict[str, Callable[[Any, str], Any]] = {
    "a string": lambda redis, key: redis.set(key, "\xff"),
    "a list": lambda redis, key: redis.rpush(key, "a"),
    "a set": lambda redis, key: redis.sadd(key, "a"),
    "another hash": lambda redis, key: redis.hset(key, "a", "b"),
    "only a state": lambda redis, key: redis.hset(key, "state", "queued"),
    "a dead delivery of nothing": lambda redis, key: redis.hset(key, "state", "dead"),
    "numbers that are none": lambda redis, key: redis.hset(
        key,
        mapping=dict.fromkeys(
            ("wakes", "fence", "lease_until", "at", "pid", "slots", "tries", "created_at", "tat"),
            "many",
        )
        | {"state": "queued", "lane": "fast", "endpoint": "crm", "name": "bad"},
    ),
    "numbers without an end": lambda redis, key: redis.hset(
        key, mapping={"state": "calling", "wakes": "inf", "lease_until": "nan", "failures": "-nan"}
    ),
    "no text": lambda redis, key: redis.hset(
        key, mapping={b"state": b"queued", b"lane": b"\xff\xfe", b"\xff": b"\xff", b"why": b"\xff"}
    ),
}

#: Names as a person or another program might have left them.
NAMES = ["bad", "", "\0", b"\xff\xfe", "d:", "d:bad:1.x:crm", "d:\xff"]


@pytest.fixture(params=SHAPES.values(), ids=SHAPES)
def spoil(request: pytest.FixtureRequest, ledger: SyncLedger) -> Callable[[str], None]:
    """Replace a record with something else."""

    def put(key: str) -> None:
        ledger.redis.delete(key)
        request.param(ledger.redis, key)

    return put


@pytest.fixture
def busy(ledger: SyncLedger) -> SyncLedger:
    """A ledger that serves an account, two endpoints and a stream."""
    serve(ledger)
    serve_at = {"crm": 5, "erp": 5}
    ledger(serve_endpoints(serve_at, 86400))
    return ledger


def test_the_alarms_of_the_others_ring(busy: SyncLedger, spoil: Callable[[str], None]) -> None:
    """A hundred bad records are due first; the good one rings nevertheless."""
    take_in(busy, job())
    for number in range(100):
        spoil(job_key(f"bad-{number}"))
    busy.redis.zadd(ALARMS, {f"bad-{number}": number for number in range(100)})
    busy.redis.zadd(ALARMS, {job().id: 1000})
    wakes = [wake for _ in range(2) for wake in busy(ring(100)).wakes]
    assert job().id in [wake.member for wake in wakes]
    assert {wake.lane for wake in wakes} <= {"live", "bulk", "delivery"}


def test_a_record_that_cannot_be_read_is_named_and_comes_back(busy: SyncLedger) -> None:
    """It is put off, not forgotten: once it is repaired, its job continues."""
    take_in(busy, job())
    found = busy.redis.dump(job_key(job().id))
    busy.redis.set(job_key(job().id), "spoilt")
    busy.redis.zadd(ALARMS, {job().id: 1})
    rung = busy(ring(100))
    assert (rung.wakes, rung.unreadable) == ((), (job().id,))
    assert busy(ring(100)).unreadable == ()
    busy.redis.restore(job_key(job().id), 0, found, replace=True)
    assert busy.redis.zscore(ALARMS, job().id) is not None
    busy.redis.zadd(ALARMS, {job().id: 1})
    assert [wake.member for wake in busy(ring(100)).wakes] == [job().id]


@pytest.mark.parametrize("name", NAMES)
def test_a_member_that_is_no_name_stops_no_alarm(busy: SyncLedger, name: str | bytes) -> None:
    """Whatever somebody adds to the alarms, the others ring."""
    take_in(busy, job())
    busy.redis.zadd(ALARMS, {name: 1, job().id: 2})
    assert job().id in [wake.member for wake in busy(ring(100)).wakes]


def test_the_clock_tells_of_what_it_cannot_read_and_goes_on(
    busy: SyncLedger, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One log line for all of them, with an alert."""
    take_in(busy, job())
    busy.redis.set(job_key("bad"), "spoilt")
    busy.redis.zadd(ALARMS, {"bad": 1, job().id: 2})
    woken: list[Wake] = []

    class Waker:
        def __call__(self, wakes: Any) -> int:
            woken.extend(wakes)
            return len(woken)

        def crowded(self) -> set[str]:
            return set()

        def heard(self) -> bool:
            return True

    async def turn() -> None:
        asynchronous = AsyncLedger(redis_url)
        try:
            await AlarmClock(asynchronous, Waker(), 1.0).ring_once()
        finally:
            await asynchronous.aclose()

    asyncio.run(turn())
    assert [wake.member for wake in woken] == [job().id]
    said = "".join(capsys.readouterr())
    assert "records cannot be read" in said
    assert "bad" in said


def test_the_others_leases_are_renewed(busy: SyncLedger, spoil: Callable[[str], None]) -> None:
    """A job with a spoilt record has lost its lease; the worker's other jobs keep theirs."""
    take_in(busy, job())
    held = claimed(busy)
    spoil(job_key("bad"))
    leases = [("bad", 1), (held.id, held.record.fence), ("bad", 0)]
    assert busy(renew(leases, 60)) == (False, True, False)


def test_a_place_is_passed_on_to_whoever_can_be_read(
    busy: SyncLedger, spoil: Callable[[str], None]
) -> None:
    """A job settles although the first job waiting for the account is spoilt."""
    take_in(busy, job())
    held = claimed(busy)
    spoil(job_key("bad"))
    busy.redis.zadd("{reg}:waiting:acme:default", {"bad": 1})
    rules = SettleRules(60, 2, 60, 86400)
    done = busy(settle(held, Decision("retry", "no"), rules, None))
    assert isinstance(done, Settled)
    assert [wake for wake in woken(busy) if wake.member != job().id] in ([], [Wake("bad", "live")])


def test_the_others_are_counted(busy: SyncLedger, spoil: Callable[[str], None]) -> None:
    """What cannot be read is named, and everything else is counted."""
    take_in(busy, job())
    busy(announce([Limits("acme", "bad", 0, 0, 0)], ["bad"]))
    at = busy(snapshot()).at
    for key in (account_key("acme", "bad"), endpoint_key("bad"), worker_key("bad"), job_key("bad")):
        spoil(key)
    busy.redis.zadd(WORKERS, {"bad": at})
    busy.redis.zadd(OPEN, {"bad": 1})
    busy.redis.sadd(CONFIGURED, "account:", "account:nobody", b"account:\xff:\xff", "endpoint:\xff")
    found = busy(snapshot())
    assert "default" in [one.account for one in found.accounts]
    assert sum(one.count for one in found.jobs) == 2
    busy(repair())
    assert busy(snapshot()).at >= at


def test_an_index_is_repaired_although_a_record_is_spoilt(
    busy: SyncLedger, spoil: Callable[[str], None]
) -> None:
    """The others' entries are put right."""
    take_in(busy, job())
    spoil(job_key("bad"))
    busy.redis.zadd(OPEN, {"bad": 1, job().id: place(State.REVIEW, "live", 5)})
    busy.redis.zadd(LATER, {"bad": 1})
    assert busy(repair()) >= 1
    assert busy.redis.zscore(OPEN, job().id) == record(busy).accepted_at


@pytest.mark.parametrize("time", ["nan", "inf", "-inf"])
def test_an_index_is_repaired_although_a_time_has_no_place_in_it(
    busy: SyncLedger, time: str
) -> None:
    """It cannot be put in order, and is left out."""
    take_in(busy, job())
    copied: Any = {**busy.redis.hgetall(job_key(job().id)), b"accepted_at": time}
    busy.redis.hset(job_key("bad"), mapping=copied)
    busy.redis.zadd(OPEN, {"bad": place(State.REVIEW, "live", 1), job().id: 5 * 10**13})
    assert busy(repair()) == 2
    assert busy.redis.zscore(OPEN, job().id) == record(busy).accepted_at
    assert busy.redis.zscore(OPEN, "bad") is None


def test_the_others_are_listed(
    busy: SyncLedger, spoil: Callable[[str], None], settings: Settings
) -> None:
    """Lists of reviews, accounts, endpoints and deliveries skip what cannot be read."""
    take_in(busy, job())
    busy(announce([Limits("acme", "bad", 0, 0, 0)], ["bad", "crm"]))
    for key in (job_key("bad"), account_key("acme", "bad"), endpoint_key("bad")):
        spoil(key)
    busy.redis.zadd(REVIEWS, {"bad": 1, job().id: 2, b"\xff": 3})
    member = "d:bad.1.registered:crm"
    spoil(delivery_key(member))
    busy.redis.zadd(pending_key("crm"), {member: 1, b"\xff": 2})
    busy.redis.zadd(DEAD, {member: 1})
    with AdminActions(settings) as operator:
        assert job().id in [one.id for one in operator.reviews()]
        assert "default" in [one.account for one in operator.accounts()]
        assert operator.resume("acme", "default", ACTOR) is None, "it is not paused"
    outbox = DeliveryAdmin(busy)
    assert "crm" in [one.name for one in outbox.endpoints()]
    list(outbox.deliveries(Filter()))


def test_the_others_deliveries_are_replayed_and_buried(
    busy: SyncLedger, spoil: Callable[[str], None]
) -> None:
    """A spoilt delivery is dropped; the others of its batch are not."""
    good, bad = "d:good.1.registered:crm", "d:bad.1.registered:crm"
    fields = {"state": "dead", "endpoint": "crm", "job": "good", "created_at": 1}
    busy.redis.hset(delivery_key(good), mapping=fields)
    spoil(delivery_key(bad))
    busy.redis.zadd(DEAD, {good: 1, bad: 1})
    assert busy(replay([bad, good]))[1] == "replayed"
    busy.redis.zadd(pending_key("crm"), {bad: 1, good: 2})
    busy.redis.hset(endpoint_key("crm"), mapping={"disabled": "1"})
    busy(bury("crm", 100))
    assert busy.redis.hget(delivery_key(good), "state") == b"dead"
    assert busy.redis.zcard(pending_key("crm")) == 0


def test_the_others_in_quarantine_are_listed(
    busy: SyncLedger, spoil: Callable[[str], None]
) -> None:
    """What is kept of the others is listed."""
    fields: dict[str, str | bytes | int | float] = {
        "queue": "q",
        "reason": "no",
        "size": 1,
        "whole": 1,
        "content": "sealed",
    }
    busy(quarantine("good", fields, 10))
    spoil(f"{QUARANTINE}:bad")
    busy.redis.zadd(QUARANTINE, {"bad": 1})
    assert {one.id for one in busy(quarantined(10))[2]} >= {"good"}


def test_a_worker_announces_itself_although_an_accounts_key_is_spoilt(
    busy: SyncLedger, spoil: Callable[[str], None]
) -> None:
    """The worker serves the other accounts."""
    for key in (account_key("acme", "bad"), endpoint_key("bad")):
        spoil(key)
    busy(announce([Limits("acme", "bad", 1, 1, 1), Limits("acme", "good", 1, 1, 7)], ["bad"]))
    busy(serve_endpoints({"bad": 1, "good": 7}, 60))
    assert busy.redis.hget(account_key("acme", "good"), "max_in_flight") == b"7"
    assert busy.redis.hget(endpoint_key("good"), "max_in_flight") == b"7"


def test_keys_are_rotated_although_a_record_is_spoilt(
    busy: SyncLedger, spoil: Callable[[str], None], settings: Settings
) -> None:
    """All records that can be read are sealed under the first key."""
    take_in(busy, job())
    spoil(job_key("bad"))
    with Rotation(settings) as rotation:
        assert list(rotation.turns(writing=True))


def test_the_others_streams_are_trimmed(
    busy: SyncLedger, redis_url: str, spoil: Callable[[str], None]
) -> None:
    """A key that should be a stream and is none does not stop the trimming of others."""
    spoil("{reg}:events:bad")
    busy.redis.xadd("{reg}:events:good", {"event": "{}"}, id="1-1")
    streams = [
        StreamEndpoint(kind="stream", stream=name, retention=1)
        for name in ("{reg}:events:bad", "{reg}:events:good")
    ]

    async def turn() -> None:
        asynchronous = AsyncLedger(redis_url)
        try:
            await StreamTrimmer(asynchronous, streams, 86400).trim_once()
        finally:
            await asynchronous.aclose()

    asyncio.run(turn())
    assert busy.redis.xlen("{reg}:events:good") == 0


def test_a_spoilt_account_stops_only_its_own_jobs(
    busy: SyncLedger, spoil: Callable[[str], None]
) -> None:
    """The jobs of another account are called."""
    busy(announce([Limits("acme", "bad", 0, 0, 0)], []))
    spoil(account_key("acme", "bad"))
    take_in(busy, job())
    assert isinstance(busy(claim(job().id, RULES, 0.5)), Claim)


@pytest.fixture
def settings(redis_url: str) -> Settings:
    """An operator's settings."""
    return Settings.load(redis_url=redis_url, sealing_keys=Keyring.new("test"))

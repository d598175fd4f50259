"""A delivery in the ledger, step by step."""

from collections.abc import Callable
from typing import Any

import pytest

from regworker.domain.event import read_event
from regworker.ledger import SyncLedger
from regworker.ledger.endpoints import replay
from regworker.ledger.records import (
    Delivery,
    Idle,
    Record,
)
from regworker.ledger.transitions import (
    STATS,
    deliver,
    delivered,
    delivery_key,
    job_key,
)
from regworker.sealing import seals
from tests.integration.ledger_steps import (
    KEYRING,
    alarms,
    claimed,
    concluded,
    events,
    job,
    take_in,
)
from tests.integration.outbox import woken

#: Fields that differ between two deliveries of the same name.
CHANGED = (b"event", b"created_at", b"trace")


@pytest.fixture
def member(shop: SyncLedger, accepted: Record) -> str:
    """A delivery to try."""
    held = claimed(shop)
    woken(shop)
    concluded(shop, held, "registered")
    [wake] = woken(shop)
    return wake.member


def tried(ledger: SyncLedger, member: str, lease: float = 30) -> Delivery:
    """Claim a delivery for one try, as a worker does."""
    one = ledger(deliver(member, lease))
    assert isinstance(one, Delivery)
    return one


def test_a_delivery_is_leased_and_gone_when_it_arrived(shop: SyncLedger, member: str) -> None:
    """Only one worker at a time tries a delivery; an arrived one leaves nothing behind."""
    one = shop(deliver(member, 30))
    assert isinstance(one, Delivery)
    assert (
        read_event(KEYRING.open(one.event, seals.event(one.event_id, one.endpoint)))
        == events(shop)[0]
    )
    assert isinstance(shop(deliver(member, 30)), Idle)
    assert shop(delivered(one, "arrived", "HTTP 200", 0)).state == "delivered"
    assert not alarms(shop)


def test_a_delivery_is_tried_again_later(shop: SyncLedger, member: str) -> None:
    """A failed delivery is tried again at its own time; a repeated settle counts once."""
    one = tried(shop, member, 0)
    command = delivered(one, "later", "HTTP 503", 0)
    assert [shop(command).state, shop(command).state] == ["pending", "pending"]
    assert tried(shop, member).tries == 1
    assert alarms(shop) == [member]


def test_a_dead_delivery_is_kept(shop: SyncLedger, member: str) -> None:
    """An operator can replay it; it has no alarm."""
    one = tried(shop, member)
    assert shop(delivered(one, "dead", "HTTP 410", 0)).state == "dead"
    assert not alarms(shop)
    assert [found.decode() for found in shop.redis.zrange("{reg}:dead", 0, -1)] == [member]


def test_a_late_arrival_counts_and_a_late_failure_does_not(shop: SyncLedger, member: str) -> None:
    """A late worker may report an arrival; it may not report a failure once another worker
    tries."""
    stale = tried(shop, member, 0)
    tried(shop, member)
    assert shop(delivered(stale, "dead", "", 0)).state == "stale"
    assert shop(delivered(stale, "arrived", "", 0)).state == "delivered"


def replayed(shop: SyncLedger, member: str) -> None:
    """A dead delivery that is replayed, and fails again."""
    shop(delivered(tried(shop, member, 0), "dead", "HTTP 410", 0))
    shop(replay([member]))
    shop(delivered(tried(shop, member, 0), "later", "HTTP 503", 60))


@pytest.mark.parametrize(
    "first",
    [
        lambda shop, one: None,
        lambda shop, one: shop(delivered(tried(shop, one), "later", "HTTP 503", 60)),
        lambda shop, one: tried(shop, one),
        lambda shop, one: shop(delivered(tried(shop, one), "dead", "HTTP 410", 0)),
        replayed,
    ],
    ids=["pending", "failed once", "being tried", "dead", "replayed"],
)
def test_a_delivery_begins_anew_if_its_key_is_used_again(
    shop: SyncLedger, member: str, first: Callable[[SyncLedger, str], object]
) -> None:
    """Whatever became of the first job's delivery: it is tried at once, and ends nothing."""
    client: Any = shop.redis
    usual = dict(client.hgetall(delivery_key(member)))
    first(shop, member)
    dead = client.zscore("{reg}:dead", member) is not None
    client.delete(job_key(job().id))
    woken(shop)
    take_in(shop, job(reply_to=("results", "crm")))
    held = claimed(shop)
    woken(shop)
    concluded(shop, held, "registered")
    assert [wake.member for wake in woken(shop)] == [member]
    found = dict(client.hgetall(delivery_key(member)))
    assert found.keys() - usual.keys() <= {b"fence", b"replaced"}
    assert {**found, **dict.fromkeys(CHANGED)} == {**found, **usual, **dict.fromkeys(CHANGED)}
    assert client.ttl(delivery_key(member)) == -1
    assert client.hget(STATS, "dead_dropped") == (b"1" if dead else None)
    assert [
        client.zscore(f"{{reg}}:{index}", member) for index in ("dead", "trying:crm", "line:crm")
    ] == [None] * 3
    assert client.zscore("{reg}:pending:crm", member) == float(found[b"created_at"])
    again = tried(shop, member)
    assert (again.tries, again.created_at) == (0, again.started_at)
    event = read_event(KEYRING.open(again.event, seals.event(again.event_id, again.endpoint)))
    assert event == events(shop)[-1]


@pytest.mark.parametrize("verdict", ["arrived", "later", "dead"])
def test_a_late_result_of_a_replaced_delivery_does_not_count(
    shop: SyncLedger, member: str, verdict: str
) -> None:
    """The endpoint has got the first job's event, not the second one's."""
    stale = tried(shop, member)
    shop.redis.delete(job_key(job().id))
    take_in(shop, job(reply_to=("results", "crm")))
    concluded(shop, claimed(shop), "registered")
    for _ in range(2):
        assert shop(delivered(stale, verdict, "", 0)).state == "stale"
        one = tried(shop, member, 0)
    assert shop(delivered(one, "arrived", "HTTP 200", 0)).state == "delivered"
    assert not alarms(shop)

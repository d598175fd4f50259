"""A delivery in the ledger, step by step."""

import pytest

from regworker.domain.event import read_event
from regworker.ledger import SyncLedger
from regworker.ledger.records import (
    Delivery,
    Idle,
    Record,
)
from regworker.ledger.transitions import (
    deliver,
    delivered,
)
from regworker.sealing import seals
from tests.integration.ledger_steps import (
    KEYRING,
    alarms,
    claimed,
    concluded,
    events,
)
from tests.integration.outbox import woken


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

"""Lists of deliveries are complete, although deliveries arrive and die while they are read."""

from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest

from regworker.ledger import SyncLedger
from regworker.ledger.endpoints import pending_key, replay
from regworker.ledger.transitions import ALARMS, DEAD, delivery_key
from tests.integration.jobs import ACTOR
from tests.integration.outbox import open_shop, settled, tried
from worker.operations.deliveries import BATCH, DeliveryAdmin, Filter
from worker.operations.jobs import WrongCursor

#: More than three pages.
MANY = 3 * BATCH + 1

#: When they were created: each at a time of its own, or all at one.
TIMES: dict[str, Callable[[int], int]] = {"times": lambda number: number, "one time": lambda _: 0}


@pytest.fixture
def shop(ledger: SyncLedger) -> SyncLedger:
    """A ledger with the endpoints `crm` and `erp`."""
    return open_shop(ledger)


def many(shop: SyncLedger, state: str, at: Callable[[int], int], count: int = MANY) -> list[str]:
    """So many deliveries to `crm`, in order of their ids."""
    ids = [f"d:{number:06}.registered:crm" for number in range(count)]
    first = round(shop.now()) - 60_000
    lines = shop.redis.pipeline(transaction=False)
    for number, id_ in enumerate(ids):
        now = first + at(number)
        record: Any = {"job": f"{number:06}", "event_id": f"{number:06}.registered"}
        record |= {"endpoint": "crm", "state": state, "tries": 0, "event": "sealed"}
        record |= {"created_at": now} | ({"dead_at": now} if state == "dead" else {})
        lines.hset(delivery_key(id_), mapping=record)
        lines.zadd(DEAD if state == "dead" else pending_key("crm"), {id_: now})
    lines.execute()
    return ids


def arrive(shop: SyncLedger, id_: str) -> None:
    """A worker has delivered it."""
    shop.redis.zrem(ALARMS, id_)
    assert settled(shop, tried(shop, id_), "arrived").state == "delivered"


def revive(shop: SyncLedger, id_: str) -> None:
    """A person replays it."""
    assert shop(replay([id_], ACTOR)) == ("replayed",)


#: What takes a delivery out of the list of a state.
LEAVES = {"pending": arrive, "dead": revive}


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("state", LEAVES)
def test_a_list_leaves_none_out_while_others_leave_it(
    shop: SyncLedger, state: Any, times: str
) -> None:
    """And names none twice."""
    ids = many(shop, state, TIMES[times])
    listed = []
    for one in DeliveryAdmin(shop).deliveries(Filter("crm", state)):
        listed.append(one.id)
        if len(listed) % BATCH == BATCH // 2:
            for id_ in listed[-BATCH // 2 :]:
                LEAVES[state](shop, id_)
    assert listed == ids


@pytest.mark.parametrize("times", TIMES)
def test_a_list_goes_on_behind_a_delivery_that_has_left(shop: SyncLedger, times: str) -> None:
    """From the pending ones to the dead ones."""
    admin, listed, after = DeliveryAdmin(shop), list[str](), ""
    ids = many(shop, "pending", TIMES[times])
    while page := list(islice(admin.deliveries(Filter(), after), 150)):
        listed += [one.id for one in page]
        after = admin.place(page[-1])
        (revive if page[-1].state == "dead" else arrive)(shop, page[-1].id)
        assert len(listed) <= MANY
    assert listed == ids


def test_a_pending_delivery_that_dies_meanwhile_is_listed_once(shop: SyncLedger) -> None:
    """As the dead one that it is."""
    first, second = many(shop, "pending", TIMES["times"], 2)
    found = DeliveryAdmin(shop).deliveries(Filter())
    one = tried(shop, second)
    shown = next(found)
    settled(shop, one, "dead")
    assert {shown.id, *(one.id for one in found)} == {first, second}


def test_a_replay_ends_although_all_die_again(shop: SyncLedger) -> None:
    """Each is replayed once."""
    ids = many(shop, "dead", TIMES["times"])
    admin, done = DeliveryAdmin(shop), 0
    for one in admin.deliveries(Filter("crm", "dead")):
        revive(shop, one.id)
        settled(shop, tried(shop, one.id), "dead")
        done += 1
        assert done <= MANY
    assert done == len(ids)


@pytest.mark.parametrize("after", ["x", "pending", "pending x d:a", "gone 1 d:a:crm"])
def test_a_list_does_not_go_on_behind_nonsense(shop: SyncLedger, after: str) -> None:
    """It says so."""
    with pytest.raises(WrongCursor, match="after: does not belong to this list"):
        next(DeliveryAdmin(shop).deliveries(Filter(), after))

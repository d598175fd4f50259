"""Acts whose answer is lost, and repeats while a failover is under way."""

import pytest

from regworker.domain.errors import LedgerUnavailable
from regworker.ledger import SyncLedger
from regworker.ledger.admin import (
    drop_group,
    stray,
    trust,
    unquarantine,
)
from regworker.ledger.transitions import (
    Command,
    accept,
    account_key,
)
from tests.integration.jobs import ACTOR
from tests.integration.ledger_steps import (
    DAY,
    RESULTS,
    job,
    take_in,
)


def test_an_act_whose_answer_was_lost_has_the_same_answer_when_it_is_repeated(
    ledger: SyncLedger,
) -> None:
    """What it acted on is gone by then; another such act finds nothing."""
    ledger.redis.xgroup_create(RESULTS, "crm", mkstream=True)
    ledger.redis.zadd("{reg}:quarantine", {"one": 1})
    ledger.redis.hset("{reg}:quarantine:one", "times", "1")
    ledger(stray(account_key("acme", "default")))

    def acts() -> list[Command[bool]]:
        return [
            drop_group(RESULTS, "crm", ACTOR),
            unquarantine("one", ACTOR, "dropped", 1),
            trust(account_key("acme", "default"), "account", "acme/default", ACTOR),
        ]

    nothing = unquarantine("two", ACTOR, "dropped", 1)
    assert not ledger(nothing)
    ledger.redis.zadd("{reg}:quarantine", {"two": 1})
    ledger.redis.hset("{reg}:quarantine:two", "times", "1")
    assert ledger(nothing), "it is there now"
    assert ledger.redis.zscore("{reg}:quarantine", "two") is None
    for first, second in zip(acts(), acts(), strict=True):
        assert [ledger(first), ledger(first), ledger(second)] == [True, True, False], first.script
    assert ledger.redis.xlen("{reg}:audit") == 4


def test_a_counter_at_a_server_that_was_demoted_is_no_fault_of_its_job(shop: SyncLedger) -> None:
    """The first command of a repeat that writes is a counter: its error passes."""
    take_in(shop, job())
    shop.redis.replicaof("127.0.0.1", "1")
    try:
        with pytest.raises(LedgerUnavailable):
            shop.each([accept(job(), "sealed", ["k1:same"], DAY)], 0.2)
    finally:
        shop.redis.replicaof("NO", "ONE")

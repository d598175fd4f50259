"""An operator's act in the ledger, when its answer is lost."""

from regworker.ledger import SyncLedger
from regworker.ledger.admin import (
    drop_group,
    stray,
    trust,
    unquarantine,
)
from regworker.ledger.transitions import (
    Command,
    account_key,
)
from tests.integration.jobs import ACTOR
from tests.integration.ledger_steps import (
    RESULTS,
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

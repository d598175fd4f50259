"""A job is erased while its deliveries change: none of them is missed."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from regworker.domain.request import Origin, read
from regworker.ledger import SyncLedger
from regworker.ledger.admin import refuse
from regworker.ledger.endpoints import replay
from regworker.ledger.job_data import Erased
from regworker.ledger.steps import Step, carry
from regworker.ledger.transitions import DEAD, delivery_key
from regworker.settings import Settings
from tests.integration.jobs import ACTOR
from tests.integration.outbox import ANNOUNCER, KEYS, due, open_shop, settled, tried, woken
from worker.operations.job_data import PART, JobData

#: More than the steps of an erasure in these tests.
MOST_STEPS = 50


@pytest.fixture
def shop(ledger: SyncLedger) -> SyncLedger:
    """A ledger with the endpoints `crm` and `erp`."""
    return open_shop(ledger)


def own(shop: SyncLedger, key: str) -> tuple[str, str]:
    """A job whose event is due: its id, and the delivery."""
    [member] = due(shop, key)
    return member.split(":")[1].split(".")[0], member


def refusal(shop: SyncLedger, key: str) -> tuple[str, str]:
    """A job without a delivery of its own, and the delivery of a refused request to cancel it."""
    job_id, member = own(shop, key)
    settled(shop, tried(shop, member), "arrived")
    entry = read("cancel", {"job_id": job_id, "reply_to": ["crm"]}, Origin("stream", "1-1"))
    subject = f"refused-{key}"
    assert shop(refuse(subject, ANNOUNCER.refused(subject, shop.now(), entry, ()), 60))
    [wake] = woken(shop)
    return job_id, wake.member


def die(shop: SyncLedger, member: str) -> None:
    """The last try fails."""
    assert settled(shop, tried(shop, member), "dead").state == "dead"


def revive(shop: SyncLedger, member: str) -> None:
    """A person replays it."""
    assert shop(replay([member], ACTOR)) == ("replayed",)


def revive_briefly(shop: SyncLedger, member: str) -> None:
    """A person replays it, and the next try fails as well."""
    revive(shop, member)
    die(shop, member)


def drop(shop: SyncLedger, member: str) -> None:
    """Its time among the dead ones is over, since that was shortened; its record is kept."""
    assert shop.redis.zrem(DEAD, member)


#: What happens to a delivery meanwhile, and whether it was dead before.
CHANGES: dict[str, tuple[Callable[[SyncLedger, str], None], bool]] = {
    "dies": (die, False),
    "replayed": (revive, True),
    "replayed, and dies": (revive_briefly, True),
    "dropped": (drop, True),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", [own, refusal])
def test_a_delivery_that_changes_meanwhile_is_erased(
    shop: SyncLedger, kind: Callable[[SyncLedger, str], tuple[str, str]], change: str
) -> None:
    """Before whichever step of the erasure that is."""
    happens, dead_before = CHANGES[change]
    for before in range(MOST_STEPS):
        job_id, member = kind(shop, f"key{before}")
        if dead_before:
            die(shop, member)
        done, steps = erased(shop, job_id, before, lambda m=member: happens(shop, m))  # type: ignore[misc]
        if steps <= before:
            return
        assert not shop.redis.exists(delivery_key(member)), f"{change}, before step {before}"
        assert done.deliveries == 1
    pytest.fail("an erasure takes too many steps for this test")


def test_deliveries_of_several_endpoints_and_times_are_erased(shop: SyncLedger) -> None:
    """Also of a job whose record has expired; and a repeat finds nothing."""
    job_id, member = own(shop, "key")
    others = [
        f"d:{job_id}.{kind}:{to}" for kind in ("review", "registered.2") for to in ("crm", "erp")
    ]
    for other in others:
        shop.redis.copy(delivery_key(member), delivery_key(other))
    shop.redis.delete(f"{{reg}}:job:{job_id}")
    assert erased(shop, job_id)[0].deliveries == 5
    assert not shop.redis.keys("{reg}:delivery:*")


def test_very_many_deliveries_are_erased_some_at_a_time(shop: SyncLedger) -> None:
    """No script holds the server for long; a repeat goes on where a command was killed."""
    job_id, member = own(shop, "key")
    for number in range(3 * PART):
        other = f"d:{job_id}.registered:hook-{number}"
        shop.redis.copy(delivery_key(member), delivery_key(other))
    sizes = []

    def do(step: Step) -> Any:
        commands = list(step) if isinstance(step, Iterable) else []
        sizes.extend(len(one.args) for one in commands if one.script == "forget")
        if len(sizes) == 3:
            sizes.append(0)
            raise InterruptedError
        return shop.carry(commands or step, 10)

    data = JobData(Settings.load(sealing_keys=KEYS))
    with pytest.raises(InterruptedError):
        carry(data.forget(job_id, ACTOR), do)
    assert carry(data.forget(job_id, ACTOR), do).deliveries == PART + 1
    assert max(sizes) < PART + 10
    assert not shop.redis.keys(delivery_key("*"))


def erased(
    shop: SyncLedger, job_id: str, before: int = 0, happens: Callable[[], object] = lambda: None
) -> tuple[Erased, int]:
    """Erase a job's data; something happens before a step. Returns also how many steps it took."""
    steps = 0

    def do(step: Step) -> Any:
        nonlocal steps
        if steps == before:
            happens()
        steps += 1
        return shop.carry(step, 10)

    settings = Settings.load(sealing_keys=KEYS)
    return carry(JobData(settings).forget(job_id, ACTOR), do), steps

"""How much of everything exists: counted in one read, whatever the ledger holds."""

from collections.abc import Iterator
from typing import Any

import pytest

from regworker.domain.job import Job
from regworker.domain.states import State
from regworker.ledger import SyncLedger
from regworker.ledger.admin import Limits, announce, resolve
from regworker.ledger.records import Claim, Delivery
from regworker.ledger.snapshot import (
    LATER,
    OPEN,
    PAGE,
    Beat,
    Snapshot,
    beat,
    place,
    repair,
    resign,
    snapshot,
    whole,
    worker_key,
)
from regworker.ledger.transitions import (
    CONFIGURED,
    STATS,
    Decision,
    Publication,
    accept,
    cancel,
    claim,
    deliver,
    delivered,
    job_key,
    look,
    settle,
)
from tests.integration.jobs import ACTOR
from tests.integration.ledger_steps import AT_ONCE, IMPATIENT, RULES, SETTLE
from tests.integration.outbox import woken


@pytest.fixture(autouse=True)
def announced(ledger: SyncLedger) -> Iterator[None]:
    """An account and an endpoint that a worker announced."""
    ledger(announce([Limits("acme", "default", 100, 1000, 5)], ["results", "crm"]))
    yield
    ledger.redis.flushdb()


def enqueued(ledger: SyncLedger, key: str, **more: Any) -> str:
    """Enqueue a job; return its id."""
    job = Job(provider="acme", idempotency_key=key, registration={}, **more)
    ledger(accept(job, "sealed", ["k:1"], 3600))
    return job.id


def claimed(ledger: SyncLedger, job_id: str) -> Claim:
    """Claim a job."""
    found = ledger(claim(job_id, RULES, 0.5))
    assert isinstance(found, Claim)
    return found


def publication(job_id: str, kind: str, *endpoints: str) -> Publication:
    """An event to publish."""
    return Publication(
        f"{job_id}.1.{kind}", "x", b'{"type":"x"}', "sealed", "kept", endpoints or ("results",)
    )


def counted(ledger: SyncLedger) -> dict[str, int]:
    """The unfinished jobs by state and lane, without zeros."""
    found = {f"{one.state} {one.lane}": one.count for one in ledger(snapshot()).jobs}
    return {name: number for name, number in found.items() if number}


def due(found: Snapshot, lane: str) -> int:
    """How many queued jobs of a lane may be tried now."""
    return sum(
        one.count - one.put_off for one in found.jobs if (one.state, one.lane) == ("queued", lane)
    )


def test_a_job_is_counted_in_its_state_and_lane_until_it_is_over(ledger: SyncLedger) -> None:
    """Queued, calling, unknown, looked up, in review, unknown again, registered."""
    live, bulk = enqueued(ledger, "live"), enqueued(ledger, "bulk", lane="bulk")
    assert counted(ledger) == {"queued live": 1, "queued bulk": 1}
    held = claimed(ledger, live)
    assert counted(ledger) == {"calling live": 1, "queued bulk": 1}
    ledger(settle(held, Decision("unknown", "ReadTimeout"), IMPATIENT, None))
    assert counted(ledger) == {"unknown live": 1, "queued bulk": 1}
    asking = claimed(ledger, live)
    assert counted(ledger) == {"unknown live": 1, "queued bulk": 1}
    ledger(settle(asking, Decision("unresolvable", "who?"), SETTLE, publication(live, "review")))
    assert counted(ledger) == {"review live": 1, "queued bulk": 1}
    assert ledger(snapshot()).review_since
    ledger(resolve(asking.record, "resend", ACTOR, 3600, 86400, None))
    assert counted(ledger) == {"unknown live": 1, "queued bulk": 1}
    ledger(
        settle(
            claimed(ledger, live), Decision("registered"), SETTLE, publication(live, "registered")
        )
    )
    assert counted(ledger) == {"queued bulk": 1}
    record = ledger(look(bulk))
    assert record is not None
    ledger(cancel(record, 86400, publication(bulk, "cancelled")))
    assert counted(ledger) == {}
    found = ledger(snapshot())
    assert found.stats["registered:acme:default"] == found.stats["cancelled:acme:default"] == 1
    assert not ledger.redis.exists(OPEN, LATER)


def test_a_lease_that_runs_out_makes_the_job_unknown_also_in_the_count(ledger: SyncLedger) -> None:
    """The next claim finds it unknown."""
    job_id = enqueued(ledger, "k")
    ledger(claim(job_id, AT_ONCE, 0.5))
    assert counted(ledger) == {"calling live": 1}
    claimed(ledger, job_id)
    assert counted(ledger) == {"unknown live": 1}


def test_a_retry_is_queued_and_not_due(ledger: SyncLedger) -> None:
    """When its time comes it is due again without any command."""
    first, second = enqueued(ledger, "1"), enqueued(ledger, "2")
    enqueued(ledger, "3", lane="bulk")
    ledger(settle(claimed(ledger, first), Decision("retry", "429", 3600), SETTLE, None))
    found = ledger(snapshot())
    assert (due(found, "live"), due(found, "bulk")) == (1, 1)
    ledger(settle(claimed(ledger, second), Decision("retry", "429", 0), SETTLE, None))
    assert due(ledger(snapshot()), "live") == 1
    assert counted(ledger) == {"queued live": 2, "queued bulk": 1}


def test_the_oldest_job_is_told_by_state(ledger: SyncLedger) -> None:
    """By its time of acceptance, however often it was tried since."""
    first = enqueued(ledger, "1")
    enqueued(ledger, "2")
    record = ledger(look(first))
    assert record is not None
    oldest = {one.state: one.oldest for one in ledger(snapshot()).jobs if one.lane == "live"}
    assert oldest["queued"] == record.accepted_at
    claimed(ledger, first)
    oldest = {one.state: one.oldest for one in ledger(snapshot()).jobs if one.lane == "live"}
    assert oldest["calling"] == record.accepted_at
    assert oldest["queued"] >= record.accepted_at


def test_a_look_costs_the_same_however_much_there_is(ledger: SyncLedger) -> None:
    """The server runs no command per job."""

    def spent() -> int:
        def all_() -> int:
            stats: Any = ledger.redis.info("commandstats")
            return sum(one["calls"] for name, one in stats.items() if name != "cmdstat_info")

        before = all_()
        ledger(snapshot())
        return all_() - before

    ledger(snapshot())  # its script is loaded by now
    few = spent()
    lines = ledger.redis.pipeline(transaction=False)
    for number in range(5000):
        lines.zadd(OPEN, {f"job-{number}": place(State.QUEUED, "bulk", 10 + number)})
        lines.zadd("{reg}:alarms", {f"job-{number}": 4e12})
        lines.hset(job_key(f"job-{number}"), mapping={"state": "queued", "lane": "bulk"})
    lines.execute()
    found = ledger(snapshot())
    assert counted(ledger)["queued bulk"] == found.alarms == 5000
    assert spent() <= few


def test_an_entry_that_is_not_true_is_found_and_repaired(ledger: SyncLedger) -> None:
    """Whatever wrote it."""
    job_id = enqueued(ledger, "k")
    ledger.redis.zadd(OPEN, {"nobody": place(State.CALLING, "live", 5)})
    ledger.redis.zadd(OPEN, {job_id: place(State.REVIEW, "bulk", 5)})
    assert ledger(repair()) == 2
    assert counted(ledger) == {"queued live": 1}
    assert ledger(repair()) == 0


def test_deliveries_are_counted_by_endpoint(ledger: SyncLedger) -> None:
    """Pending deliveries and dead ones."""
    for key in ("1", "2"):
        job_id = enqueued(ledger, key, reply_to=("crm",))
        event = publication(job_id, "registered", "crm")
        held = claimed(ledger, job_id)
        woken(ledger)
        ledger(settle(held, Decision("registered"), SETTLE, event))
        [wake] = woken(ledger)
        member = wake.member
    [crm] = ledger(snapshot()).endpoints
    assert (crm.name, crm.pending, crm.disabled) == ("crm", 2, False)
    assert crm.oldest
    tried = ledger(deliver(member, 30))
    assert isinstance(tried, Delivery)
    assert ledger(snapshot()).endpoints[0].trying == 1
    ledger(delivered(tried, "dead", "HTTP 500", 0))
    found = ledger(snapshot())
    assert (found.endpoints[0].pending, found.dead) == (1, {"crm": 1})


def test_the_lag_of_whoever_reads_the_results_is_told(ledger: SyncLedger) -> None:
    """The unread entries of a group, and its unacknowledged ones."""
    stream = "{reg}:results"
    for _ in range(3):
        ledger.redis.xadd(stream, {"event": "x"})
    ledger.redis.xgroup_create(stream, "crm", "0")
    ledger.redis.xreadgroup("crm", "me", {stream: ">"}, count=1)
    [results] = [one for one in ledger(snapshot()).streams if one.name == stream]
    assert results.length == 3
    [crm] = results.groups
    assert (crm.name, crm.lag, crm.pending) == ("crm", 2, 1)


def test_the_pace_of_an_account_is_told(ledger: SyncLedger) -> None:
    """Each call uses up an interval of the burst."""
    # A pace of minutes: what is used up must not be free again before the test looks.
    ledger(announce([Limits("acme", "default", 60_000, 600_000, 5)], []))
    assert ledger(snapshot()).accounts[0].pace_used == 0
    for key in ("1", "2", "3"):
        claimed(ledger, enqueued(ledger, key))
    [acme] = ledger(snapshot()).accounts
    assert (acme.provider, acme.in_flight, acme.max_in_flight) == ("acme", 3, 5)
    assert 0 < acme.pace_used <= 0.3
    assert acme.rate == 1 / 60


def test_very_many_accounts_are_looked_at_some_at_a_time(ledger: SyncLedger) -> None:
    """Nothing is missing, and no script looks at more of them than a page."""
    few = whole(ledger)
    assert not few.partial
    assert [one.account for one in few.accounts] == ["default"]
    many = [Limits("acme", f"store{number:04}", 100, 1000, 5) for number in range(3 * PAGE)]
    ledger(announce(many, []))
    ledger.redis.hset(STATS, mapping={f"registered:acme:{one.account}": 2 for one in many})
    claimed(ledger, enqueued(ledger, "1"))
    first = ledger(snapshot())
    assert first.partial
    assert (first.accounts, first.endpoints, first.stats) == ((), (), {})
    assert [(one.state, one.count) for one in first.jobs if one.count] == [("calling", 1)]
    ledger.redis.config_resetstat()
    found = whole(ledger)
    assert [one.account for one in found.accounts] == ["default", *(one.account for one in many)]
    assert found.accounts[0].in_flight == 1
    assert [one.name for one in found.endpoints] == ["crm"]
    assert found.stats["registered:acme:store0299"] == 2
    assert found.stats["accepted"] == 1
    calls: Any = ledger.redis.info("commandstats")
    assert "cmdstat_smembers" not in calls
    assert "cmdstat_keys" not in calls
    assert calls["cmdstat_evalsha"]["calls"] == 1 + -(-(3 * PAGE + 3) // PAGE)


def test_an_unserved_endpoint_is_seen_among_very_many(ledger: SyncLedger) -> None:
    """As long as there are deliveries to it, and no longer."""
    ledger(announce([Limits("acme", f"s{number}", 0, 0, 5) for number in range(PAGE)], ["old"]))
    ledger.redis.srem(CONFIGURED, "endpoint:old")
    assert [one.name for one in whole(ledger).endpoints] == ["crm"]
    ledger.redis.zadd("{reg}:pending:old", {"d:1:old": 1})
    assert [(one.name, one.pending) for one in whole(ledger).endpoints] == [("crm", 0), ("old", 1)]


def sign(name: str = "host:1", **parts: tuple[float, float]) -> Beat:
    """A worker's heartbeat."""
    return Beat(name, "host", 1, "0.1.0", "threads", 10, 5, 2, "", {"loop": (0, 30), **parts}, 0)


def test_a_worker_is_well_stuck_or_silent(ledger: SyncLedger) -> None:
    """By its own marks and its last heartbeat."""
    ledger(beat(sign("host:1", clock=(1, 30)), 600))
    ledger(beat(sign("host:2", clock=(31, 30)), 600))
    found = ledger(snapshot())
    well, stuck = found.workers
    assert (well.condition(found.at), stuck.condition(found.at)) == ("well", "stuck")
    assert stuck.silent(found.at).keys() == {"clock"}
    assert well.condition(well.at + 31_000) == "silent"


def test_a_worker_that_takes_its_leave_is_forgotten(ledger: SyncLedger) -> None:
    """A worker that only goes silent is forgotten after a while, with all its data."""
    ledger(beat(sign(), 600))
    ledger(resign("host:1"))
    assert ledger(snapshot()).workers == ()
    assert not ledger.redis.exists("{reg}:workers", worker_key("host:1"))
    ledger(beat(sign(), 600))
    assert ledger.redis.pttl(worker_key("host:1")) > 0
    ledger.redis.zadd("{reg}:workers", {"host:1": 1})
    ledger(beat(sign("host:2"), 600))
    assert [one.name for one in ledger(snapshot()).workers] == ["host:2"]

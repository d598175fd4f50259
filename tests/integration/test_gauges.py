"""How much of everything there is: counted in one look, whatever the ledger holds."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.test_ledger import AT_ONCE, IMPATIENT, RULES, SETTLE
from worker.job import Job
from worker.ledger import SyncLedger
from worker.ledger.commands import (
    Publication,
    Verdict,
    accept,
    cancel,
    claim,
    deliver,
    delivered,
    job_key,
    look,
    settle,
)
from worker.ledger.gauges import (
    LATER,
    OPEN,
    Beat,
    Gauges,
    beat,
    gauges,
    mend,
    place,
    resign,
    worker_key,
)
from worker.ledger.operations import Limits, announce, resolve
from worker.ledger.records import Claim, Delivery
from worker.lifecycle import State


@pytest.fixture(autouse=True)
def announced(ledger: SyncLedger) -> Iterator[None]:
    """An account and an endpoint, served by somebody."""
    ledger(announce([Limits("acme", "default", 100, 1000, 5)], ["results", "crm"]))
    yield
    ledger.redis.flushdb()


def enqueued(ledger: SyncLedger, key: str, **more: Any) -> str:
    """A job; its id."""
    job = Job(provider="acme", idempotency_key=key, registration={}, **more)
    ledger(accept(job, "sealed", ["k:1"], 3600))
    return job.id


def claimed(ledger: SyncLedger, job_id: str) -> Claim:
    """A lease on it."""
    found = ledger(claim(job_id, RULES, 0.5))
    assert isinstance(found, Claim)
    return found


def told(job_id: str, kind: str, *endpoints: str) -> Publication:
    """An event."""
    return Publication(
        f"{job_id}.1.{kind}", b'{"type":"x"}', "sealed", "kept", endpoints or ("results",)
    )


def counted(ledger: SyncLedger) -> dict[str, int]:
    """The jobs that are not over, by state and lane; those that are none left out."""
    found = {f"{one.state} {one.lane}": one.count for one in ledger(gauges()).jobs}
    return {name: number for name, number in found.items() if number}


def due(found: Gauges, lane: str) -> int:
    """How many queued jobs of a lane may be tried now."""
    return sum(
        one.count - one.put_off for one in found.jobs if (one.state, one.lane) == ("queued", lane)
    )


def test_a_job_is_counted_in_its_state_and_lane_until_it_is_over(ledger: SyncLedger) -> None:
    """Queued, calling, unknown, asked after, in review, unknown again, registered."""
    live, bulk = enqueued(ledger, "live"), enqueued(ledger, "bulk", lane="bulk")
    assert counted(ledger) == {"queued live": 1, "queued bulk": 1}
    held = claimed(ledger, live)
    assert counted(ledger) == {"calling live": 1, "queued bulk": 1}
    ledger(settle(held, Verdict("unknown", "ReadTimeout"), IMPATIENT, None))
    assert counted(ledger) == {"unknown live": 1, "queued bulk": 1}
    asking = claimed(ledger, live)
    assert counted(ledger) == {"unknown live": 1, "queued bulk": 1}
    ledger(settle(asking, Verdict("unresolvable", "who?"), SETTLE, told(live, "review")))
    assert counted(ledger) == {"review live": 1, "queued bulk": 1}
    assert ledger(gauges()).review_since
    ledger(resolve(live, "resend", "ann", 3600, 86400, None))
    assert counted(ledger) == {"unknown live": 1, "queued bulk": 1}
    ledger(settle(claimed(ledger, live), Verdict("registered"), SETTLE, told(live, "registered")))
    assert counted(ledger) == {"queued bulk": 1}
    record = ledger(look(bulk))
    assert record is not None
    ledger(cancel(record, 86400, told(bulk, "cancelled")))
    assert counted(ledger) == {}
    found = ledger(gauges())
    assert found.stats["registered:acme:default"] == found.stats["cancelled:acme:default"] == 1
    assert not ledger.redis.exists(OPEN, LATER)


def test_a_lease_that_runs_out_makes_the_job_unknown_also_in_the_count(ledger: SyncLedger) -> None:
    """Whoever looks next finds it so."""
    job_id = enqueued(ledger, "k")
    ledger(claim(job_id, AT_ONCE, 0.5))
    assert counted(ledger) == {"calling live": 1}
    claimed(ledger, job_id)
    assert counted(ledger) == {"unknown live": 1}


def test_a_retry_is_queued_and_not_due(ledger: SyncLedger) -> None:
    """Until its time has come: then it is due again, without anybody touching it."""
    first, second = enqueued(ledger, "1"), enqueued(ledger, "2")
    enqueued(ledger, "3", lane="bulk")
    ledger(settle(claimed(ledger, first), Verdict("retry", "429", 3600), SETTLE, None))
    found = ledger(gauges())
    assert (due(found, "live"), due(found, "bulk")) == (1, 1)
    ledger(settle(claimed(ledger, second), Verdict("retry", "429", 0), SETTLE, None))
    assert due(ledger(gauges()), "live") == 1
    assert counted(ledger) == {"queued live": 2, "queued bulk": 1}


def test_the_oldest_job_is_told_by_state(ledger: SyncLedger) -> None:
    """By when it was accepted, however often it was tried since."""
    first = enqueued(ledger, "1")
    enqueued(ledger, "2")
    record = ledger(look(first))
    assert record is not None
    oldest = {one.state: one.oldest for one in ledger(gauges()).jobs if one.lane == "live"}
    assert oldest["queued"] == record.accepted_at
    claimed(ledger, first)
    oldest = {one.state: one.oldest for one in ledger(gauges()).jobs if one.lane == "live"}
    assert oldest["calling"] == record.accepted_at
    assert oldest["queued"] >= record.accepted_at


def test_a_look_costs_the_same_however_much_there_is(ledger: SyncLedger) -> None:
    """Counted in commands of the server: none is spent on a job."""

    def spent() -> int:
        def all_() -> int:
            stats: Any = ledger.redis.info("commandstats")
            return sum(one["calls"] for name, one in stats.items() if name != "cmdstat_info")

        before = all_()
        ledger(gauges())
        return all_() - before

    ledger(gauges())  # its script is loaded by now
    few = spent()
    lines = ledger.redis.pipeline(transaction=False)
    for number in range(5000):
        lines.zadd(OPEN, {f"job-{number}": place(State.QUEUED, "bulk", 10 + number)})
        lines.zadd("{reg}:alarms", {f"job-{number}": 4e12})
        lines.hset(job_key(f"job-{number}"), mapping={"state": "queued", "lane": "bulk"})
    lines.execute()
    found = ledger(gauges())
    assert counted(ledger)["queued bulk"] == found.alarms == 5000
    # The oldest job's own record is looked at: one command more.
    assert spent() <= few + 1


def test_an_entry_that_is_not_true_is_found_and_mended(ledger: SyncLedger) -> None:
    """As an older version's worker leaves it, which knows of no index."""
    job_id = enqueued(ledger, "k")
    ledger.redis.zadd(OPEN, {"nobody": place(State.CALLING, "live", 5)})
    ledger.redis.zadd(OPEN, {job_id: place(State.REVIEW, "bulk", 5)})
    astray = ledger(gauges()).astray
    assert set(astray) == {"nobody", job_id}
    ledger(mend(astray))
    assert ledger(gauges()).astray == ()
    assert counted(ledger) == {"queued live": 1}


def test_deliveries_are_counted_by_endpoint(ledger: SyncLedger) -> None:
    """Those to be made, those that nobody took."""
    for key in ("1", "2"):
        job_id = enqueued(ledger, key, reply_to=("crm",))
        event = told(job_id, "registered", "crm")
        done = ledger(settle(claimed(ledger, job_id), Verdict("registered"), SETTLE, event))
        member = done.wakes[0].member  # type: ignore[union-attr]
    [crm] = ledger(gauges()).endpoints
    assert (crm.name, crm.pending, crm.disabled) == ("crm", 2, False)
    assert crm.oldest
    tried = ledger(deliver(member, 30))
    assert isinstance(tried, Delivery)
    assert ledger(gauges()).endpoints[0].trying == 1
    ledger(delivered(tried, "dead", "HTTP 500", 0))
    found = ledger(gauges())
    assert (found.endpoints[0].pending, found.dead) == (1, {"crm": 1})


def test_the_lag_of_whoever_reads_the_results_is_told(ledger: SyncLedger) -> None:
    """What a group has not read, and what it has read and not acknowledged."""
    stream = "{reg}:results"
    for _ in range(3):
        ledger.redis.xadd(stream, {"event": "x"})
    ledger.redis.xgroup_create(stream, "crm", "0")
    ledger.redis.xreadgroup("crm", "me", {stream: ">"}, count=1)
    [results] = [one for one in ledger(gauges()).streams if one.name == stream]
    assert results.length == 3
    [crm] = results.groups
    assert (crm.name, crm.lag, crm.pending) == ("crm", 2, 1)


def test_the_pace_of_an_account_is_told(ledger: SyncLedger) -> None:
    """Each call uses up an interval of the burst."""
    assert ledger(gauges()).accounts[0].pace_used == 0
    for key in ("1", "2", "3"):
        claimed(ledger, enqueued(ledger, key))
    [acme] = ledger(gauges()).accounts
    assert (acme.provider, acme.in_flight, acme.max_in_flight) == ("acme", 3, 5)
    assert 0 < acme.pace_used <= 0.3
    assert acme.rate == 10


def sign(name: str = "host:1", **parts: tuple[float, float]) -> Beat:
    """A worker's sign of life."""
    return Beat(name, "host", 1, "0.1.0", "threads", 10, 5, 2, "", {"loop": (0, 30), **parts}, 0)


def test_a_worker_is_well_stuck_or_silent(ledger: SyncLedger) -> None:
    """By its own marks, and by when it was heard of last."""
    ledger(beat(sign("host:1", clock=(1, 30)), 600))
    ledger(beat(sign("host:2", clock=(31, 30)), 600))
    found = ledger(gauges())
    well, stuck = found.workers
    assert (well.condition(found.at), stuck.condition(found.at)) == ("well", "stuck")
    assert stuck.silent(found.at).keys() == {"clock"}
    assert well.condition(well.at + 31_000) == "silent"


def test_a_worker_that_takes_its_leave_is_forgotten(ledger: SyncLedger) -> None:
    """And one that doesn't, after a while, with everything that was known of it."""
    ledger(beat(sign(), 600))
    ledger(resign("host:1"))
    assert ledger(gauges()).workers == ()
    assert not ledger.redis.exists("{reg}:workers", worker_key("host:1"))
    ledger(beat(sign(), 600))
    assert ledger.redis.pttl(worker_key("host:1")) > 0
    ledger.redis.zadd("{reg}:workers", {"host:1": 1})
    ledger(beat(sign("host:2"), 600))
    assert [one.name for one in ledger(gauges()).workers] == ["host:2"]

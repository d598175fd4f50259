"""An account in the ledger: its limits, its breaker, and operators who pause it."""

from dataclasses import replace
from typing import Any

import pytest
import redis

from regworker.ledger import SyncLedger
from regworker.ledger.admin import (
    hold,
)
from regworker.ledger.records import (
    Claim,
    NotNow,
    Wake,
)
from regworker.ledger.transitions import (
    ALARMS,
    account_key,
    claim,
    job_key,
)
from tests.integration.jobs import ACTOR
from tests.integration.ledger_steps import (
    AT_ONCE,
    RULES,
    alarms,
    claimed,
    concluded,
    job,
    record,
    serve,
    take_in,
)
from tests.integration.outbox import woken

# -- limits of an account --------------------------------------------------------------------------


def test_a_full_account_passes_its_place_on_live_before_bulk(ledger: SyncLedger) -> None:
    """Of the waiting jobs, live ones go first, then the oldest."""
    serve(ledger, cap=1)
    for key, lane in (("first", "live"), ("bulk", "bulk"), ("live", "live")):
        take_in(ledger, job(key, lane=lane))
    held = claimed(ledger, "first")
    for key in ("bulk", "live"):
        assert ledger(claim(job(key).id, RULES, 0)).why == "full"
    woken(ledger)
    concluded(ledger, held, "registered")
    assert Wake(job("live").id, "live") in woken(ledger)


def test_a_place_that_is_passed_on_is_kept(ledger: SyncLedger) -> None:
    """A bulk job that claims in the meantime does not take it from the live job."""
    serve(ledger, cap=1)
    for key, lane in (("a", "live"), ("b", "live"), ("c", "bulk")):
        take_in(ledger, job(key, lane=lane))
    held = claimed(ledger, "a")
    assert isinstance(ledger(claim(job("b").id, RULES, 0.5)), NotNow)
    woken(ledger)
    concluded(ledger, held, "registered")
    assert [wake.member for wake in woken(ledger) if wake.lane == "live"] == [job("b").id]
    assert isinstance(ledger(claim(job("c").id, RULES, 0.5)), NotNow)
    claimed(ledger, "b")


def test_a_place_that_ran_out_is_filled_again(ledger: SyncLedger) -> None:
    """After two workers died, both places are used again at once."""
    serve(ledger, cap=2)
    for key in ("a", "b", "c", "d"):
        take_in(ledger, job(key))
    for key in ("a", "b"):
        claimed(ledger, key, replace(AT_ONCE, lease=60))
    for key in ("c", "d"):
        assert ledger(claim(job(key).id, RULES, 0)).why == "full"
    ledger.redis.zadd("{reg}:inflight:acme:default", {job(key).id: 1 for key in ("a", "b")})
    claimed(ledger, "c")
    due = ledger.redis.zscore(ALARMS, job("d").id)
    assert due <= record(ledger, "c").lease_until - 60_000


@pytest.mark.parametrize(("cap", "woken"), [(0, True), (3, True), (2, False)])
def test_a_claim_wakes_one_more_job_if_there_is_a_place_for_it(
    ledger: SyncLedger, cap: int, woken: bool
) -> None:
    """Several places may be free at once; the job keeps its turn where there is none."""
    serve(ledger, cap=1)
    for key in ("a", "b", "c", "d"):
        take_in(ledger, job(key))
    claimed(ledger, "a")
    waits = {key: ledger(claim(job(key).id, RULES, 0)).until for key in ("b", "c", "d")}
    serve(ledger, cap=cap)
    held = claimed(ledger, "b")
    due = {key: ledger.redis.zscore(ALARMS, job(key).id) for key in ("c", "d")}
    assert due == {"c": held.at if woken else waits["c"], "d": waits["d"]}
    waiting: Any = ledger.redis.zrange("{reg}:waiting:acme:default", 0, -1)
    left = ["d"] if woken else ["c", "d"]
    assert waiting == [job(key).id.encode() for key in left]


def test_who_settles_late_waits_no_more(ledger: SyncLedger) -> None:
    """A lookup whose lease expired and that waits again leaves the queue once it is settled."""
    serve(ledger, cap=1)
    for key in ("crm-1", "other"):
        take_in(ledger, job(key))
    concluded(ledger, claimed(ledger), "unknown")
    asker = claimed(ledger, rules=AT_ONCE)
    held = claimed(ledger, "other")
    assert ledger(claim(job().id, RULES, 0)).why == "full"
    concluded(ledger, asker, "unresolvable")
    woken(ledger)
    concluded(ledger, held, "registered")
    assert {wake.lane for wake in woken(ledger)} <= {"delivery"}
    assert not alarms(ledger)


def test_a_pace_reserves_a_slot(ledger: SyncLedger) -> None:
    """An early claim gets the time at which to return, and succeeds then."""
    serve(ledger, interval=5000)
    for key in ("a", "b", "c"):
        take_in(ledger, job(key))
    first = claimed(ledger, "a")
    waits = [ledger(claim(job(key).id, RULES, 0)) for key in ("b", "c")]
    assert [one.why for one in waits] == ["pace", "pace"]
    assert 4_900 <= waits[0].until - first.at <= 5_100
    assert waits[1].until - waits[0].until == 5_000


def test_a_backlog_of_bulk_does_not_book_the_slots_of_the_live(ledger: SyncLedger) -> None:
    """However large an import is, a live job waits a few seconds at most."""
    serve(ledger, interval=1000)
    for number in range(20):
        take_in(ledger, job(f"bulk-{number}", lane="bulk"))
        ledger(claim(job(f"bulk-{number}").id, RULES, 0))
    take_in(ledger, job("live"))
    answer = ledger(claim(job("live").id, RULES, 0))
    assert answer.until <= record(ledger, "live").accepted_at + 5_000


def test_a_breaker_opens_on_faults_and_lets_one_probe_through(ledger: SyncLedger) -> None:
    """A provider that is down gets no calls except one probe now and then."""
    serve(ledger)
    for key in ("a", "b", "c"):
        take_in(ledger, job(key))
    for key in ("a", "b"):
        concluded(ledger, claimed(ledger, key), "unknown", health="fault")
    assert ledger(claim(job("c").id, RULES, 0)).why == "breaker"
    ledger.redis.hset(account_key("acme", "default"), "retry_at", 1)
    probe = claimed(ledger, "c")
    assert ledger(claim(job("a").id, RULES, 0)).why == "breaker"
    concluded(ledger, probe, "registered", health="ok")
    assert claimed(ledger, "a").asking


def test_only_faults_in_a_row_open_a_breaker(ledger: SyncLedger) -> None:
    """A provider that answers in between is up."""
    serve(ledger)
    for key, health in (("a", "fault"), ("b", "ok"), ("c", "fault")):
        take_in(ledger, job(key))
        concluded(ledger, claimed(ledger, key), "unknown", health=health)
    take_in(ledger, job("d"))
    assert claimed(ledger, "d")


def test_no_probe_is_spent_on_who_finds_the_account_full(ledger: SyncLedger) -> None:
    """The one call that an open breaker allows is really made."""
    serve(ledger, cap=1)
    for key in ("a", "b"):
        take_in(ledger, job(key))
    held = claimed(ledger, "a")
    ledger.redis.hset(account_key("acme", "default"), mapping={"breaker": "open", "retry_at": 1})
    assert ledger(claim(job("b").id, RULES, 0)).why == "full"
    concluded(ledger, held, "retry")
    assert claimed(ledger, "b")


def test_refused_credentials_hold_all_jobs_of_the_account(ledger: SyncLedger) -> None:
    """Only an operator closes this breaker; the success of an earlier call does not."""
    serve(ledger)
    for key in ("a", "b", "c"):
        take_in(ledger, job(key))
    a, b = claimed(ledger, "a"), claimed(ledger, "b")
    concluded(ledger, a, "retry", spends=False, health="fault")
    concluded(ledger, claimed(ledger, "a"), "retry", spends=False, health="refused")
    concluded(ledger, b, "registered", health="ok")
    assert ledger(claim(job("c").id, RULES, 0)).why == "refused"


def test_each_call_of_a_job_takes_a_slot(ledger: SyncLedger) -> None:
    """A retry counts for the pace, too."""
    serve(ledger, interval=5000)
    take_in(ledger, job("a"))
    held = claimed(ledger, "a")
    concluded(ledger, held, "retry")
    again = ledger(claim(job("a").id, RULES, 0))
    assert again.why == "pace"
    assert again.until - held.at >= 4_900


def server_time(ledger: SyncLedger) -> int:
    """The ledger's clock (ms)."""
    seconds, micros = ledger.redis.time()  # type: ignore[misc]
    return int(seconds * 1000 + micros // 1000)


#: Why a job waits: the account's record, how long it waits (ms), and whether it is released when
#: an operator resumes the account. (A job that merely waits: 10 s, doubled with each wake-up.)
WAITS: dict[str, tuple[str, dict[str, str | int], int, bool]] = {
    "paused": ("paused", {"paused": "1"}, 20_000, True),
    "paused for a moment": ("paused", {"paused": "1", "paused_until": 3000}, 3000, True),
    "paused for long": ("paused", {"paused": "1", "paused_until": 60_000}, 20_000, True),
    "refused": ("refused", {"breaker": "refused"}, 20_000, True),
    "breaker": ("breaker", {"breaker": "open", "retry_at": 20_000}, 30_000, True),
    "full": ("full", {"max_in_flight": 1}, 20_000, True),
    "a slot of the pace": ("pace", {"interval": 5000, "tat": 5000}, 5000, False),
    "a pace with a backlog": ("pace", {"interval": 5000, "tat": 50_000}, 40_000, True),
}


@pytest.mark.parametrize("case", WAITS)
def test_a_job_that_waits_has_its_alarm_when_it_may_start(ledger: SyncLedger, case: str) -> None:
    """It keeps a slot that it has reserved, and an operator who resumes the account releases it."""
    why, fields, wait, released = WAITS[case]
    serve(ledger)
    for key in ("a", "b"):
        take_in(ledger, job(key))
    claimed(ledger, "a")
    before = server_time(ledger)
    times = {"paused_until", "retry_at", "tat"}
    account = {
        name: before + int(value) if name in times else value for name, value in fields.items()
    }
    ledger.redis.hset(account_key("acme", "default"), mapping=account)
    waits = ledger(claim(job("b").id, RULES, 0.5))
    passed = server_time(ledger) - before
    assert waits.why == record(ledger, "b").why == why
    assert before + wait - passed <= waits.until <= before + wait + passed
    assert ledger.redis.zscore(ALARMS, job("b").id) == waits.until
    if not released:
        assert ledger(claim(job("b").id, RULES, 0.5)).until == waits.until
    ledger.redis.hset(account_key("acme", "default"), "paused", "1")
    assert ledger(hold(("acme", "default"), "resume", "")) == int(released)


def test_a_job_that_waits_for_its_account_is_woken_at_its_deadline(ledger: SyncLedger) -> None:
    """To be abandoned. A job in doubt is asked about after its deadline, too: it waits on."""
    serve(ledger)
    for key in ("queued", "doubted"):
        take_in(ledger, job(key))
    concluded(ledger, claimed(ledger, "doubted"), "unknown")
    ledger(hold(("acme", "default"), "pause", ""))
    now = record(ledger, "queued").accepted_at
    deadlines = {"queued": now + 2000, "doubted": 1}
    for key, deadline in deadlines.items():
        ledger.redis.hset(job_key(job(key).id), "deadline_at", deadline)
    queued, doubted = (ledger(claim(job(key).id, RULES, 0)) for key in deadlines)
    assert (queued.why, queued.until) == ("paused", now + 2000)
    assert doubted.why == "paused"
    assert doubted.until > now + 2000


# -- an account is held ----------------------------------------------------------------------------


def test_the_batches_of_a_resume_do_not_undo_what_others_do_meanwhile(ledger: SyncLedger) -> None:
    """A pause, or credentials that are refused again; it is in the audit log once."""
    serve(ledger, cap=1)
    account = account_key("acme", "default")
    waiting = "{reg}:waiting:acme:default"
    for others in ("pause", "refused"):
        ledger(hold(("acme", "default"), "pause", "first", actor=ACTOR))
        ledger.redis.zadd(waiting, {f"job{number}": number for number in range(9)})
        resume = hold(("acme", "default"), "resume", "", 2, actor=ACTOR)
        assert [ledger(resume), ledger(resume)] == [2, 2]
        if others == "pause":
            mine = hold(("acme", "default"), "pause", "mine", actor=ACTOR)
            ledger(mine)
            assert ledger(resume) == 0, "no job is released into the pause"
            assert ledger.redis.hmget(account, "paused", "reason") == [b"1", b"mine"]
            ledger(hold(("acme", "default"), "resume", "", 0, actor=ACTOR))
            ledger(mine)
            assert ledger.redis.hget(account, "paused") == b"0", "nor does a pause's repeat"
        else:
            ledger.redis.hset(account, "breaker", "refused")
            assert ledger(resume) == 2
            assert ledger.redis.hget(account, "breaker") == b"refused"
        ledger.redis.delete(waiting)
    acts: Any = ledger.redis.xrange("{reg}:audit")
    done = [fields[b"what"].decode().removeprefix("account.") for _, fields in acts]
    assert done == ["pause", "resume", "pause", "resume", "pause", "resume"]


@pytest.mark.parametrize("field", ["tat", "max_in_flight", "interval", "burst"])
def test_an_accounts_number_that_is_none_stops_no_job(shop: SyncLedger, field: str) -> None:
    """It counts as none, until a worker announces it again."""
    serve(shop, cap=9, interval=1, burst=9)
    shop.redis.hset(account_key("acme", "default"), field, "junk")
    take_in(shop, job())
    assert isinstance(shop(claim(job().id, RULES, 0.5)), Claim | NotNow)


def test_the_audit_log_says_what_an_act_changed(ledger: SyncLedger) -> None:
    """A pause that has ended by itself is none that an operator ends."""
    serve(ledger)
    name = ("acme", "default")
    ledger(hold(name, "pause", "briefly", actor=ACTOR))
    ledger.redis.hset(account_key(*name), "paused_until", 1)
    ledger(hold(name, "pause", "again", actor=ACTOR))
    ledger(hold(name, "resume", "", actor=ACTOR))
    acts: Any = ledger.redis.xrange("{reg}:audit")
    changed = [(act[b"before"].decode(), act[b"after"].decode()) for _, act in acts]
    assert changed == [("closed", "paused"), ("closed", "paused"), ("paused", "closed")]


@pytest.mark.parametrize("breaker", ["", "closed", None])
def test_nothing_is_resumed_that_is_not_held(ledger: SyncLedger, breaker: str | None) -> None:
    """The account stays as it is, and the audit log has no entry."""
    serve(ledger)
    account = account_key("acme", "default")
    if breaker is not None:
        ledger.redis.hset(account, "breaker", breaker)
    before = ledger.redis.hgetall(account)
    assert ledger(hold(("acme", "default"), "resume", "", actor=ACTOR)) == -1
    assert ledger.redis.hgetall(account) == before
    assert ledger.redis.xlen("{reg}:audit") == 0


def test_a_list_that_cannot_be_read_leaves_an_account_as_it_is(ledger: SyncLedger) -> None:
    """Jobs that wait could not be released: an account that looks open would hold them."""
    serve(ledger)
    name = ("acme", "default")
    ledger(hold(name, "pause", "for now", actor=ACTOR))
    ledger.redis.set("{reg}:waiting:acme:default", "junk")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        ledger(hold(name, "resume", "", actor=ACTOR))
    assert ledger.redis.hget(account_key(*name), "paused") == b"1"
    assert ledger.redis.xlen("{reg}:audit") == 1

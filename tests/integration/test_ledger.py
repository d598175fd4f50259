"""A job's life in the ledger, step by step: read it from the top."""

from dataclasses import replace
from typing import Any

import pytest
import redis

from regworker.domain.errors import SealingError
from regworker.domain.event import EventType
from regworker.domain.outcome import Registered
from regworker.domain.states import State
from regworker.event_builder import EventBuilder
from regworker.ledger import SyncLedger, replication
from regworker.ledger.admin import (
    correct,
    redrive,
    resolve,
)
from regworker.ledger.calls import scripts
from regworker.ledger.identity import IDENTITY
from regworker.ledger.records import (
    USUAL,
    Accepted,
    Claim,
    Conflict,
    NotNow,
    Over,
    Record,
    Settled,
    Spent,
    Stale,
    Unconfigured,
    Wake,
)
from regworker.ledger.transitions import (
    ALARMS,
    Decision,
    abandon,
    accept,
    cancel,
    claim,
    job_key,
    renew,
    ring,
    settle,
)
from regworker.sealing import seals
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from tests.integration.jobs import ACTOR
from tests.integration.ledger_steps import (
    ANNOUNCER,
    AT_ONCE,
    DAY,
    IMPATIENT,
    KEYRING,
    KEYS,
    RESULTS,
    RULES,
    SETTLE,
    alarms,
    claimed,
    concluded,
    due_now,
    events,
    job,
    record,
    take_in,
)
from tests.integration.outbox import woken

# -- a job is accepted -----------------------------------------------------------------------------


def test_a_job_is_queued_with_an_alarm_the_moment_it_is_accepted(shop: SyncLedger) -> None:
    """An accepted job has an alarm, even if no worker is ever woken for it."""
    answer = take_in(shop, job())
    assert isinstance(answer, Accepted)
    assert (answer.state, answer.repeat) == (State.QUEUED, False)
    assert alarms(shop) == [job().id]


def test_a_repeat_gets_the_job_that_is_there(shop: SyncLedger) -> None:
    """The same key with the same content is the same job."""
    first = take_in(shop, job())
    assert take_in(shop, job()) == replace(first, repeat=True)


def test_a_repeat_is_known_under_any_key_of_the_ring(shop: SyncLedger) -> None:
    """Rotating the sealing keys makes no conflict of a repeat."""
    take_in(shop, job(), "k1:same")
    assert take_in(shop, job(), "k2:same", "k1:same").repeat


def test_a_key_with_other_content_is_refused(shop: SyncLedger) -> None:
    """The first job is untouched by a second one under its key."""
    take_in(shop, job())
    before = record(shop)
    assert take_in(shop, job(), "k1:other") == Conflict(job().id)
    assert record(shop) == before


def test_an_accept_whose_answer_was_lost_is_no_repeat(shop: SyncLedger) -> None:
    """The client's own repeat gets the answer to the first request."""
    command = accept(job(), "sealed", ["k1:same"], DAY)
    assert shop(command) == shop(command)


def test_a_job_for_an_account_that_nobody_serves_is_refused(shop: SyncLedger) -> None:
    """A clear refusal at once is better than a job that waits for ever."""
    answer = take_in(shop, job(account="other", reply_to=("results", "nowhere")))
    assert isinstance(answer, Unconfigured)
    assert answer.names == ("account:acme:other", "endpoint:nowhere")
    assert "account:acme:default" in answer.known
    assert not alarms(shop)


# -- a worker claims and calls ---------------------------------------------------------------------


def test_a_claim_is_a_lease_before_anything_leaves(shop: SyncLedger, accepted: Record) -> None:
    """The intent to call is in the ledger before the call starts."""
    held = claimed(shop)
    assert (held.asking, held.record.state, held.record.attempts) == (False, State.CALLING, 1)
    assert held.record.payload == "sealed"
    assert record(shop).leased_by == "this worker"


def test_a_second_worker_finds_a_live_lease(shop: SyncLedger, accepted: Record) -> None:
    """A duplicate wake-up ends at once."""
    held = claimed(shop)
    assert shop(claim(held.id, RULES, 0)) == NotNow("leased", held.record.lease_until)


def test_a_claim_whose_answer_was_lost_is_the_same_claim(
    shop: SyncLedger, accepted: Record
) -> None:
    """Repeating a claim takes neither a second lease nor a second attempt."""
    command = claim(accepted.id, RULES, 0)
    first, second = shop(command), shop(command)
    assert isinstance(second, Claim)
    assert second.record == first.record


def test_a_registered_job_is_finished_in_one_step(shop: SyncLedger, accepted: Record) -> None:
    """State, event, deleted payload, removed alarm and new deliveries are one atomic step."""
    held = claimed(shop)
    woken(shop)
    assert concluded(shop, held, "registered") == Settled(State.REGISTERED, 0)
    member = f"d:{accepted.id}.registered:crm"
    assert woken(shop) == [Wake(member, "delivery")]
    found = record(shop)
    assert (found.state, found.payload) == (State.REGISTERED, "")
    assert [event["type"] for event in events(shop)] == ["registration.registered"]
    assert alarms(shop) == [member]


def test_the_event_is_kept_sealed(shop: SyncLedger, accepted: Record) -> None:
    """A published event can be read again only with a sealing key."""
    concluded(shop, claimed(shop), "registered")
    over = record(shop)
    assert ANNOUNCER.last(over) == events(shop)[0]
    assert b"customer_key" in KEYRING.open(over.event, seals.kept(over.id))
    strangers = Keyring.parse(Keyring.new("k1"))
    with pytest.raises(SealingError):
        EventBuilder(Settings.load(sealing_keys=KEYS), strangers).last(over)


def test_a_finished_record_expires(shop: SyncLedger, accepted: Record) -> None:
    """A key may be used again after the retention period, and not before."""
    assert shop.redis.ttl(job_key(accepted.id)) == -1
    concluded(shop, claimed(shop), "rejected")
    assert 6 * DAY < shop.redis.ttl(job_key(accepted.id)) <= 7 * DAY


def test_a_record_holds_nothing_that_nobody_needs(shop: SyncLedger) -> None:
    """No empty field; of a finished job only what describes it or recognizes a repeat."""
    take_in(shop, job())
    key = job_key(job().id)
    expected = {b"state", b"provider", b"account", b"key"}
    expected |= {b"accepted_at", b"deadline_at", b"log", b"ticket", b"fingerprint"}
    queued: Any = shop.redis.hgetall(key)
    assert set(queued) == expected | {b"payload", b"wakes"}
    concluded(shop, claimed(shop), "registered")
    over: Any = shop.redis.hgetall(key)
    assert set(over) == expected | {b"attempts", b"fence", b"finished_at", b"settled", b"event"}


def test_a_record_of_a_job_that_is_over_is_small(shop: SyncLedger) -> None:
    """A record is kept for days, with millions of others."""
    take_in(shop, job("order-0012345678"), f"k1:{'0' * 64}")
    held = claimed(shop, "order-0012345678")
    customer = Registered({"customer_box_id": 811111, "customer_key": "k" * 44})
    event = ANNOUNCER.registered(held.record, held.at, customer)
    shop(settle(held, Decision("registered"), SETTLE, event))
    found: Any = shop.redis.hgetall(job_key(held.id))
    assert sum(len(name) + len(value) for name, value in found.items()) < 780


def test_what_a_record_leaves_out_is_what_most_jobs_say() -> None:
    """The model, the reader of records and the script that omits them agree on the values."""
    names = ("lane", "if_exists", "reply_to", "metadata")
    given = job(reply_to=("results",))
    written = dict(zip(names, accept(given, "", ["k1:same"], DAY).args[8:12], strict=True))
    assert written == USUAL
    table = ", ".join(f"{name} = '{value}'" for name, value in USUAL.items())
    assert f"local USUAL = {{{table}}}" in scripts()["settle"]


def test_what_is_not_usual_is_kept_to_the_end(shop: SyncLedger) -> None:
    """Also in a finished record."""
    given = job(lane="bulk", if_exists="adopt", reply_to=(), metadata={"order": 17})
    take_in(shop, given)
    before = record(shop)
    concluded(shop, claimed(shop), "registered")
    over = record(shop)
    for name in ("lane", "if_exists", "reply_to", "metadata"):
        assert getattr(over, name) == getattr(before, name) == getattr(given, name)


def test_a_job_that_is_redriven_has_all_that_its_end_left_out(shop: SyncLedger) -> None:
    """A claim reads it like any other job."""
    take_in(shop, job(), f"k1:{'a' * 64}")
    spent = shop(claim(job().id, replace(RULES, max_attempts=0), 0))
    assert isinstance(spent, Spent)
    event = ANNOUNCER.failed(EventType.ABANDONED, spent.record, spent.at, ())
    shop(abandon(spent.record, "attempts", 0, 7 * DAY, event))
    assert isinstance(shop(redrive(job(), "sealed", [f"k1:{'a' * 63}b"], DAY)), Settled)
    assert shop.redis.hget(job_key(job().id), "fingerprint") == b"k1:" + b"a" * 63 + b"b"
    asked = claimed(shop)
    assert asked.asking
    assert (asked.record.lane, asked.record.if_exists) == ("live", "reject")
    assert (asked.record.reply_to, asked.record.metadata) == (("results",), {})
    expected = ANNOUNCER.last(record(shop))
    assert expected == events(shop)[0]
    assert expected["type"] == "registration.abandoned"


@pytest.mark.parametrize("digits", ["0", "0123456789abcdef"])
def test_a_repeat_is_known_by_a_job_that_is_over(shop: SyncLedger, digits: str) -> None:
    """By as many digits of its fingerprint as the record keeps, and no fewer."""
    print_ = f"k1:{(digits * 64)[:64]}"
    take_in(shop, job(), print_)
    concluded(shop, claimed(shop), "registered")
    assert take_in(shop, job(), "k2:other", print_).repeat
    for place in (0, 10, 31):
        other = list(print_)
        other[3 + place] = "f" if other[3 + place] != "f" else "e"
        assert isinstance(take_in(shop, job(), "".join(other)), Conflict)


def test_a_job_costs_the_server_few_commands(shop: SyncLedger) -> None:
    """A command costs about as much as everything that a script does between two commands."""
    # A client checks this every five seconds, and so perhaps once during the test.
    shop(replication.announce(replication.Wanted(), starts=True))
    take_in(shop, job("warm"))
    concluded(shop, claimed(shop, "warm"), "registered", health="ok")

    def commands() -> int:
        info: Any = shop.redis.info("stats")
        return int(info["total_commands_processed"])

    before = commands()
    take_in(shop, job())
    held = claimed(shop)
    concluded(shop, held, "registered", health="ok")
    # Plus one for the check itself, and one for replicas.
    assert commands() - before <= 8 + 2 + 12 + 18 + 1 + 1


@pytest.mark.parametrize("claims", [0, 1, 2], ids=["queued", "calling", "unknown"])
def test_a_job_in_doubt_is_asked_about_until_a_forgotten_call_is_over(
    shop: SyncLedger, accepted: Record, claims: int
) -> None:
    """Whatever state the ledger returned to: the job's own settle delay is not enough."""
    for _ in range(claims):
        claimed(shop, rules=AT_ONCE)
    seconds, micros = shop.redis.time()
    since = seconds * 1000 + micros // 1000
    doubt = {"doubted_at": since, "doubt_until": since + 1000}
    shop.redis.hset(IDENTITY, mapping=doubt)
    held = claimed(shop)
    assert held.asking
    assert held.record.settle_until == since + 120_000
    assert held.record.unknowns == 1
    assert held.record.fence >= since
    assert concluded(shop, held, "absent").state is State.UNKNOWN


def test_nobody_claims_what_is_over(shop: SyncLedger, accepted: Record) -> None:
    """A late wake-up ends at once."""
    concluded(shop, claimed(shop), "registered")
    assert shop(claim(accepted.id, RULES, 0)) == Over("registered")
    assert shop(claim(job("never").id, RULES, 0)) == Over("gone")


@pytest.mark.parametrize("asking", [False, True])
@pytest.mark.parametrize("verdict", ["retry", "unknown"])
def test_a_job_that_is_retried_waits_for_its_delay(
    shop: SyncLedger, accepted: Record, verdict: str, asking: bool
) -> None:
    """Its alarm is set to the same time. Only a call without an answer is asked about at once."""
    if asking:
        concluded(shop, claimed(shop), "unknown", IMPATIENT)
    held = claimed(shop)
    settled = concluded(shop, held, verdict, IMPATIENT, delay=30)
    at_once = verdict == "unknown" and not asking
    assert (settled.until - held.at >= 30_000) == (not at_once)
    assert record(shop).due_at == settled.until == shop.redis.zscore(ALARMS, accepted.id)


@pytest.mark.parametrize("verdict", ["registered", "rejected", "unknown", "retry"])
def test_a_job_that_is_gone_is_settled_by_nobody(
    shop: SyncLedger, accepted: Record, verdict: str
) -> None:
    """Somebody deleted its record during the call: the worker's report is stale, and no error."""
    held = claimed(shop)
    shop.redis.delete(job_key(accepted.id))
    assert concluded(shop, held, verdict) == Stale("gone")
    assert events(shop) == []


def test_a_settle_whose_answer_was_lost_is_settled_once(shop: SyncLedger, accepted: Record) -> None:
    """Repeating a settle publishes no second event."""
    held = claimed(shop)
    concluded(shop, held, "registered")
    assert concluded(shop, held, "registered").state is State.REGISTERED
    assert len(events(shop)) == 1


def test_one_stream_named_twice_gets_one_event(shop: SyncLedger) -> None:
    """A job has one final event on each stream, however often it names the stream."""
    take_in(shop, job(reply_to=("results", "results")))
    concluded(shop, claimed(shop), "registered")
    assert len(events(shop)) == 1


def test_a_stream_that_cannot_be_written_finishes_no_job(
    shop: SyncLedger, accepted: Record
) -> None:
    """A job never ends without its event: it stays open, with payload and alarm."""
    held = claimed(shop)
    shop.redis.set(RESULTS, "not a stream")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        concluded(shop, held, "registered")
    assert (record(shop).state, record(shop).payload) == (State.CALLING, "sealed")
    assert alarms(shop) == [accepted.id]
    shop.redis.delete(RESULTS)
    assert concluded(shop, held, "registered").state is State.REGISTERED


# -- retries ---------------------------------------------------------------------------------------


def test_what_had_no_effect_is_queued_again(shop: SyncLedger, accepted: Record) -> None:
    """A request that was provably never sent is retried after its delay."""
    answer = concluded(shop, claimed(shop), "retry", delay=60)
    assert (answer.state, record(shop).due_at) == (State.QUEUED, answer.until)
    assert shop(claim(accepted.id, RULES, 0)) == NotNow("due", answer.until)


def test_what_was_not_the_jobs_fault_costs_no_attempt(shop: SyncLedger, accepted: Record) -> None:
    """A worker that lacks a key uses up none of the job's attempts."""
    concluded(shop, claimed(shop), "retry", spends=False)
    assert record(shop).attempts == 0


def test_a_job_out_of_attempts_is_abandoned(shop: SyncLedger, accepted: Record) -> None:
    """A job without attempts left ends, and its event is published."""
    for _ in range(3):
        concluded(shop, claimed(shop), "retry")
    spent = shop(claim(accepted.id, RULES, 0))
    assert isinstance(spent, Spent)
    event = ANNOUNCER.failed(EventType.ABANDONED, spent.record, spent.at, ())
    answer = shop(abandon(spent.record, "attempts", 3, DAY, event))
    assert answer.state is State.ABANDONED
    assert [one["type"] for one in events(shop)] == ["registration.abandoned"]


def test_a_job_past_its_deadline_is_abandoned(shop: SyncLedger) -> None:
    """The deadline alone ends a job without an open request."""
    take_in(shop, job(), deadline=0.001)
    shop.redis.hset(job_key(job().id), "deadline_at", 1)
    assert isinstance(shop(claim(job().id, RULES, 0)), Spent)


def test_a_job_that_may_be_called_for_is_not_abandoned(shop: SyncLedger, accepted: Record) -> None:
    """A worker that found a job spent checks this again when it abandons the job."""
    event = ANNOUNCER.failed(EventType.ABANDONED, accepted, 0, ())
    assert shop(abandon(accepted, "deadline", 3, DAY, event)) == Stale("queued")


def test_a_queued_job_can_be_cancelled(shop: SyncLedger, accepted: Record) -> None:
    """A producer can cancel a job before its first call; and repeat the cancel after a lost
    answer."""
    command = cancel(accepted, DAY, ANNOUNCER.failed(EventType.CANCELLED, accepted, 0, ()))
    done = Settled(State.CANCELLED, 0)
    assert [shop(command), shop(command)] == [done, done]
    assert len(events(shop)) == 1


def test_a_job_on_the_wire_cannot_be_cancelled(shop: SyncLedger, accepted: Record) -> None:
    """Once a request may have been sent, only its outcome ends the job."""
    claimed(shop)
    event = ANNOUNCER.failed(EventType.CANCELLED, accepted, 0, ())
    assert shop(cancel(accepted, DAY, event)) == Stale("calling")


# -- unknown ---------------------------------------------------------------------------------------


def test_a_lost_answer_makes_a_job_unknown(shop: SyncLedger, accepted: Record) -> None:
    """A request that may have been carried out is looked up at once, and not sent again."""
    assert concluded(shop, claimed(shop), "unknown").state is State.UNKNOWN
    assert claimed(shop).asking


def test_a_lease_that_runs_out_while_calling_means_unknown(
    shop: SyncLedger, accepted: Record
) -> None:
    """The call of a dead worker may have reached the provider, up to its lease's end."""
    lost = claimed(shop, rules=AT_ONCE)
    held = claimed(shop)
    assert (held.asking, held.record.state) == (True, State.UNKNOWN)
    assert held.record.unknowns == 1
    assert held.record.settle_until == lost.record.lease_until + 60_000
    assert any("ran out" in what for _, what in record(shop).timeline)


def test_who_asks_is_told_that_a_worker_was_lost(shop: SyncLedger, accepted: Record) -> None:
    """Also if the claim that noticed it is repeated after a lost answer; other claims do not report
    it."""
    assert claimed(shop, rules=AT_ONCE).lost == ""
    noticing = claim(accepted.id, RULES, 0.5)
    first, again = shop(noticing), shop(noticing)
    assert isinstance(first, Claim)
    assert first.lost == "unknown: the lease of this worker ran out"
    assert isinstance(again, Claim)
    assert replace(again, at=first.at) == first
    concluded(shop, first, "unknown")
    assert claimed(shop).lost == ""


@pytest.mark.parametrize(
    ("name", "reason", "said"),
    [
        ("registered", "", "registered"),
        ("registered", "found by asking", "registered: found by asking"),
        ("rejected", "invalid, missing", "rejected: invalid, missing"),
    ],
)
def test_the_timeline_says_why_a_job_has_ended(
    shop: SyncLedger, accepted: Record, name: str, reason: str, said: str
) -> None:
    """The codes of a rejection, for example, which its event has sealed."""
    concluded(shop, claimed(shop), name, reason=reason)
    assert record(shop).timeline[-1][1] == said


def test_absence_before_the_settle_delay_is_not_believed(
    shop: SyncLedger, accepted: Record
) -> None:
    """A request may still be carried out after the worker stopped waiting for it."""
    concluded(shop, claimed(shop), "unknown")
    assert concluded(shop, claimed(shop), "absent").state is State.UNKNOWN


def test_absence_after_the_settle_delay_queues_the_job(shop: SyncLedger, accepted: Record) -> None:
    """Only then is it safe to send the request again."""
    concluded(shop, claimed(shop), "unknown", IMPATIENT)
    assert concluded(shop, claimed(shop), "absent").state is State.QUEUED
    assert not claimed(shop).asking


def test_absence_is_not_believed_of_a_call(shop: SyncLedger, accepted: Record) -> None:
    """Only a lookup can prove that there is no customer."""
    assert concluded(shop, claimed(shop), "absent", IMPATIENT).state is State.UNKNOWN


def test_a_retry_after_lengthens_the_settle_delay(shop: SyncLedger, accepted: Record) -> None:
    """A provider that asks for an hour may need as long for a request that it already has."""
    held = claimed(shop)
    concluded(shop, held, "unknown", delay=3600)
    assert record(shop).settle_until >= held.at + 3_600_000


@pytest.mark.parametrize(
    ("name", "spends", "said"),
    [
        ("unknown", True, "unknown: no answer"),
        ("retry", True, "unknown: no answer"),
        ("retry", False, "unknown: not asked: no answer"),
    ],
)
def test_a_look_up_is_made_again_when_the_settle_delay_ends_unless_it_has_to_wait(
    shop: SyncLedger, accepted: Record, name: str, spends: bool, said: str
) -> None:
    """Then a job may be found absent and sent again; but not before the provider, or this worker,
    is ready."""
    concluded(shop, claimed(shop), "unknown")
    end = record(shop).settle_until
    held = claimed(shop)
    concluded(shop, held, name, reason="no answer", delay=3600, spends=spends)
    after = record(shop)
    assert after.timeline[-1][1] == said
    if name == "unknown":
        assert (after.due_at, after.settle_until) == (end, end)
    else:
        assert after.due_at >= held.at + 3_600_000
    assert shop.redis.zscore(ALARMS, accepted.id) == after.due_at


@pytest.mark.parametrize("past", [False, True])
def test_a_look_up_has_its_own_delay_if_the_settle_delay_does_not_shorten_it(
    shop: SyncLedger, accepted: Record, past: bool
) -> None:
    """It is shorter, or the settle delay is over."""
    concluded(shop, claimed(shop), "unknown", IMPATIENT if past else SETTLE)
    held = claimed(shop)
    concluded(shop, held, "unknown", delay=20)
    assert held.at + 20_000 <= record(shop).due_at < held.at + 50_000


def test_a_question_that_cannot_be_asked_settles_nothing(
    shop: SyncLedger, accepted: Record
) -> None:
    """Time alone never decides whether a customer exists."""
    concluded(shop, claimed(shop), "unknown", IMPATIENT)
    assert concluded(shop, claimed(shop), "retry").state is State.UNKNOWN
    assert record(shop).asks == 1


def test_what_nobody_can_tell_is_parked_for_a_person(shop: SyncLedger, accepted: Record) -> None:
    """A job in review has an event, keeps its payload, and has no alarm."""
    concluded(shop, claimed(shop), "unknown")
    assert concluded(shop, claimed(shop), "unresolvable").state is State.REVIEW
    assert accepted.id not in alarms(shop)
    assert record(shop).payload == "sealed"
    assert [event["type"] for event in events(shop)] == ["registration.review"]


# -- late and stale workers ------------------------------------------------------------------------


@pytest.mark.parametrize("verdict", ["retry", "rejected", "unknown", "absent", "unresolvable"])
def test_a_stale_worker_decides_nothing(shop: SyncLedger, accepted: Record, verdict: str) -> None:
    """Only the lease holder decides."""
    stale = claimed(shop, rules=AT_ONCE)
    claimed(shop)
    before = record(shop)
    assert concluded(shop, stale, verdict) == Stale("unknown")
    assert record(shop) == before


@pytest.mark.parametrize("steps", [(), ("absent",), ("unresolvable",)], ids=str)
def test_a_late_answer_counts_while_the_job_is_open(
    shop: SyncLedger, accepted: Record, steps: tuple[str, ...]
) -> None:
    """A customer exists, whoever reports it: while the job is unknown, queued or in review."""
    stale = claimed(shop, rules=AT_ONCE)
    for verdict in steps:
        concluded(shop, claimed(shop, rules=AT_ONCE), verdict)
    assert concluded(shop, stale, "registered").state is State.REGISTERED
    ids = [event["id"] for event in events(shop)]
    assert len(ids) == len(set(ids)) == 1 + ("unresolvable" in steps)


def test_a_late_answer_does_not_reopen_a_job(shop: SyncLedger, accepted: Record) -> None:
    """A job ends once. Operators see how often a customer was reported too late."""
    stale = claimed(shop, rules=AT_ONCE)
    concluded(shop, claimed(shop), "rejected")
    for verdict in ("unknown", "retry", "registered"):
        assert concluded(shop, stale, verdict) == Stale("rejected")
    assert len(events(shop)) == 1
    assert shop.redis.hget("{reg}:stats", "late_facts") == b"1"


@pytest.mark.parametrize(
    ("decided", "right"), [("rejected", "registered"), ("registered", "rejected")]
)
def test_a_late_answer_learns_to_what_a_person_has_corrected_the_job(
    shop: SyncLedger, accepted: Record, decided: str, right: str
) -> None:
    """Its worker alerts a person if the last outcome that was published says that there is no
    customer."""
    stale = claimed(shop, rules=AT_ONCE)
    concluded(shop, claimed(shop), "unresolvable")
    event = ANNOUNCER.failed(EventType.REVIEW, record(shop), 0, ())
    shop(resolve(record(shop), decided, ACTOR, DAY, DAY, event))
    shop(correct(accepted.id, right, ACTOR, event))
    assert concluded(shop, stale, "registered") == Stale(right)
    assert record(shop).state == decided


def test_a_lease_is_renewed_by_its_holder_only(shop: SyncLedger, accepted: Record) -> None:
    """A worker learns for each lease whether it still holds it."""
    stale = claimed(shop, rules=AT_ONCE)
    held = claimed(shop)
    leases = [(one.id, one.record.fence) for one in (stale, held)]
    assert shop(renew(leases, 120)) == (False, True)
    assert record(shop).lease_until > held.record.lease_until


# -- the alarm clock -------------------------------------------------------------------------------


def test_an_alarm_that_is_due_rings_and_is_pushed_ahead(shop: SyncLedger, accepted: Record) -> None:
    """A lost wake-up is repeated, each time later, but at most a minute later."""
    pushed = []
    for number in range(11):
        due_now(shop)
        rung = shop(ring(10))
        # The producer has already sent a wake-up. Some alarms demand one nevertheless, in case the
        # first was lost in a long queue.
        assert rung.wakes == (Wake(accepted.id, "live", sure=number == 9),)
        pushed.append(rung.next_at - rung.at)
    assert pushed == [20_000, 40_000] + [60_000] * 9


def test_a_job_that_was_put_off_is_sure_to_be_woken(shop: SyncLedger, accepted: Record) -> None:
    """Only its alarm wakes it when it is due, even if its lane is full."""
    concluded(shop, claimed(shop), "retry", delay=0.001)
    due_now(shop)
    assert shop(ring(10)).wakes == (Wake(accepted.id, "live", sure=True),)


def test_only_so_many_alarms_ring_at_once(shop: SyncLedger) -> None:
    """A backlog rings in several turns."""
    for number in range(5):
        take_in(shop, job(f"crm-{number}"))
    due_now(shop)
    assert [len(shop(ring(2)).wakes) for _ in range(4)] == [2, 2, 1, 0]


def test_an_alarm_of_nobody_is_cleared(shop: SyncLedger) -> None:
    """An alarm without a record rings once and wakes nobody."""
    shop.redis.zadd(ALARMS, {"nobody": 1})
    assert shop(ring(10)).wakes == ()
    assert not alarms(shop)


# -- the timeline ----------------------------------------------------------------------------------


def test_the_timeline_tells_each_step(shop: SyncLedger, accepted: Record) -> None:
    """The timeline has one line for each step, whatever characters a reason contains."""
    concluded(shop, claimed(shop), "retry", reason="two\nlines\u2028and\x0bmore")
    steps = [what for _, what in record(shop).timeline]
    assert steps == [
        "accepted",
        "calling by this worker",
        "queued: two lines\u2028and more",
    ]


def test_the_timeline_does_not_grow_without_end(shop: SyncLedger, accepted: Record) -> None:
    """The last 40 lines are kept."""
    for _ in range(30):
        concluded(shop, claimed(shop), "retry", spends=False)
    timeline = record(shop).timeline
    assert len(timeline) == 40
    assert timeline[-1][1].startswith("queued")

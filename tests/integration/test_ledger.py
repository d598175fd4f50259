"""A job's life in the ledger, step by step: read it from the top."""

from dataclasses import replace
from typing import Any

import pytest
import redis

from regworker.domain.errors import SealingError
from regworker.domain.event import EventType, read_event
from regworker.domain.job import Job
from regworker.domain.outcome import Code, Fault, Registered
from regworker.domain.states import State
from regworker.event_builder import EventBuilder
from regworker.ledger import SyncLedger, replication
from regworker.ledger.admin import (
    Limits,
    announce,
    drop_group,
    hold,
    redrive,
    stray,
    trust,
    unquarantine,
)
from regworker.ledger.calls import scripts
from regworker.ledger.identity import IDENTITY
from regworker.ledger.records import (
    USUAL,
    Accepted,
    Claim,
    Conflict,
    Delivery,
    Idle,
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
    ClaimRules,
    Command,
    Decision,
    SettleRules,
    abandon,
    accept,
    account_key,
    cancel,
    claim,
    deliver,
    delivered,
    job_key,
    look,
    renew,
    ring,
    settle,
)
from regworker.sealing import seals
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from tests.integration.jobs import ACTOR
from tests.integration.outbox import woken

DAY = 86_400.0
#: Seconds. No test in this file waits: what has to expire is created with no time left.
RULES = ClaimRules("this worker", lease=60, settle_delay=60, max_attempts=3, probe=20)
AT_ONCE = replace(RULES, lease=0, settle_delay=0)
SETTLE = SettleRules(settle_delay=60, breaker_threshold=2, breaker_pause=60, retention=7 * DAY)
IMPATIENT = replace(SETTLE, settle_delay=0)
KEYS = Keyring.new("test")
KEYRING = Keyring.parse(KEYS)
ANNOUNCER = EventBuilder(Settings.load(sealing_keys=KEYS), KEYRING)
RESULTS = "{reg}:results"


def job(key: str = "crm-1", **more: Any) -> Job:
    """A job."""
    return Job(provider="acme", idempotency_key=key, registration={}, **more)


def serve(ledger: SyncLedger, cap: int = 0, interval: float = 0, burst: float = 0) -> None:
    """Let a worker announce what it serves."""
    ledger(announce([Limits("acme", "default", interval, burst, cap)], ["results", "crm"]))


def take_in(ledger: SyncLedger, one: Job, *fingerprints: str, deadline: float = DAY) -> Any:
    """Accept a job."""
    return ledger(accept(one, "sealed", fingerprints or ["k1:same"], deadline))


@pytest.fixture
def shop(ledger: SyncLedger) -> SyncLedger:
    """A ledger where a worker has announced itself."""
    serve(ledger)
    return ledger


@pytest.fixture
def accepted(shop: SyncLedger) -> Record:
    """A job that was accepted."""
    take_in(shop, job(reply_to=("results", "crm")))
    return record(shop)


def record(ledger: SyncLedger, key: str = "crm-1") -> Record:
    """The ledger's record of a job."""
    found = ledger(look(job(key).id))
    assert found is not None
    return found


def claimed(ledger: SyncLedger, key: str = "crm-1", rules: ClaimRules = RULES) -> Claim:
    """A claim that was granted."""
    found = ledger(claim(job(key).id, rules, 0.5))
    assert isinstance(found, Claim), found
    return found


def concluded(
    ledger: SyncLedger, held: Claim, name: str, rules: SettleRules = SETTLE, **more: Any
) -> Any:
    """The answer to a settle."""
    event = None
    if name == "registered":
        event = ANNOUNCER.registered(held.record, held.at, Registered({"customer_key": "k"}))
    if name in {"rejected", "unresolvable"}:
        kind = EventType.REJECTED if name == "rejected" else EventType.REVIEW
        event = ANNOUNCER.failed(kind, held.record, held.at, (Fault(Code.INVALID, "f", "no"),))
    return ledger(settle(held, Decision(name, **more), rules, event))


def events(ledger: SyncLedger) -> list[dict[str, Any]]:
    """The published events."""
    entries: Any = ledger.redis.xrange(RESULTS)
    return [read_event(fields[b"event"]) for _, fields in entries]


def alarms(ledger: SyncLedger) -> list[str]:
    """The ids with an alarm."""
    return [member.decode() for member in ledger.redis.zrange(ALARMS, 0, -1)]


def due_now(ledger: SyncLedger) -> None:
    """Make all alarms due."""
    for member in alarms(ledger):
        ledger.redis.zadd(ALARMS, {member: 1})


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
    assert held.record.fence >= since
    assert concluded(shop, held, "absent").state is State.UNKNOWN


def test_nobody_claims_what_is_over(shop: SyncLedger, accepted: Record) -> None:
    """A late wake-up ends at once."""
    concluded(shop, claimed(shop), "registered")
    assert shop(claim(accepted.id, RULES, 0)) == Over("registered")
    assert shop(claim(job("never").id, RULES, 0)) == Over("gone")


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
    """The call of a dead worker may have reached the provider."""
    claimed(shop, rules=AT_ONCE)
    held = claimed(shop)
    assert (held.asking, held.record.state) == (True, State.UNKNOWN)
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
    """A job ends once."""
    stale = claimed(shop, rules=AT_ONCE)
    concluded(shop, claimed(shop), "rejected")
    assert concluded(shop, stale, "registered") == Stale("rejected")
    assert len(events(shop)) == 1


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


# -- deliveries ------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("field", ["tat", "max_in_flight", "interval", "burst"])
def test_an_accounts_number_that_is_none_stops_no_job(shop: SyncLedger, field: str) -> None:
    """It counts as none, until a worker announces it again."""
    serve(shop, cap=9, interval=1, burst=9)
    shop.redis.hset(account_key("acme", "default"), field, "junk")
    take_in(shop, job())
    assert isinstance(shop(claim(job().id, RULES, 0.5)), Claim | NotNow)

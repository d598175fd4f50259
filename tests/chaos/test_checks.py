"""The checks of the chaos run find every kind of violation, and no violation in a good run."""

import hashlib
import json
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest

from tests.chaos import checks
from tests.chaos.collect import Ledger, Seen
from tests.chaos.failovers import LEVELS, Failovers, sequence
from tests.chaos.load import Accepted, offers
from tests.chaos.nemesis import KINDS, schedule
from tests.chaos.processes import Kill
from tests.chaos.profiles import PROFILES
from tests.chaos.report import gaps_of, measurable, recoveries

EMAIL = "a@example.com"
KEY = "the key"


def event(job: str = "j1", kind: str = "registered", number: int = 1, key: str = KEY) -> bytes:
    """An event as published on the stream."""
    outcome = {"customer_key": key, "customer_box_id": 811111}
    value = {
        "id": f"{job}.{number}",
        "subject": job,
        "type": f"registration.{kind}",
        "data": {"outcome": outcome},
    }
    return json.dumps(value).encode()


def account(email: str = EMAIL, key: str = KEY) -> dict[str, Any]:
    """An account in the provider's records."""
    digest = hashlib.sha256(key.encode()).hexdigest()
    return {
        "provider": "skypostal",
        "email": email,
        "box_id": 811111,
        "customer_key_sha256": digest,
    }


def hook(body: bytes, status: int = 204, **changes: Any) -> dict[str, Any]:
    """A delivery in the receiver's log."""
    parsed_event = json.loads(body)
    return {
        "webhook_id": parsed_event["id"],
        "event": {
            "id": parsed_event["id"],
            "type": parsed_event["type"],
            "subject": parsed_event["subject"],
        },
        "verified": True,
        "status": status,
        "body_sha256": hashlib.sha256(body).hexdigest(),
        **changes,
    }


def call(name: str, status: int | None = 200) -> dict[str, Any]:
    """A request that the provider received."""
    return {"provider": "skypostal", "call": name, "email": EMAIL, "status": status, "fault": None}


REGISTER, LOGIN = "customer-registration", "customer-login"
LOG = """\
1 accepted
2 calling by vm:1
3 unknown: timeout
4 asking by vm:2
5 registered: found by asking
6 delivery to crm: arrived HTTP 204"""
WELL = Seen(
    accepted=(Accepted("j1", "k1", "skypostal", EMAIL, "plain", webhook=True),),
    refused=frozenset({"refused@example.com"}),
    ledger=Ledger(jobs={"j1": {"state": "registered", "log": LOG}}, events=(event(),)),
    accounts=(account(),),
    requests=(call(REGISTER, None), call(LOGIN)),
    hooks=(hook(event(), 503), hook(event())),
)


def ledger(**changes: Any) -> Seen:
    """A good run with this change in the ledger."""
    return replace(WELL, ledger=replace(WELL.ledger, **changes))


def job(**fields: str) -> Seen:
    """A good run with these changed fields of the job."""
    return ledger(jobs={"j1": {**WELL.ledger.jobs["j1"], **fields}})


def timeline(*lines: str) -> Seen:
    """A good run with this timeline of the job."""
    return job(log="\n".join(f"{at} {line}" for at, line in enumerate(lines)))


def test_where_all_is_well_nothing_is_found() -> None:
    """A job that was registered, found by a lookup, and reported; one delivery was repeated."""
    assert checks.final(WELL) == []
    assert checks.underway(WELL) == []


OTHER = Accepted("j2", "k2", "skypostal", "b@example.com", "plain", webhook=False)


@pytest.mark.parametrize(
    ("seen", "kind", "words"),
    [
        (ledger(jobs={}), "lost", "not in the ledger"),
        (job(state="queued"), "lost", "has no alarm"),
        (job(state="unknown"), "lost", "for ever"),
        (replace(WELL, accounts=()), "lost", "has no account"),
        (replace(WELL, accounts=(account(), account())), "duplicate", "2 accounts"),
        (
            replace(WELL, accounts=(account(), account("refused@example.com"))),
            "duplicate",
            "was refused at once",
        ),
        (
            replace(WELL, accounts=(account(), account("nobody@example.com"))),
            "duplicate",
            "no job asked for",
        ),
        (ledger(events=(event(), event())), "duplicate", "2 final events"),
        (ledger(events=(event(), event(number=2))), "duplicate", "2 final events"),
        (
            replace(WELL, requests=(call(REGISTER, None), call(REGISTER))),
            "duplicate",
            "without a lookup",
        ),
        (ledger(events=()), "unpublished", "no event says so"),
        (job(state="rejected"), "unpublished", "is rejected and has an account"),
        (job(state="calling"), "unpublished", "an event says it is over"),
        (ledger(events=(event(kind="rejected"),)), "unpublished", "its event says rejected"),
        (ledger(events=(event(key="another"),)), "unpublished", "another key"),
        (
            replace(
                ledger(events=(event(key="theirs"),)),
                accounts=(account(), account("b@example.com", "theirs")),
                accepted=(*WELL.accepted, OTHER),
            ),
            "unpublished",
            "another customer's key: b@example.com",
        ),
        (
            replace(
                ledger(events=(event(kind="rejected", key="B@example.com exists"),)),
                accepted=(*WELL.accepted, OTHER),
            ),
            "unpublished",
            "names another customer: b@example.com",
        ),
        (replace(WELL, hooks=()), "unpublished", "did not reach the webhook"),
        (replace(WELL, hooks=(hook(event(), 503),)), "unpublished", "did not reach the webhook"),
        (
            replace(WELL, hooks=(hook(event()), hook(event(number=7)))),
            "unpublished",
            "other content than the stream",
        ),
        (
            replace(WELL, hooks=(hook(event(), body_sha256="0"),)),
            "unpublished",
            "other content than the stream",
        ),
        (replace(WELL, hooks=(hook(event(), verified=False),)), "unpublished", "signature"),
        (ledger(deliveries={"d:j1.1:crm": "dead"}), "unpublished", "a delivery is left"),
        (job(state="review"), "unpublished", "no event says so"),
        (job(state="review"), "unsound", "has an account of its own"),
        (job(payload="sealed"), "unsound", "has its payload"),
        (ledger(alarms={"j1": 1.0}), "unsound", "has an alarm"),
        (ledger(in_flight=("j1",)), "unsound", "in flight"),
        (ledger(waiting=("j1",)), "unsound", "waits for a place"),
        (ledger(quarantined=1), "unsound", "quarantine"),
        (replace(WELL, accepted=()), "unsound", "was never accepted"),
        (ledger(events=(event(), event("j9"))), "unsound", "was not accepted"),
        (replace(WELL, unclean=("worker-1 ended with 1",)), "unsound", "ended with 1"),
        (
            replace(WELL, accepted=(replace(WELL.accepted[0], cancelled=True),)),
            "unsound",
            "was cancelled and is registered",
        ),
        (replace(WELL, accepted=(*WELL.accepted, OTHER)), "lost", "not in the ledger"),
        (
            timeline("accepted", "queued: asked to wait", "calling by vm:1", "registered"),
            "unsound",
            "without a claim",
        ),
        (
            timeline("accepted", "calling by vm:1", "queued: x", "unknown: x", "registered"),
            "unsound",
            "without a claim",
        ),
        (
            timeline("accepted", "calling by vm:1", "calling by vm:2", "registered"),
            "unsound",
            "while it was called",
        ),
    ],
)
def test_each_violation_is_found(seen: Seen, kind: str, words: str) -> None:
    """With its kind, and with a text that explains it."""
    found = checks.final(seen)
    assert any(one.kind == kind and words in one.text for one in found), found


@pytest.mark.parametrize(
    "lines",
    [
        ("accepted", "calling by vm:1", "queued: 429", "calling by vm:2", "registered"),
        ("accepted", "calling by vm:1", "unknown: the lease of vm:1 ran out", "asking by vm:2",
         "asking by vm:1", "registered: found by asking"),
        ("accepted", "calling by vm:1", "unknown: the lease of vm:1 ran out",
         "a late answer: registered", "registered"),
        ("registered", "delivery to crm: arrived HTTP 204"),
        ("accepted", "cancelled by its producer"),
    ],
)  # fmt: skip
def test_claims_and_settles_take_turns(lines: tuple[str, ...]) -> None:
    """A lookup may be repeated when its worker died, and a late fact counts."""
    assert checks.final(timeline(*lines)) == []


def test_a_call_that_was_told_to_wait_may_be_sent_again() -> None:
    """429 provably has no effect."""
    seen = replace(WELL, requests=(call(REGISTER, 429), call(REGISTER)))
    assert checks.final(seen) == []


@pytest.mark.parametrize(
    ("accounts", "events", "kinds"),
    [
        ((account(),), (event(),), []),
        ((account(), account()), (event(),), ["duplicate"]),
        ((account(),), (event(), event()), ["duplicate"]),
        ((account(),), (), ["unpublished"]),
        ((account(),), (event(kind="rejected"),), ["unpublished"]),
        ((), (), ["lost"]),
    ],
)
def test_the_stock_task_is_measured_by_the_same_books(
    accounts: Any, events: Any, kinds: list[str]
) -> None:
    """By accounts at the providers, and events in the stream."""
    assert [one.kind for one in checks.stock(WELL.accepted, accounts, events)] == kinds


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_a_schedule_is_a_pure_function_of_its_seed(profile: Any) -> None:
    """The same seed gives the same faults at the same times; another gives others."""
    assert schedule(7, 60, profile) == schedule(7, 60, profile)
    assert not profile.kinds or schedule(7, 60, profile) != schedule(8, 60, profile)


def test_every_kind_of_fault_comes_in_a_run_of_a_minute() -> None:
    """Every run has each fault at least once, whatever its seed."""
    for seed in range(20):
        assert {fault.kind for fault in schedule(seed, 60, PROFILES["full"])} == set(KINDS)


def test_a_target_suffers_one_thing_at_a_time() -> None:
    """Otherwise a stopped worker could be killed, and healed twice."""
    for seed in range(20):
        until: dict[str, float] = {}
        for fault in schedule(seed, 60, PROFILES["full"]):
            assert fault.at >= until.get(fault.target, 0.0)
            until[fault.target] = fault.until


def test_the_premise_of_the_settle_delay_is_kept() -> None:
    """No request is carried out after a worker may believe that the customer is absent."""
    profile = PROFILES["full"]
    settle, lease = profile.pace["settle_delay"], profile.pace["lease"]
    late = max(
        rate["delay"]
        for rates in profile.weather
        for rate in rates.values()
        if isinstance(rate, dict) and "delay" in rate
    )
    connecting = profile.pace["call_budget"] / 2
    # By the ledger's clock, which may have been set forward by then.
    settle -= profile.jump[1]
    assert profile.longest_hold + late < settle
    # A worker that is frozen just after it checked its lease sends when it wakes.
    assert profile.freeze[1] + profile.longest_hold + late < lease - connecting + settle
    assert profile.freeze[0] > lease, "it loses its leases"
    assert profile.jump[1] > lease, "everybody does"


def test_what_producers_offer_is_a_pure_function_of_the_seed() -> None:
    """Jobs, repeats and conflicts alike."""
    first, second = (offers(7, 0) for _ in range(2))
    some = [next(first) for _ in range(200)]
    assert some == [next(second) for _ in range(200)]
    assert {one.choice for one in some} == {"fresh", "repeat", "conflict"}


@pytest.mark.parametrize(
    ("log", "times"),
    [
        ("10 accepted\n20 calling by vm:7:0a1b\n90 unknown: it ran out\n90 asking by vm:8", [40]),
        ("10 accepted\n20 calling by vm:7\n45 queued: x\n90 calling by vm:8", []),
        ("10 accepted\n20 asking by vm:7\n80 asking by vm:8\n85 registered", [30]),
        ("10 accepted\n20 calling by vm:9\n45 registered", []),
    ],
)  # fmt: skip
def test_recovery_counts_from_the_kill_to_the_next_claim(log: str, times: list[float]) -> None:
    """For the jobs that the dead worker held at that time."""
    assert recoveries([Kill(7, 50.0)], [log]) == times


def test_a_failover_is_over_when_a_job_that_was_claimed_after_it_is_registered() -> None:
    """Jobs that were under way before do not count, and neither do lookups."""

    def job(claimed: int, finished: int, state: str = "registered") -> dict[str, str]:
        log = f"10 accepted\n{claimed} calling by vm:7:0a1b\n"
        return {"state": state, "finished_at": str(finished), "log": log}

    before, rejected, after = job(4000, 6000), job(6000, 6500, "rejected"), job(7000, 9000)
    assert gaps_of([5000.0], [after, rejected, before]) == [4.0]
    assert gaps_of([5000.0, 9500.0], [after]) == [4.0]


def test_a_kill_just_before_the_clock_is_set_times_no_recovery() -> None:
    """Another clock dates the next claim of its job; also if that clock was set back."""
    kills = [Kill(1, 1_000.0), Kill(2, 45_000.0, ahead=4_000.0), Kill(3, 60_000.0)]
    assert [kill.pid for kill in measurable(kills, [42_000.0])] == [1, 3]


def test_an_end_under_two_ids_is_found_though_its_ledger_forgot_the_first() -> None:
    """The same end may be published again with the same id, even if the ledger lost the job."""
    first, second = event(), event(number=2)
    seen = Seen(hooks=(hook(first), hook(first)), fails_over=True)
    assert not checks.underway(seen)
    assert not checks.final(seen)
    twice = replace(seen, hooks=(hook(first), hook(second)))
    assert {one.kind for one in checks.underway(twice)} == {"duplicate"}


def test_a_lost_receipt_is_named_where_the_ledger_may_forget() -> None:
    """There it is no violation; anything else is."""
    found = [
        checks.Violation("lost", "j1", "was accepted and is not in the ledger"),
        checks.Violation("lost", "j2", "is registered and has no account"),
    ]
    assert checks.split(found, forgets=True) == (found[1:], found[:1])
    assert checks.split(found, forgets=False) == (found, [])


def test_a_cancelled_job_may_end_again_where_the_ledger_may_forget() -> None:
    """Only one whose cancellation was lost: any other end comes again under its first id."""
    cancelled = event(kind="cancelled", number=2)
    again = Seen(hooks=(hook(cancelled), hook(event())), fails_over=True)
    assert checks.split(checks.underway(again), forgets=True)[0] == []
    assert checks.split(checks.underway(again), forgets=False)[0] != []
    twice = replace(again, hooks=(hook(event()), hook(event(number=2))))
    assert checks.split(checks.underway(twice), forgets=True)[0] != []


def test_all_that_happens_to_a_ledger_that_fails_over_is_a_method_and_comes_once_first() -> None:
    """The seed determines each level's sequence, which includes every kind."""
    for level in LEVELS.values():
        kinds = [kind for kind, _ in islice(sequence(1, level.kinds), len(level.kinds))]
        assert sorted(kinds) == sorted(level.kinds)
        assert all(callable(getattr(Failovers, f"_{kind}")) for kind in kinds)

"""The decisions that follow from outcomes."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regworker.domain.outcome import (
    Absent,
    Code,
    Fault,
    Outcome,
    Refused,
    Registered,
    Rejected,
    Retryable,
    Unknown,
    Unresolvable,
)
from regworker.domain.retry import LONGEST_WAIT, Backoff
from regworker.domain.states import State
from regworker.ledger.records import TAKEN, Claim, Record
from worker.execution import decision
from worker.providers.base import Answer, Lost, NotSent

BACKOFF = Backoff(base=2, cap=300)
DUPLICATE = Rejected((Fault(Code.ALREADY_EXISTS, "email", "exists"),))
INVALID = Rejected((Fault(Code.INVALID, "email", "no"), Fault(Code.MISSING, "name", "is required")))
OUTCOMES: list[Outcome] = [
    Registered({"customer_key": "canary"}),
    DUPLICATE,
    INVALID,
    Retryable("not sent"),
    Refused("401"),
    Refused("403", unproved=True),
    Unknown("lost"),
    Absent("nobody"),
    Absent("not by the login", login_only=True),
    Unresolvable("somebody"),
]
#: The name of each decision in the ledger's script.
NAMES = [
    "registered",
    "rejected",
    "rejected",
    "retry",
    "retry",
    "unknown",
    "unknown",
    "absent",
    "unproved",
    "unresolvable",
]

RECORD = Record.read(
    "id",
    [
        *("state", "calling", "provider", "acme", "account", "default", "key", "k"),
        *("lane", "live", "if_exists", "reject", "reply_to", "[]", "metadata", "{}"),
        *("attempts", "1", "deadline_at", "1000", "settle_until", "500"),
    ],
)


def claim(asking: bool = False, at: int = 0, **fields: Any) -> Claim:
    """A lease."""
    return Claim(replace(RECORD, **fields), asking, at)


def of(outcome: Outcome, held: Claim | None = None, health: str = "", chance: float = 0.5) -> Any:
    """The decision on an outcome."""
    watch = decision.Watch()
    watch.health = health
    return decision.of(held or claim(), outcome, watch, BACKOFF, chance)


# -- the decision on an outcome --------------------------------------------------------------------


@pytest.mark.parametrize(("outcome", "name"), list(zip(OUTCOMES, NAMES, strict=True)))
def test_each_outcome_has_its_verdict(outcome: Outcome, name: str) -> None:
    """Every outcome maps to a name that the settle script knows."""
    assert of(outcome).name == name


@pytest.mark.parametrize("outcome", OUTCOMES, ids=lambda one: type(one).__name__)
def test_a_verdict_holds_nothing_that_the_provider_gave(outcome: Outcome) -> None:
    """Reasons are written to timelines and logs; a customer's keys belong in the event only."""
    assert "canary" not in repr(of(outcome))


def test_a_rejections_reason_is_its_codes() -> None:
    """The timeline has our own short codes."""
    assert of(INVALID).reason == "invalid, missing"


def test_what_was_found_by_asking_says_so() -> None:
    """The timeline shows whether an outcome is an answer, or was found by a look-up."""
    assert of(Registered({}, recovered=True)).reason == "found by asking"


@given(attempts=st.integers(1, 50), chance=st.floats(0, 0.999))
def test_a_retry_backs_off_by_attempts(attempts: int, chance: float) -> None:
    """The longest delay grows with each failure, up to the cap."""
    delay = of(Retryable("no"), claim(attempts=attempts), chance=chance).delay
    assert 0 <= delay <= min(300, 2 * 2 ** (attempts - 1))


def test_a_question_backs_off_by_questions() -> None:
    """The number of calls does not affect the delay of look-ups."""
    held = claim(asking=True, attempts=9, asks=2)
    assert of(Unknown("no"), held).delay == BACKOFF.delay(3, 0.5)


@pytest.mark.parametrize("found", [Unknown("no"), Retryable("not sent"), Absent("nobody")])
def test_between_two_look_ups_something_may_change(found: Outcome) -> None:
    """Jitter may make a delay of nothing."""
    assert of(found, claim(asking=True), chance=0).delay == BACKOFF.base / 4
    assert of(found, claim(asking=True, asks=9), chance=0.999).delay > BACKOFF.base


@pytest.mark.parametrize("kind", [Retryable, Unknown])
@given(wait=st.floats(0, 86_400))
def test_retry_after_is_honoured(kind: Any, wait: float) -> None:
    """The delay is never shorter, and has jitter."""
    assert wait <= of(kind("no", wait)).delay <= wait + 1


def test_a_look_up_that_has_to_wait_is_not_made_when_the_settle_delay_ends() -> None:
    """An unknown one is (see settle.lua)."""
    assert of(Unknown("429", 3600), claim(asking=True)).name == "retry"
    assert of(Unknown("429", 0), claim(asking=True), chance=0).delay == BACKOFF.base / 4
    assert of(Unknown("503"), claim(asking=True)).name == "unknown"
    assert of(Unknown("503", 3600)).name == "unknown", "the call may have had an effect"


@pytest.mark.parametrize("kind", [Retryable, Unknown])
def test_a_retry_after_of_years_is_a_mistake(kind: Any) -> None:
    """Such a delay would keep an unknown job from ever being settled."""
    assert of(kind("no", 1e9)).delay <= LONGEST_WAIT + 1


def test_refused_credentials_are_the_accounts_fault() -> None:
    """The job waits without using an attempt, and the account's breaker opens."""
    found = of(Refused("401"), health="ok")
    assert (found.name, found.spends, found.health) == ("retry", False, "refused")


def test_a_refusal_that_proves_nothing_is_the_accounts_fault_as_well() -> None:
    """The account waits for an operator, and the job for a look-up."""
    found = of(Refused("403", unproved=True), health="ok")
    assert (found.name, found.spends, found.health) == ("unknown", False, "refused")
    found = of(Refused("403", unproved=True), claim(asking=True))
    assert found.name == "retry", "a look-up has no effect"
    assert found.spends, "but counts as one that was refused"


@pytest.mark.parametrize("outcome", OUTCOMES, ids=str)
@pytest.mark.parametrize("health", ["", "ok", "fault"])
def test_a_decision_tells_the_accounts_health(outcome: Outcome, health: str) -> None:
    """Whatever became of the job; without it, a breaker would neither open nor close."""
    expected = "refused" if isinstance(outcome, Refused) else health
    assert of(outcome, health=health).health == expected


def test_our_own_fault_spends_no_attempt() -> None:
    """A fault of this worker is not the job's fault."""
    assert not of(Retryable("no key", spends=False)).spends
    assert of(Retryable("not sent")).spends


# -- look-ups --------------------------------------------------------------------------------------


def asked(held: Claim, found: Outcome, max_attempts: int = 10) -> Outcome:
    """What a look-up's outcome means."""
    return decision.asked(held, found, max_attempts)


SILENCE = [Unknown("away"), Retryable("away")]


@pytest.mark.parametrize("found", SILENCE)
def test_a_question_without_an_answer_ends_at_a_person(found: Outcome) -> None:
    """After the deadline, and after enough look-ups, a person decides."""
    held = claim(asking=True, at=1001, asks=decision.UNANSWERED)
    assert isinstance(asked(held, found), Unresolvable)


@pytest.mark.parametrize(
    "held",
    [
        claim(asking=True, at=1000, asks=99),
        claim(asking=True, at=1001, asks=decision.UNANSWERED - 1),
        claim(asking=True, at=1001, asks=99, settle_until=2000),
    ],
    ids=["before the deadline", "asked too seldom", "before the settle delay"],
)
def test_before_that_it_is_asked_again(held: Claim) -> None:
    """A short outage of the provider needs no person."""
    assert asked(held, Unknown("away")) == Unknown("away")


@pytest.mark.parametrize("found", SILENCE)
@given(deadline=st.integers(0, 253_402_300_800_000), settle=st.integers(0, 2 * 10**12))
def test_no_deadline_keeps_a_question_from_a_person(
    found: Outcome, deadline: int, settle: int
) -> None:
    """Whatever the deadline is, look-ups stay without an answer for a week at most."""
    at = max(settle, min(deadline, settle + decision.LONGEST_SILENCE))
    held = claim(True, at, asks=decision.UNANSWERED, deadline_at=deadline, settle_until=settle)
    assert asked(held, found) == found
    assert isinstance(asked(replace(held, at=at + 1), found), Unresolvable)


def test_a_look_up_that_is_refused_after_the_deadline_ends_at_a_person() -> None:
    """Something on the way may refuse this customer's data: its job must not close the account
    after each resume, for ever."""
    refused = Refused("403", unproved=True)
    assert isinstance(asked(claim(asking=True, at=1001, asks=1), refused), Unresolvable)
    assert asked(claim(asking=True, at=1001), refused) == refused, "once is not enough"
    assert asked(claim(asking=True, at=1000, asks=9), refused) == refused


def test_a_worker_that_cannot_ask_sends_nobody_to_a_person() -> None:
    """A missing account or key is no silence of the provider's."""
    ours = Retryable("no such account", 15, spends=False)
    assert asked(claim(asking=True, at=1001, asks=99), ours) == ours


@pytest.mark.parametrize(
    ("more", "spent"),
    [
        ({}, False),
        ({"deadline_at": 600}, True),
        ({"deadline_at": 601}, False),
        ({"attempts": 10}, True),
        ({"attempts": 9}, False),
    ],
)
def test_a_refused_login_is_no_proof_for_a_job_that_cannot_be_sent_again(
    more: dict[str, int], spent: bool
) -> None:
    """If the provider could say no more than that, a person finds out."""
    held = claim(asking=True, at=600, **more)
    unproved = Absent("not by the login", login_only=True)
    assert isinstance(asked(held, unproved), Unresolvable if spent else Absent)
    assert asked(held, Absent("nobody")) == Absent("nobody")
    assert not isinstance(asked(replace(held, at=499), unproved), Unresolvable), "too early"


def test_somebody_else_is_believed_after_the_settle_delay_only() -> None:
    """Our own request may be carried out between the login and the look-up."""
    found = Unresolvable("somebody")
    assert isinstance(asked(claim(asking=True, at=499), found), Unknown)
    assert asked(claim(asking=True, at=500), found) == found


@pytest.mark.parametrize("login_only", [False, True])
def test_a_duplicate_weighs_more_than_a_look_up_that_finds_nobody(login_only: bool) -> None:
    """As if the look-up had been answered at once."""
    absent = Absent("nobody", login_only=login_only)
    held = claim(asking=True, at=500, unproved=TAKEN)
    assert asked(held, absent) == decision.refused_again(absent)
    assert isinstance(asked(replace(held, at=499), absent), Unknown), "after the settle delay"


@pytest.mark.parametrize("found", [*OUTCOMES, Retryable("no account", spends=False)], ids=str)
def test_a_duplicate_changes_no_other_answer(found: Outcome) -> None:
    """A worker that lacks the account, for example, has asked nobody."""
    held = claim(asking=True, at=500)
    taken = replace(held, record=replace(held.record, unproved=TAKEN))
    if not isinstance(found, Absent):
        assert asked(taken, found) == asked(held, found)


@pytest.mark.parametrize("outcome", OUTCOMES, ids=str)
def test_what_is_refused_by_status_again_is_not_the_accounts_fault(outcome: Outcome) -> None:
    """An operator has resumed the account meanwhile."""
    watch = decision.Watch()
    watch.heard(Answer(403, {}, b""))
    assert decision.answered(replace(RECORD, unknowns=9), outcome, watch) == outcome
    assert watch.health == "ok"
    again = decision.answered(replace(RECORD, unknowns=1, refusals=1), outcome, watch)
    watch.judged(again)
    refused = isinstance(outcome, Refused) and outcome.unproved
    assert watch.by_status == refused, "only these are counted"
    assert again == (Unknown("403") if refused else outcome)
    assert not refused or not watch.health, "nor does it open the breaker"
    assert not refused or of(again).spends


def test_a_question_rejects_nobody() -> None:
    """A registration that no longer fits our model may still have been carried out."""
    found = asked(claim(asking=True), INVALID)
    assert isinstance(found, Unresolvable)
    assert "name: is required" in found.reason


@pytest.mark.parametrize("found", [Registered({}), Absent("nobody")])
def test_an_answer_is_an_answer(found: Outcome) -> None:
    """It counts, however late it comes."""
    assert asked(claim(asking=True, at=10**6, asks=99), found) == found


# -- duplicates ------------------------------------------------------------------------------------


def test_only_an_existing_customer_is_a_duplicate() -> None:
    """Exactly one outcome means that the customer exists already, whatever else is wrong."""
    assert [one for one in OUTCOMES if decision.duplicate(one)] == [DUPLICATE]
    assert decision.duplicate(Rejected((*INVALID.errors, *DUPLICATE.errors)))


@pytest.mark.parametrize("found", OUTCOMES, ids=str)
def test_a_duplicate_is_adopted_if_our_password_opens_it(found: Outcome) -> None:
    """This holds for a first attempt; any clear answer but that leaves it a duplicate."""
    adopted = decision.adopted(DUPLICATE, found)
    match found:
        case Registered():
            assert adopted == found
        case Unknown() | Retryable() | Refused():
            assert type(adopted) is (Refused if isinstance(found, Refused) else Retryable)
        case _:
            assert adopted == DUPLICATE


@pytest.mark.parametrize("found", OUTCOMES, ids=str)
def test_a_first_attempt_that_was_refused_as_a_duplicate_is_never_unknown(found: Outcome) -> None:
    """Nothing was created, whether or not the look-up after it is answered."""
    assert of(decision.adopted(DUPLICATE, found)).name in {"registered", "rejected", "retry"}


@pytest.mark.parametrize("found", OUTCOMES, ids=str)
def test_a_refusal_after_an_unknown_attempt_leaves_the_job_in_doubt(found: Outcome) -> None:
    """The customer may be ours: a login proves it, and without one a person decides."""
    decided = decision.refused_again(found)
    assert of(decided).name in {"registered", "taken", "unresolvable"}
    others = of(decision.refused_again(found, "rejected when it was sent again"))
    assert others.name in {"registered", "unknown", "unresolvable"}
    assert of(decided).name != "taken" or decision.REFUSED in of(decided).reason
    assert isinstance(decided, Registered) == isinstance(found, Registered)


@pytest.mark.parametrize("unasked", [Unknown("HTTP 503"), Retryable("connection refused")])
def test_a_look_up_without_an_answer_says_nothing_of_the_password(unasked: Outcome) -> None:
    """Not that it opens no account, whether or not the look-up was sent."""
    decided = of(decision.refused_again(unasked))
    assert decided.name == "taken"
    assert "not asked whose it is" in decided.reason


@pytest.mark.parametrize("how", [decision.REFUSED, "rejected when it was sent again"])
def test_a_look_up_that_has_to_wait_does_not_lengthen_the_settle_delay(how: str) -> None:
    """The call was answered. Otherwise a person would be asked a day later, long after the
    deadline."""
    decided = of(decision.refused_again(Unknown("HTTP 429", 86400.0), how))
    assert decided.name in {"taken", "unknown"}
    assert decided.delay < 60


@pytest.mark.parametrize("found", OUTCOMES, ids=str)
def test_a_rejection_counts_only_if_a_search_found_nobody(found: Outcome) -> None:
    """The login alone proves nothing."""
    decided = decision.rejected_again(INVALID, found)
    proved = isinstance(found, Absent) and not found.login_only
    doubt = decision.refused_again(found, "rejected when it was sent again")
    assert decided == (INVALID if proved else doubt)


@pytest.mark.parametrize("outcome", OUTCOMES, ids=str)
def test_which_refusals_an_earlier_attempt_may_explain(outcome: Outcome) -> None:
    """A duplicate always; any other one only if absence is not proved."""
    rejected = isinstance(outcome, Rejected)
    assert not decision.doubted(RECORD, outcome)
    assert decision.doubted(replace(RECORD, unknowns=1), outcome) == (outcome == DUPLICATE)
    assert decision.doubted(replace(RECORD, unknowns=1, unproved=1), outcome) == rejected


# -- the account's health --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "health"),
    [
        (Answer(200, {}, b""), "ok"),
        (Answer(404, {}, b""), "ok"),
        (Answer(429, {}, b""), ""),
        (Answer(500, {}, b""), "fault"),
        (Answer(503, {}, b""), "fault"),
        (Lost("reset"), "fault"),
        (NotSent("connection refused"), "fault"),
        (NotSent("lease lost", ours=True), ""),
    ],
    ids=str,
)
def test_what_an_answer_says_of_the_account(answer: Answer | NotSent | Lost, health: str) -> None:
    """Server errors and lost answers are faults; 429 changes nothing, nor what this worker did not
    send."""
    assert watched(answer) == health


def test_the_last_call_of_an_attempt_counts() -> None:
    """A provider that answers again is healthy."""
    assert watched(Lost("reset"), Answer(200, {}, b"")) == "ok"


@pytest.mark.parametrize(
    ("outcome", "health"),
    [(Unknown("not JSON"), "fault"), (Absent("nobody"), "ok"), (Rejected(()), "ok")],
)
def test_an_answer_that_nobody_can_read_is_a_fault(outcome: Outcome, health: str) -> None:
    """A page about maintenance, often with status 200, creates nobody."""
    watch = decision.Watch()
    watch.heard(Answer(200, {}, b"<html>"))
    watch.judged(outcome)
    assert watch.health == health


def watched(*answers: Answer | NotSent | Lost) -> str:
    """The health after calls with these answers."""
    watch = decision.Watch()
    for answer in answers:
        watch.heard(answer)
    return watch.health


def test_the_words_for_a_spent_job_cover_both_reasons() -> None:
    """A job is abandoned because of its deadline or its attempts."""
    assert set(decision.SPENT) == {Code.DEADLINE, Code.ATTEMPTS}
    assert State.ABANDONED == "abandoned"


@pytest.mark.parametrize(
    ("outcome", "means"),
    [
        (Registered({"id": 1}), Registered({"id": 1}, recovered=True)),
        (Unknown("lost", 3.0), Unknown("lost", 3.0)),
        (Retryable("asked to wait", 3.0), Unknown("asked to wait", 3.0)),
        (Refused("key"), Refused("key")),
        (
            Rejected((Fault(Code.INVALID, "email", "is odd"),)),
            Absent("rejected when it was sent again under the same key"),
        ),
        (
            Rejected((Fault(Code.ALREADY_EXISTS, "email", "is known"),)),
            Unresolvable("refused as a duplicate, though under the same key"),
        ),
        (Retryable("lease lost", spends=False), Retryable("lease lost", spends=False)),
    ],
)
def test_a_call_that_is_repeated_under_its_key(outcome: Outcome, means: Outcome) -> None:
    """Success is ours, a rejection means that nothing was created, and any other answer leaves
    the job unknown."""
    assert decision.repeated(outcome) == means

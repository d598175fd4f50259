"""The rules between what came back and what is settled."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker import verdict
from worker.ledger.records import Claim, Record
from worker.lifecycle import State
from worker.outcome import (
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
from worker.providers.base import Answer, Lost, NotSent, Request
from worker.retry import Backoff

BACKOFF = Backoff(base=2, cap=300)
DUPLICATE = Rejected((Fault(Code.ALREADY_EXISTS, "email", "exists"),))
INVALID = Rejected((Fault(Code.INVALID, "email", "no"), Fault(Code.MISSING, "name", "is required")))
OUTCOMES: list[Outcome] = [
    Registered({"customer_key": "canary"}),
    DUPLICATE,
    INVALID,
    Retryable("not sent"),
    Refused("401"),
    Unknown("lost"),
    Absent("nobody"),
    Unresolvable("somebody"),
]
#: How a verdict is called in the ledger's script.
NAMES = [
    "registered",
    "rejected",
    "rejected",
    "retry",
    "retry",
    "unknown",
    "absent",
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
    """The verdict on an outcome."""
    watch = verdict.Watch()
    watch.health = health
    return verdict.of(held or claim(), outcome, watch, BACKOFF, chance)


# -- the verdict -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("outcome", "name"), list(zip(OUTCOMES, NAMES, strict=True)))
def test_each_outcome_has_its_verdict(outcome: Outcome, name: str) -> None:
    """Every outcome is settled by the name that the ledger knows."""
    assert of(outcome).name == name


@pytest.mark.parametrize("outcome", OUTCOMES, ids=lambda one: type(one).__name__)
def test_a_verdict_holds_nothing_that_the_provider_gave(outcome: Outcome) -> None:
    """A reason goes into timelines and logs; keys belong into the event only."""
    assert "canary" not in repr(of(outcome))


def test_a_rejections_reason_is_its_codes() -> None:
    """What the timeline says is ours, and short."""
    assert of(INVALID).reason == "invalid, missing"


def test_what_was_found_by_asking_says_so() -> None:
    """The timeline tells an answer from something found out."""
    assert of(Registered({}, recovered=True)).reason == "found by asking"


@given(attempts=st.integers(1, 50), chance=st.floats(0, 0.999))
def test_a_retry_backs_off_by_attempts(attempts: int, chance: float) -> None:
    """Each failure may wait longer, up to the cap."""
    delay = of(Retryable("no"), claim(attempts=attempts), chance=chance).delay
    assert 0 <= delay <= min(300, 2 * 2 ** (attempts - 1))


def test_a_question_backs_off_by_questions() -> None:
    """How often was called says nothing of how often was asked."""
    held = claim(asking=True, attempts=9, asks=2)
    assert of(Unknown("no"), held).delay == BACKOFF.delay(3, 0.5)


@pytest.mark.parametrize("kind", [Retryable, Unknown])
@given(wait=st.floats(0, 86_400))
def test_retry_after_is_honoured(kind: Any, wait: float) -> None:
    """Never sooner than the provider said, and not all in the same second."""
    assert wait <= of(kind("no", wait)).delay <= wait + 1


@pytest.mark.parametrize("kind", [Retryable, Unknown])
def test_a_retry_after_of_years_is_a_mistake(kind: Any) -> None:
    """It would keep an unknown job from ever being settled."""
    assert of(kind("no", 1e9)).delay <= verdict.LONGEST_WAIT + 1


def test_refused_credentials_are_the_accounts_fault() -> None:
    """The job waits, spends nothing, and the account's breaker opens."""
    found = of(Refused("401"), health="ok")
    assert (found.name, found.spends, found.health) == ("retry", False, "refused")


def test_our_own_fault_spends_no_attempt() -> None:
    """What this worker lacks is not the job's fault."""
    assert not of(Retryable("no key", spends=False)).spends
    assert of(Retryable("not sent")).spends


# -- what a question came to -----------------------------------------------------------------------


@pytest.mark.parametrize("found", [Unknown("away"), Retryable("away")])
def test_a_question_without_an_answer_ends_at_a_person(found: Outcome) -> None:
    """Past the deadline, and asked often enough, somebody else must tell."""
    held = claim(asking=True, at=1001, asks=verdict.UNANSWERED)
    assert isinstance(verdict.asked(held, found), Unresolvable)


@pytest.mark.parametrize(
    "held",
    [
        claim(asking=True, at=1000, asks=99),
        claim(asking=True, at=1001, asks=verdict.UNANSWERED - 1),
        claim(asking=True, at=1001, asks=99, settle_until=2000),
    ],
    ids=["before the deadline", "asked too seldom", "before the settle delay"],
)
def test_before_that_it_is_asked_again(held: Claim) -> None:
    """One bad minute of the provider makes nobody get up."""
    assert verdict.asked(held, Unknown("away")) == Unknown("away")


def test_somebody_else_is_believed_after_the_settle_delay_only() -> None:
    """A request of ours may be carried out between the login and the look-up."""
    found = Unresolvable("somebody")
    assert isinstance(verdict.asked(claim(asking=True, at=499), found), Unknown)
    assert verdict.asked(claim(asking=True, at=500), found) == found


def test_a_question_rejects_nobody() -> None:
    """A registration that no longer fits our model may have been carried out all the same."""
    found = verdict.asked(claim(asking=True), INVALID)
    assert isinstance(found, Unresolvable)
    assert "name: is required" in found.reason


@pytest.mark.parametrize("found", [Registered({}), Absent("nobody"), Refused("401")])
def test_an_answer_is_an_answer(found: Outcome) -> None:
    """However late it comes."""
    assert verdict.asked(claim(asking=True, at=10**6, asks=99), found) == found


# -- duplicates ------------------------------------------------------------------------------------


def test_only_an_existing_customer_is_a_duplicate() -> None:
    """Among all outcomes, one means that somebody is there already."""
    assert [one for one in OUTCOMES if verdict.duplicate(one)] == [DUPLICATE]


@pytest.mark.parametrize("found", OUTCOMES, ids=lambda one: type(one).__name__)
def test_a_duplicate_is_adopted_if_our_password_opens_it(found: Outcome) -> None:
    """On a first attempt; if that can't be found out now, it is asked again."""
    adopted = verdict.adopted(DUPLICATE, found)
    ours = isinstance(found, Registered | Unknown | Refused)
    assert adopted == (found if ours else DUPLICATE)


@pytest.mark.parametrize("found", OUTCOMES, ids=lambda one: type(one).__name__)
def test_a_duplicate_after_an_unknown_attempt_is_never_a_rejection(found: Outcome) -> None:
    """It may be us: our login is the proof, and without it a person decides."""
    decided = verdict.refused_again(found)
    assert isinstance(decided, Registered | Unknown | Refused | Unresolvable)
    assert isinstance(decided, Registered) == isinstance(found, Registered)


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
    ],
    ids=str,
)
def test_what_an_answer_says_of_the_account(answer: Answer | Lost, health: str) -> None:
    """Server errors and lost answers are faults; being told to wait says nothing."""
    assert watched(answer) == health


def test_the_last_call_of_an_attempt_counts() -> None:
    """A provider that answers again is well."""
    assert watched(Lost("reset"), Answer(200, {}, b"")) == "ok"


def watched(*answers: Answer | NotSent | Lost) -> str:
    """The health after calls with these answers."""
    given_answers = iter(answers)

    async def send(_: Request) -> Answer | NotSent | Lost:
        return next(given_answers)

    async def calls() -> None:
        through = watch.over(send)
        for answer in answers:
            assert await through(Request("https://example.com", {})) == answer

    watch = verdict.Watch()
    asyncio.run(calls())
    return watch.health


def test_the_words_for_a_spent_job_cover_both_reasons() -> None:
    """A job is abandoned by its deadline or for its attempts."""
    assert set(verdict.SPENT) == {Code.DEADLINE, Code.ATTEMPTS}
    assert State.ABANDONED == "abandoned"

"""The life cycle keeps the promise in every order of steps, and needs each of its rules for
that."""

import pytest

from regworker.domain.states import EDGES, State
from tests.model.conftest import Searched
from tests.model.explore import explore
from tests.model.model import DEFAULT, FORGETFUL, Rules

#: The first test that needs a search makes it, which takes minutes on a busy machine.
pytestmark = pytest.mark.timeout(900)

#: Edges that the ledger allows, although no world within the assumptions takes them.
SPARE = {
    # No provider answers so when it is asked.
    (State.UNKNOWN, State.REJECTED),
}


@pytest.mark.parametrize("bounds", DEFAULT)
def test_every_job_ends_once_and_makes_at_most_one_customer(
    searched: dict[str, Searched], bounds: str
) -> None:
    """After any kill, stop, loss or delay there is one outcome, and at most one customer."""
    found = searched[bounds].found
    assert not found.flaw, found
    assert len(found.worlds) > 15_000


def test_every_edge_of_the_life_cycle_is_taken(searched: dict[str, Searched]) -> None:
    """Every edge in the table is used, except those kept for worlds outside the assumptions."""
    taken = {
        (found.before(number).job.state, found.worlds[number].job.state)
        for found in (searched[name].found for name in DEFAULT | FORGETFUL)
        for number in range(1, len(found.worlds))
    }
    assert set(EDGES) - taken == SPARE


@pytest.mark.parametrize(
    ("rule", "flaw"),
    [
        ("lost_lease_is_unknown", "a request followed one that may have been carried out"),
        ("fenced", "a stale worker's decision changed the job"),
        ("settle_delay", "there is or may yet be an account"),
        ("asks_first", "a request followed one that may have been carried out"),
        ("settles_whole", "with 0 final events"),
        ("alarm_on_retry", "without an alarm"),
        ("lease_check", "a request left without a claim"),
        ("deadline_asks", "no edge leads from unknown to abandoned"),
        ("events_numbered_by_ledger", "two events under one id"),
    ],
)
def test_a_rule_left_out_breaks_the_promise(rule: str, flaw: str) -> None:
    """Without any one of the rules of the design, the model finds a broken promise."""
    found = explore(Rules(**{rule: False}))
    assert flaw in found.flaw
    assert 3 <= len(found.trace) <= 12, found


@pytest.mark.parametrize("bounds", FORGETFUL)
def test_a_claim_that_is_forgotten_costs_a_question_and_no_customer(
    searched: dict[str, Searched], bounds: str
) -> None:
    """The forgotten claim's worker may still send: the next claim asks, and believes absence
    late."""
    found = searched[bounds].found
    assert not found.flaw, found
    assert any(world.job.in_doubt for world in found.worlds)


def test_without_the_doubt_a_forgotten_claim_makes_a_second_customer() -> None:
    """If every replica has acknowledged, no claim is forgotten, and the doubt is not needed."""
    bounds = FORGETFUL["the ledger forgets a claim twice"]
    found = explore(Rules(doubts=False), bounds)
    assert "a request followed one that may have been carried out" in found.flaw
    assert not explore(Rules(doubts=False, replicated=True), bounds).flaw


@pytest.mark.parametrize("assumption", ["requests_end", "sends_at_once", "ledger_remembers"])
def test_the_promise_rests_on_what_is_assumed(assumption: str) -> None:
    """If requests outlive the settle delay, or the ledger forgets, no code can keep the promise."""
    found = explore(Rules(**{assumption: False}))
    assert found.flaw
    assert 3 <= len(found.trace) <= 12, found


def test_without_the_doubt_a_refused_login_ends_a_job_that_has_a_customer() -> None:
    """A store that cannot be searched refuses the login of a customer that waits for approval."""
    bounds = DEFAULT["only the login can be asked"]
    found = explore(Rules(keeps_doubt=False), bounds)
    assert "there is or may yet be an account" in found.flaw
    assert 3 <= len(found.trace) <= 12, found


def test_without_the_duplicate_a_look_up_that_finds_nobody_ends_a_job_that_has_a_customer() -> None:
    """The provider has refused the job because its customer exists, and then does not find it."""
    bounds = DEFAULT["only the login can be asked"]
    found = explore(Rules(keeps_duplicates=False), bounds)
    assert "there is or may yet be an account" in found.flaw
    assert "worker 1: settles (taken)" in str(found)
    assert 3 <= len(found.trace) <= 17, found


def test_a_trace_tells_step_by_step_what_happened() -> None:
    """A trace shows step by step how a flaw comes about."""
    lines = str(explore(Rules(lost_lease_is_unknown=False))).splitlines()
    assert lines[1].split()[:2] == ["0", "accept"]
    assert any("the lease runs out" in line for line in lines)
    assert len(lines) == 2 + len(explore(Rules(lost_lease_is_unknown=False)).trace)

"""The life cycle keeps the promise, whatever happens when, and needs each of its rules for it."""

import pytest

from tests.model.conftest import Searched
from tests.model.explore import explore
from tests.model.model import DEFAULT, Rules
from worker.lifecycle import EDGES, State

#: What no well-behaved world comes to, and the ledger nevertheless allows.
SPARE = {
    # A late answer, when the settle delay turned out too short.
    (State.QUEUED, State.REGISTERED),
    # No provider says so when it is asked.
    (State.UNKNOWN, State.REJECTED),
}


@pytest.mark.parametrize("bounds", DEFAULT)
def test_every_job_ends_once_and_makes_at_most_one_customer(
    searched: dict[str, Searched], bounds: str
) -> None:
    """Whatever is killed, stopped, lost or late: one outcome, one customer at the most."""
    found = searched[bounds].found
    assert not found.flaw, found
    assert len(found.worlds) > 15_000


def test_every_edge_of_the_life_cycle_is_taken(searched: dict[str, Searched]) -> None:
    """No edge in the table is without use, except those kept for worse worlds than assumed."""
    taken = {
        (found.before(number).job.state, found.worlds[number].job.state)
        for found in (one.found for one in searched.values())
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
    """The rules of the design are all needed, and the model would tell if one went missing."""
    found = explore(Rules(**{rule: False}))
    assert flaw in found.flaw
    assert 3 <= len(found.trace) <= 12, found


@pytest.mark.parametrize("assumption", ["requests_end", "sends_at_once", "ledger_remembers"])
def test_the_promise_rests_on_what_is_assumed(assumption: str) -> None:
    """Where requests outlive the settle delay, or the ledger forgets, no code could help."""
    found = explore(Rules(**{assumption: False}))
    assert found.flaw
    assert 3 <= len(found.trace) <= 12, found


def test_a_trace_tells_step_by_step_what_happened() -> None:
    """Who finds a flaw can read how it comes about."""
    lines = str(explore(Rules(lost_lease_is_unknown=False))).splitlines()
    assert lines[1].split()[:2] == ["0", "accept"]
    assert any("the lease runs out" in line for line in lines)
    assert len(lines) == 2 + len(explore(Rules(lost_lease_is_unknown=False)).trace)

"""The table of states and edges agrees with the Lua scripts that take the edges."""

import re

import pytest

from regworker.domain.states import EDGES, FINAL, PARKED, UNFINISHED, State, may
from regworker.ledger.calls import scripts

Edge = tuple[State | None, State]

#: First lines of scripts that change no job's state: `-- renew: (no edge) ...`, `-- deliver: (a
#: delivery) ...`.
NO_EDGE = r"\s*\("


def first_line(name: str) -> str:
    """The first line of a script, after its name."""
    line = next(line for line in scripts()[name].splitlines() if line.startswith(f"-- {name}: "))
    return line.removeprefix(f"-- {name}: ")


def edges_of(name: str) -> set[Edge]:
    """The edges a script's first line names: `a | b -> c | d; e -> f`; `-> a` where jobs begin."""
    line = first_line(name)
    if re.match(NO_EDGE, line):
        return set()
    found: set[Edge] = set()
    for part in line.split(";"):
        sources, arrow, targets = part.partition("->")
        assert arrow, f"{name}: {part!r} names no edge"
        from_states = [State(one.strip()) if one.strip() else None for one in sources.split("|")]
        found |= {
            (before, State(after.strip())) for before in from_states for after in targets.split("|")
        }
    return found


def doers(edge: tuple[State, State]) -> set[str]:
    """The scripts that the table names for an edge: `settle or claim: ...`."""
    return set(re.split(r" or | and ", EDGES[edge].partition(":")[0]))


@pytest.mark.parametrize("name", sorted(scripts()))
def test_every_edge_a_script_names_is_in_the_table(name: str) -> None:
    """A script moves a job only along edges of the life cycle."""
    for before, after in edges_of(name):
        assert after is State.QUEUED if before is None else may(before, after)


@pytest.mark.parametrize("edge", sorted(EDGES), ids=" -> ".join)
def test_every_edge_of_the_table_is_named_by_the_scripts_it_names(
    edge: tuple[State, State],
) -> None:
    """Each script that the table names for an edge also names that edge itself."""
    for name in doers(edge):
        assert edge in edges_of(name)


@pytest.mark.parametrize("name", sorted(scripts()))
def test_every_script_begins_with_what_it_does(name: str) -> None:
    """A script's own part starts with one line that names it and its edges, then its KEYS."""
    own = scripts()[name].split(f"-- {name}: ")[1].splitlines()
    assert own[0]
    assert any(line.startswith("-- KEYS") for line in own[1:4])


def test_a_state_is_either_unfinished_parked_or_final() -> None:
    """Every state is in exactly one of the three sets."""
    assert set(State) == FINAL | PARKED | UNFINISHED
    assert len(FINAL) + len(PARKED) + len(UNFINISHED) == len(State)


def test_only_a_persons_hand_leads_out_of_a_final_state() -> None:
    """A finished job stays finished; only an abandoned one can be redriven, and is looked up
    first."""
    out = [edge for edge in EDGES if edge[0] in FINAL]
    assert out == [(State.ABANDONED, State.UNKNOWN)]
    assert doers(out[0]) == {"redrive"}


def test_every_state_is_reached_from_queued() -> None:
    """No state in the table is unreachable."""
    reached = {State.QUEUED}
    while more := {after for before, after in EDGES if before in reached} - reached:
        reached |= more
    assert reached == set(State)


@pytest.mark.parametrize("state", sorted(UNFINISHED | PARKED))
def test_every_unfinished_state_can_end(state: State) -> None:
    """From every unfinished state, edges lead to a final one."""
    reached = {state}
    while more := {after for before, after in EDGES if before in reached} - reached:
        reached |= more
    assert reached & FINAL


def test_unknown_is_left_only_by_an_answer_or_a_person() -> None:
    """An unknown job is never cancelled, abandoned or called again."""
    ways = {after for before, after in EDGES if before is State.UNKNOWN}
    assert not ways & {State.CALLING, State.CANCELLED, State.ABANDONED}

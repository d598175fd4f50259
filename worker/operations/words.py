"""Texts for the ledger's reasons and timelines, shared by the command line and the pages."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from regworker.ledger.records import WAITS as WAITS

NEXT = {
    "calling": "a worker holds it; a request may be on the wire",
    "unknown": "an answer was lost; a worker asks the provider before it sends anything again",
    "review": "a person must check at the provider whether the customer exists",
}

#: Lines of a timeline that name a worker; the others of `DOINGS` name a person.
BY_WORKERS = frozenset({"calling", "asking"})
#: Lines of a timeline that name who did it, as text.
DOINGS = {
    "calling": "calls the provider",
    "asking": "asks the provider about the registration",
    "registered": "marked as registered",
    "rejected": "marked as rejected",
    "resend": "to be sent again unless it is found",
    "corrected to registered": "corrected to registered",
    "corrected to rejected": "corrected to rejected",
}


@dataclass(frozen=True, slots=True)
class Step:
    """A line of a timeline: `who` did `what`; or the job changed its state, for a `reason`."""

    who: str
    what: str
    reason: str = ""
    by_person: bool = False


def step(line: str) -> Step:
    """Parse a line of a timeline."""
    what, by, who = line.partition(" by ")
    if by and what in DOINGS:
        return Step(who, DOINGS[what], by_person=what not in BY_WORKERS)
    # `unknown: ReadTimeout`: the state, then the reason.
    state, _, reason = line.partition(":")
    return Step("", state, reason.strip())


@dataclass(frozen=True, slots=True)
class Steps:
    """Lines of a timeline that occur `times` times in a row; `at`: the first time (ms)."""

    at: int
    steps: tuple[Step, ...]
    times: int = 1
    last: int = 0


def grouped(timeline: Sequence[tuple[int, str]]) -> list[Steps]:
    """A timeline in which repeated lookups with the same answer are shown once."""
    found: list[Steps] = []
    lines = [(at, step(line)) for at, line in timeline]
    at = 0
    while at < len(lines):
        pair = tuple(one for _, one in lines[at : at + 2])
        before = found[-1] if found else None
        if before and len(pair) == 2 and _told(before.steps) == _told(pair):
            found[-1] = replace(before, times=before.times + 1, last=lines[at][0])
            at += 2
        elif len(pair) == 2 and pair[0].who and pair[0].what == DOINGS["asking"]:
            found.append(Steps(lines[at][0], pair))
            at += 2
        else:
            found.append(Steps(lines[at][0], pair[:1]))
            at += 1
    return found


def _told(steps: Sequence[Step]) -> list[tuple[str, str]]:
    # The worker's name makes no difference.
    return [(one.what, one.reason) for one in steps]


def why(state: str, reason: str) -> str:
    """Why a job waits, by its state; `reason`: that of its record."""
    parts = (NEXT.get(state, ""), WAITS.get(reason, reason))
    return "; ".join(part for part in parts if part)

"""Lists of jobs: the indexes, and a command that reads a slice of one.

Unfinished jobs are in `open`, by state, lane and time of acceptance. A finished job is in the
stream `ended:<state>:<provider>:<account>`, by the time of its end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from regworker.domain.states import FINAL, State
from regworker.ledger.records import Record, text
from regworker.ledger.scans import scanned
from regworker.ledger.snapshot import OPEN, RANKS, place
from regworker.ledger.transitions import PREFIX, STATS, Command

#: Records that one script reads: one to two milliseconds of the server's time.
SLICE = 100


#: The last time of an index (ms): a state's scores end there.
LATEST = 10**13 - 1


@dataclass(frozen=True, slots=True)
class Index:
    """One index of jobs in one state."""

    key: str
    kind: str
    """`zset` or `stream`."""
    state: State
    base: int = 0
    """The offset of a zset's scores from the time (ms)."""
    name: str = ""
    """Unique for each index: entries with equal times are read in the order of their indexes."""


@dataclass(frozen=True, slots=True)
class WantedJobs:
    """The required values of a job's record; '' for any. Times in ms, both inclusive."""

    provider: str = ""
    account: str = ""
    reason: str = ""
    metadata: tuple[tuple[str, str], ...] = ()
    since: int = 0
    until: int = LATEST
    newest: bool = True


@dataclass(frozen=True, slots=True)
class JobRow:
    """A job in a list. Times in ms; 0: none."""

    id: str
    state: State
    provider: str
    account: str
    idempotency_key: str
    lane: str
    why: str
    """Why it waits, or the result of its last attempt."""
    last: str
    """The last line of its timeline, without the time."""
    attempts: int
    accepted_at: int
    due_at: int
    finished_at: int
    deadline_at: int
    fence: int = 0
    """Rises with each claim: if it is unchanged, there was no attempt and no lookup in between."""
    reopened: int = 0

    @classmethod
    def read(cls, values: Sequence[Any]) -> Self:
        """Parse a job from the answer of `find`, in the script's order."""
        id_, state, provider, account, key, lane, why, attempts, *rest = map(text, values)
        accepted_at, due_at, finished_at, deadline_at, _, last, fence, reopened = rest
        return cls(
            id=id_,
            state=State(state),
            provider=provider,
            account=account,
            idempotency_key=key,
            lane=lane or "live",
            why=why,
            last=last.partition(" ")[2],
            attempts=_number(attempts),
            accepted_at=_number(accepted_at),
            due_at=_number(due_at),
            finished_at=_number(finished_at),
            deadline_at=_number(deadline_at),
            fence=_number(fence),
            reopened=_number(reopened),
        )

    @classmethod
    def of(cls, record: Record) -> Self:
        """The same from a whole record."""
        return cls(
            id=record.id,
            state=record.state,
            provider=record.provider,
            account=record.account,
            idempotency_key=record.idempotency_key,
            lane=record.lane,
            why=record.why,
            last=record.timeline[-1][1] if record.timeline else "",
            attempts=record.attempts,
            accepted_at=record.accepted_at,
            due_at=record.due_at,
            finished_at=record.finished_at,
            deadline_at=record.deadline_at,
            fence=record.fence,
            reopened=record.reopened,
        )

    @property
    def at(self) -> int:
        """When it ended; for an unfinished job, when it was accepted."""
        return self.finished_at or self.accepted_at


@dataclass(frozen=True, slots=True)
class Slice:
    """The result of reading an index: each job with its place there, (time, position)."""

    rows: tuple[tuple[int, str, JobRow], ...]
    exhausted: bool
    after: str
    """Where to continue."""
    at: int
    """The time (ms) of the last entry that was read; 0: there was none."""
    looked_at: int


def open_indexes(states: Sequence[State]) -> list[Index]:
    """The indexes of unfinished jobs."""
    return [
        Index(OPEN, "zset", state, place(state, lane, 0), f"open:{state}:{lane}")
        for state in states
        if state in RANKS
        for lane in ("live", "bulk")
    ]


def ended_indexes(ended: Sequence[tuple[State, str, str]]) -> list[Index]:
    """The indexes of finished jobs, by state, provider and account."""
    found = []
    for state, provider, account in ended:
        name = f"{state}:{provider}:{account}"
        found.append(Index(f"{PREFIX}ended:{name}", "stream", state, 0, f"ended:{name}"))
    return found


def ended_accounts(redis: Any) -> list[tuple[State, str, str]]:
    """The states and accounts of finished jobs, as a request for `SyncLedger.ask`."""
    found = []
    for field in map(text, scanned(redis, "hscan", STATS)):
        state, _, rest = field.partition(":")
        provider, _, account = rest.partition(":")
        if account and state in FINAL:
            found.append((State(state), provider, account))
    return sorted(found)


def find(
    index: Index, wanted: WantedJobs, after: str, most: int, slice_: int = SLICE
) -> Command[Slice]:
    """Read up to `slice_` entries of an index after `after` ('': from its start)."""

    def read(answer: Any) -> Slice:
        rows = tuple((int(one[1]), text(one[0]), JobRow.read(one[2:])) for one in answer[4:])
        return Slice(rows, answer[0] == 1, text(answer[1]), int(answer[2]), int(answer[3]))

    metadata = [part for pair in wanted.metadata for part in pair]
    return Command(
        "find",
        (index.key,),
        (
            index.kind,
            index.base,
            "newest" if wanted.newest else "oldest",
            wanted.since,
            wanted.until,
            after,
            slice_,
            most,
            index.state,
            wanted.provider,
            wanted.account,
            wanted.reason,
            *metadata,
        ),
        read,
    )


def heads(streams: Sequence[tuple[Index, str]], wanted: WantedJobs) -> Command[list[int]]:
    """The times (ms) of the first entries of some streams, each with where to start; -1: none."""
    return Command(
        "heads",
        tuple(index.key for index, _ in streams),
        (
            "newest" if wanted.newest else "oldest",
            wanted.since,
            wanted.until,
            *(after for _, after in streams),
        ),
        lambda answer: list(map(int, answer)),
    )


def _number(value: str) -> int:
    return int(float(value or 0))

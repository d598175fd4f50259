"""The life of a job: its states, its edges, and who moves a job along each.

This file is the one source: the Lua scripts in `client/regworker/ledger/scripts/` name in their
first line the edges they take, and a test holds those lines, this table and the documentation
together.

    queued ──claim──> calling ──settle──> registered | rejected      (final, event published)
      ^  ^               │ └────────────> queued                     (provably not sent)
      │  │               └──────────────> unknown ──settle──> registered | rejected
      │  └──────── proved absent ────────────┘ └────────────> review ──resolve──> ...
      └─ cancel ──> cancelled      abandon ──> abandoned
"""

from enum import StrEnum


class State(StrEnum):
    """The state of a job. A job is in exactly one state, kept in its ledger record."""

    QUEUED = "queued"
    """No request is outstanding at the provider. Workers wait until `due_at`."""

    CALLING = "calling"
    """A worker holds the lease, and a request may be in flight. If the lease expires, the job
    becomes `unknown`, never `queued`."""

    UNKNOWN = "unknown"
    """The customer may or may not exist. A worker must ask the provider."""

    REVIEW = "review"
    """A person must decide. The job has no alarm; an event has reported it."""

    REGISTERED = "registered"
    """Final: the customer exists, and the event holds its credentials from the provider."""

    REJECTED = "rejected"
    """Final: the provider or our validation rejected this registration."""

    ABANDONED = "abandoned"
    """Final: the deadline passed or all attempts were used up; no customer was created."""

    CANCELLED = "cancelled"
    """Final: the producer cancelled it while no request was outstanding at the provider."""


FINAL = frozenset({State.REGISTERED, State.REJECTED, State.ABANDONED, State.CANCELLED})
"""The job has ended: its event is published, its payload erased, its alarm removed.

Only an abandoned job can leave its state: an operator may redrive it.
"""

PARKED = frozenset({State.REVIEW})
"""States that wait for a person: an event is published, there is no alarm, the sealed payload is
kept."""

UNFINISHED = frozenset(State) - FINAL - PARKED
"""States in which a job has exactly one alarm."""

EDGES: dict[tuple[State, State], str] = {
    (State.QUEUED, State.CALLING): "claim: a worker takes the lease before it sends a byte",
    (State.QUEUED, State.UNKNOWN): "claim: a call may have been carried out; the worker asks first",
    (State.QUEUED, State.CANCELLED): "cancel: the producer cancels the job",
    (State.QUEUED, State.ABANDONED): "abandon: the deadline passed, or all attempts were used up",
    (State.CALLING, State.REGISTERED): "settle: the provider created the customer",
    (State.CALLING, State.REJECTED): "settle: the provider refused the registration",
    (State.CALLING, State.QUEUED): "settle: provably without effect; retried later",
    (State.CALLING, State.UNKNOWN): (
        "settle or claim: the answer was lost, or was a refusal by status, or the lease ran out"
    ),
    (State.CALLING, State.REVIEW): "settle: refused as a duplicate after an unknown attempt",
    (State.UNKNOWN, State.UNKNOWN): "claim and settle: the worker asked, and it is still unknown",
    (State.UNKNOWN, State.REGISTERED): "settle: found at the provider; a late answer counts too",
    (State.UNKNOWN, State.REJECTED): "settle: the provider has it under another name",
    (State.UNKNOWN, State.QUEUED): "settle: proved absent after the settle delay",
    (State.UNKNOWN, State.REVIEW): "settle: the provider cannot say",
    (State.QUEUED, State.REGISTERED): "settle: from a late answer of a stale worker",
    (State.REVIEW, State.REGISTERED): "resolve: an operator decides; or settle: a late answer",
    (State.REVIEW, State.REJECTED): "resolve: an operator knows",
    (State.ABANDONED, State.UNKNOWN): "redrive: its producer sends it again; the worker asks first",
    (State.REVIEW, State.UNKNOWN): "resolve: an operator resends it; the worker asks first",
}
"""All transitions of a job, and who makes each."""


def may(before: State, after: State) -> bool:
    """Whether a job may go from `before` to `after` in one step."""
    return (before, after) in EDGES

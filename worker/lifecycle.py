"""The life of a job: its states, its edges, and who moves a job along each.

This file is the one source: the Lua scripts in `worker/ledger/scripts/` name in their first line
the edges they take, and a test holds those lines, this table and the documentation together.

    queued ──claim──> calling ──settle──> registered | rejected      (final, event published)
      ^  ^               │ └────────────> queued                     (provably not sent)
      │  │               └──────────────> unknown ──settle──> registered | rejected
      │  └──────── proved absent ────────────┘ └────────────> review ──resolve──> ...
      └─ cancel ──> cancelled      abandon ──> abandoned
"""

from enum import StrEnum


class State(StrEnum):
    """Where a job stands. A job is in exactly one state, kept in its ledger record."""

    QUEUED = "queued"
    """Nothing is outstanding at the provider. `due_at` says: not before then."""

    CALLING = "calling"
    """A worker holds the lease; a request may be on the wire. A lease that runs out here
    means `unknown`, never `queued`."""

    UNKNOWN = "unknown"
    """The customer may or may not exist. Only asking the provider leads out of here."""

    REVIEW = "review"
    """Only a person can tell. Parked without an alarm; an event has said so."""

    REGISTERED = "registered"
    """Final: the customer exists, and the event holds the provider's credentials for it."""

    REJECTED = "rejected"
    """Final: the provider, or our validation, refused this registration."""

    ABANDONED = "abandoned"
    """Final: out of time or out of attempts, provably without a customer made by us."""

    CANCELLED = "cancelled"
    """Final: taken back by its producer while nothing was outstanding at the provider."""


FINAL = frozenset({State.REGISTERED, State.REJECTED, State.ABANDONED, State.CANCELLED})
"""The job is over: the event is published, the payload erased, the alarm gone.

There is no way out, but one by a person's hand: an abandoned job may be redriven.
"""

PARKED = frozenset({State.REVIEW})
"""States that wait for a person: published as an event, no alarm, payload kept sealed."""

UNFINISHED = frozenset(State) - FINAL - PARKED
"""States that own exactly one alarm each."""

EDGES: dict[tuple[State, State], str] = {
    (State.QUEUED, State.CALLING): "claim: a worker takes the lease, before a byte leaves",
    (State.QUEUED, State.CANCELLED): "cancel: the producer takes the job back",
    (State.QUEUED, State.ABANDONED): "abandon: deadline passed, or attempts spent",
    (State.CALLING, State.REGISTERED): "settle: the provider made the customer",
    (State.CALLING, State.REJECTED): "settle: the provider refused the registration",
    (State.CALLING, State.QUEUED): "settle: provably without effect; tried again later",
    (State.CALLING, State.UNKNOWN): "settle or claim: the answer was lost, or the lease ran out",
    (State.CALLING, State.REVIEW): "settle: refused as a duplicate after an unknown attempt",
    (State.UNKNOWN, State.UNKNOWN): "claim and settle: asked, and still not known",
    (State.UNKNOWN, State.REGISTERED): "settle: found at the provider; a late answer counts too",
    (State.UNKNOWN, State.REJECTED): "settle: the provider has it under another's name",
    (State.UNKNOWN, State.QUEUED): "settle: proved absent after the settle delay",
    (State.UNKNOWN, State.REVIEW): "settle: the provider cannot tell us",
    (State.QUEUED, State.REGISTERED): "settle: a late answer of a stale worker says so",
    (State.REVIEW, State.REGISTERED): "resolve: an operator knows; or settle: a late answer",
    (State.REVIEW, State.REJECTED): "resolve: an operator knows",
    (State.ABANDONED, State.UNKNOWN): "redrive: its producer brings it again; asked after first",
    (State.REVIEW, State.UNKNOWN): "resolve: an operator wants it sent again; asked after first",
}
"""Every edge a job may take, and who takes it along."""


def may(before: State, after: State) -> bool:
    """Whether a job may go from `before` to `after` in one step."""
    return (before, after) in EDGES

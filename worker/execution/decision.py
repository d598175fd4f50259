"""From a provider's outcome to the decision: the rules, without any I/O.

To change when a duplicate is believed, what counts as an account's fault, or how long a retry
waits, change it here.
"""

from typing import assert_never

from regworker.domain.outcome import (
    Absent,
    Code,
    Outcome,
    Refused,
    Registered,
    Rejected,
    Retryable,
    Unknown,
    Unresolvable,
)
from regworker.domain.retry import LONGEST_WAIT, Backoff
from regworker.ledger.records import Claim
from regworker.ledger.transitions import Decision
from worker.providers.base import Answer, Lost, NotSent

#: Why a job was abandoned, as text for its event.
SPENT = {
    "deadline": "the job's deadline passed before a call to the provider succeeded",
    "attempts": "all attempts of the job are used up",
}

#: How many lookups may go unanswered after a job's deadline before the job goes to review. Several,
#: so that one bad minute of the provider wakes nobody.
UNANSWERED = 5


#: How the reason of a review begins after a call was refused because the customer exists.
REFUSED = "refused as a duplicate"

#: The most characters of a reason that is composed of others.
MOST = 1000


class Watch:
    """Watches every call of an attempt, to judge the account's health."""

    def __init__(self) -> None:
        self.health = ""

    def heard(self, answer: Answer | NotSent | Lost) -> None:
        """Called with the answer to each call."""
        match answer:
            case Answer(status=429) | NotSent(ours=True):
                pass
            case Answer(status=status):
                self.health = "fault" if status >= 500 else "ok"
            case Lost() | NotSent():
                self.health = "fault"
            case _:
                assert_never(answer)


def duplicate(outcome: Outcome) -> bool:
    """Whether the provider refused because the customer exists."""
    return isinstance(outcome, Rejected) and any(
        error.code is Code.ALREADY_EXISTS for error in outcome.errors
    )


def adopted(refusal: Outcome, found: Outcome) -> Outcome:
    """A duplicate on a first attempt that may adopt: the customer is ours if our password works."""
    match found:
        case Registered() | Unknown() | Refused():
            return found
        case Absent() | Unresolvable() | Rejected() | Retryable():
            return refusal
        case _:
            assert_never(found)


def refused_again(found: Outcome) -> Outcome:
    """A duplicate after an unknown attempt: a customer exists and may be ours.

    Only our own login proves it. If the login fails, the address is taken by another customer, or
    by ours before its approval: only a person can find out.
    """
    match found:
        case Absent() | Rejected() | Retryable():
            return Unresolvable(f"{REFUSED}, but the job's password opens no account")
        case Registered() | Unknown() | Refused() | Unresolvable():
            return found
        case _:
            assert_never(found)


def repeated(outcome: Outcome) -> Outcome:
    """The outcome of the same call, repeated under the same key after a lost answer.

    The provider carried it out at most once, so a success is ours. A refusal means that no customer
    was created: the next attempt gets it again and settles it.
    """
    match outcome:
        case Registered(data):
            return Registered(data, recovered=True)
        case Rejected() if duplicate(outcome):
            return Unresolvable(f"{REFUSED}, though under the same key")
        case Rejected():
            return Absent("rejected when it was sent again under the same key")
        case Retryable(reason, retry_after):
            return Unknown(reason, retry_after)
        case _:
            return outcome


def asked(claim: Claim, found: Outcome) -> Outcome:
    """The outcome of a lookup. If lookups never get an answer, the job goes to review in the end.

    Time alone does not decide whether the customer exists; it only decides who finds out.
    """
    if isinstance(found, Unresolvable) and claim.at < claim.record.settle_until:
        # Our request may still be carried out, even between the login and the lookup: before the
        # settle delay, a customer with another password proves as little as absence.
        return Unknown(f"not decided yet: {found.reason}")
    late = claim.at > max(claim.record.deadline_at, claim.record.settle_until)
    match found:
        case Unknown(reason) | Retryable(reason) if late and claim.record.asks >= UNANSWERED:
            return Unresolvable(
                f"the provider did not answer look-ups until the deadline: {reason}"
            )
        case Rejected(errors):
            # A lookup refuses nobody: the model may have become stricter since the call.
            why = "; ".join(f"{one.field}: {one.message}" for one in errors)
            return Unresolvable(
                f"the provider cannot be asked about the registration: {why}"[:MOST]
            )
        case _:
            return found


def of(claim: Claim, outcome: Outcome, watch: Watch, backoff: Backoff, chance: float) -> Decision:
    """The decision to settle, with its delay and the account's health."""
    tries = claim.record.asks + 1 if claim.asking else claim.record.attempts
    health = watch.health
    match outcome:
        case Registered():
            return Decision(
                "registered", "found by asking" if outcome.recovered else "", 0, health=health
            )
        case Rejected(errors):
            return Decision("rejected", ", ".join(error.code for error in errors), health=health)
        case Retryable(reason, retry_after, spends):
            delay = backoff.after(tries, chance, _capped(retry_after))
            return Decision("retry", reason, delay, spends, health)
        case Refused(reason):
            delay = backoff.after(tries, chance, None)
            return Decision("retry", reason, delay, spends=False, health="refused")
        case Unknown(reason, retry_after):
            delay = backoff.after(tries, chance, _capped(retry_after))
            return Decision("unknown", reason, max(delay, _floor(backoff)), health=health)
        case Absent(reason):
            delay = max(backoff.after(tries, chance, None), _floor(backoff))
            return Decision("absent", reason, delay, health=health)
        case Unresolvable(reason):
            return Decision("unresolvable", reason, health=health)
        case _:
            assert_never(outcome)


def _floor(backoff: Backoff) -> float:
    # Between two lookups: full jitter may be 0 several times, when nothing can have changed.
    return backoff.base / 4


def _capped(retry_after: float | None) -> float | None:
    return None if retry_after is None else min(retry_after, LONGEST_WAIT)

"""From a provider's outcome to the decision: the rules, without any I/O.

To change when a duplicate is believed, what counts as an account's fault, or how long a retry
waits, change it here.
"""

from typing import assert_never

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
from regworker.ledger.records import TAKEN, Claim, Record
from regworker.ledger.transitions import Decision
from worker.providers.base import Answer, Lost, NotSent, unasked

#: Why a job was abandoned, as text for its event.
SPENT = {
    "deadline": "the job's deadline passed before a call to the provider succeeded",
    "attempts": "all attempts of the job are used up",
}

#: How many lookups may go unanswered after a job's deadline before the job goes to review. Several,
#: so that one bad minute of the provider wakes nobody. (`claim.lua` counts from the deadline on.)
UNANSWERED = 5

#: The longest time (ms) after the settle delay for which a lookup may go unanswered: a deadline may
#: be in the year 9999. A week is longer than any outage that needs no person.
LONGEST_SILENCE = 7 * 86_400_000

#: How the reason of a review begins after a call was refused because the customer exists.
REFUSED = "refused as a duplicate"

#: The most characters of a reason that is composed of others.
MOST = 1000


class Watch:
    """Watches every call of an attempt, to judge the account's health."""

    def __init__(self) -> None:
        self.health = ""
        self.by_status = False
        """Whether a call was refused by status, and not in the provider's own words."""

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

    def judged(self, outcome: Outcome) -> None:
        """Called with the outcome of all calls: an answer that nobody can read is a fault, too.

        With a page about its maintenance, often with status 200, a provider accepts nothing.
        """
        if isinstance(outcome, Unknown) and self.health == "ok":
            self.health = "fault"


def duplicate(outcome: Outcome) -> bool:
    """Whether the provider refused because the customer exists."""
    return isinstance(outcome, Rejected) and any(
        error.code is Code.ALREADY_EXISTS for error in outcome.errors
    )


def adopted(refusal: Outcome, found: Outcome) -> Outcome:
    """A duplicate on a first attempt that may adopt: the customer is ours if our password works.

    Nothing was created, whatever becomes of the lookup: without its answer, the call is repeated.
    """
    match found:
        case Registered():
            return found
        case Unknown(reason, retry_after) | Retryable(reason, retry_after):
            return Retryable(_unasked(REFUSED, reason), retry_after)
        case Refused(reason):
            return Refused(reason)
        case Absent() | Unresolvable() | Rejected():
            return refusal
        case _:
            assert_never(found)


def answered(record: Record, outcome: Outcome, watch: Watch) -> Outcome:
    """The outcome of a call or a look-up. A refusal by status that comes again is the job's.

    Since the first one an operator has resumed the account, so something on the way may refuse this
    customer's data: the job would close its account after each resume. If the account is not in
    order yet, the next job that is refused for the first time closes it: before the breaker opens,
    which would delay that job, and all others if only this customer is refused.
    """
    if isinstance(outcome, Refused) and outcome.unproved:
        watch.by_status = True
        if record.refusals:
            watch.health = ""
            return Unknown(outcome.reason)
    return outcome


def doubted(record: Record, outcome: Outcome) -> bool:
    """Whether an earlier attempt may be why the provider refused this one.

    A duplicate after an unknown attempt: a customer exists and may be ours. Any other refusal, if
    only the login has denied that: a verification code is used up by the attempt that succeeded.
    """
    if duplicate(outcome):
        return record.unknowns > 0
    return record.unproved > 0 and isinstance(outcome, Rejected)


def refused_again(found: Outcome, how: str = REFUSED) -> Outcome:
    """A refusal of which an earlier attempt may be the reason. `how`: as which it was refused.

    Only our own login proves that the customer is ours. If it fails, the address is taken by
    another customer, or by ours before its approval: only a person can find out.
    """
    taken = how == REFUSED
    match found:
        case Absent() | Rejected():
            return Unresolvable(f"{how}, but the job's password opens no account")
        case Refused(reason):
            return Refused(_unasked(how, reason), unproved=True, taken=taken)
        case Unknown(reason) | Retryable(reason):
            # Without its `retry_after`: that is about look-ups, and nothing is on its way.
            return Unknown(_unasked(how, reason), taken=taken)
        case Registered() | Unresolvable():
            return found
        case _:
            assert_never(found)


def _unasked(how: str, reason: str) -> str:
    return f"{how}, and not asked whose it is: {reason}"[:MOST]


def rejected_again(rejection: Outcome, found: Outcome) -> Outcome:
    """A rejection, for another reason, of a job whose customer's absence was not proved.

    It is the outcome if a search finds nobody: an older version may have recorded the absence, or
    the account may have got a key since.
    """
    if isinstance(found, Absent) and not found.login_only:
        return rejection
    return refused_again(found, "rejected when it was sent again")


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
        case _:
            return unasked(outcome)


def unfit(errors: tuple[Fault, ...]) -> Unresolvable:
    """The model may have become stricter since a call that may have been carried out."""
    why = "; ".join(f"{one.field}: {one.message}" for one in errors)
    return Unresolvable(f"the provider cannot be asked about the registration: {why}"[:MOST])


def asked(claim: Claim, found: Outcome, max_attempts: int) -> Outcome:
    """The outcome of a lookup. If lookups never get an answer, the job goes to review in the end.

    Time alone does not decide whether the customer exists; it only decides who finds out.
    """
    record = claim.record
    if isinstance(found, Absent) and record.unproved == TAKEN:
        # The provider has said that there is a customer, which weighs more.
        found = refused_again(found)
    spent = record.deadline_at <= claim.at or record.attempts >= max_attempts
    if isinstance(found, Absent) and found.login_only and spent:
        # Enough to send it again, to a provider that refuses a known customer. But no proof.
        found = Unresolvable(
            f"no time or no attempt is left, and the customer may exist: {found.reason}"[:MOST]
        )
    if isinstance(found, Unresolvable) and claim.at < record.settle_until:
        # Our request may still be carried out, even between the login and the lookup: before the
        # settle delay, a customer with another password proves as little as absence.
        return Unknown(f"not decided yet: {found.reason}")
    end = min(record.deadline_at, record.settle_until + LONGEST_SILENCE)
    late = claim.at > max(end, record.settle_until)
    match found:
        case Retryable(spends=False):
            return found  # for a reason of this worker: nobody was asked
        case Unknown(reason) | Retryable(reason) if late and record.asks >= UNANSWERED:
            return Unresolvable(
                f"the provider did not answer look-ups until the deadline: {reason}"
            )
        case Refused(reason) if late and record.asks:
            # Something on the way may refuse this one customer's data: without an end, the job
            # would close its account after each resume.
            return Unresolvable(f"the provider refused look-ups until the deadline: {reason}")
        case Rejected(errors):
            return unfit(errors)  # a lookup refuses nobody
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
            delay = max(delay, _floor(backoff)) if claim.asking else delay
            return Decision("retry", reason, delay, spends, health)
        case Refused(reason, unproved, taken):
            delay = backoff.after(tries, chance, None)
            name = _unknown(taken) if unproved and not claim.asking else "retry"
            health = "refused by status" if watch.by_status else "refused"
            return Decision(name, reason, delay, spends=claim.asking, health=health)
        case Unknown(reason, retry_after, taken):
            delay = max(backoff.after(tries, chance, _capped(retry_after)), _floor(backoff))
            # An unknown look-up is made again at the end of the settle delay: too early for a
            # provider that has asked us to wait.
            waits = claim.asking and retry_after is not None
            name = "retry" if waits else _unknown(taken)
            return Decision(name, reason, delay, health=health)
        case Absent(reason, login_only):
            delay = max(backoff.after(tries, chance, None), _floor(backoff))
            name = "unproved" if login_only else "absent"
            return Decision(name, reason, delay, health=health)
        case Unresolvable(reason):
            return Decision("unresolvable", reason, health=health)
        case _:
            assert_never(outcome)


def _unknown(taken: bool) -> str:
    return "taken" if taken else "unknown"


def _floor(backoff: Backoff) -> float:
    # Between two lookups: full jitter may be 0 several times, when nothing can have changed.
    return backoff.base / 4


def _capped(retry_after: float | None) -> float | None:
    return None if retry_after is None else min(retry_after, LONGEST_WAIT)

"""From what came back to what is settled: the rules, without any I/O.

To change when a duplicate is believed, what counts as an account's fault, or how long a retry
waits, change it here.
"""

from typing import assert_never

from worker.ledger.commands import Verdict
from worker.ledger.records import Claim
from worker.outcome import (
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
from worker.providers.base import Answer, Lost, NotSent, Request, Send
from worker.retry import Backoff

#: Why a job was abandoned, in words for its event.
SPENT = {
    "deadline": "the job's deadline passed before the provider could be called with success",
    "attempts": "the job's attempts are spent",
}

#: Questions that go unanswered after a job's deadline before a person is asked instead. Several,
#: so that one bad minute of the provider at the wrong time makes nobody get up.
UNANSWERED = 5


#: Seconds. The longest a provider's Retry-After is obeyed: one that says a year would keep an
#: unknown job from ever being settled.
LONGEST_WAIT = 86400.0


class Watch:
    """Sees every call of an attempt, and what it says of the account's health."""

    def __init__(self) -> None:
        self.health = ""

    def over(self, send: Send) -> Send:
        """The same `send`, watched."""

        async def watched(request: Request) -> Answer | NotSent | Lost:
            answer = await send(request)
            match answer:
                case Answer(status=429) | NotSent(ours=True):
                    pass
                case Answer(status=status):
                    self.health = "fault" if status >= 500 else "ok"
                case Lost() | NotSent():
                    self.health = "fault"
                case _:
                    assert_never(answer)
            return answer

        return watched


def duplicate(outcome: Outcome) -> bool:
    """Whether the provider refused because the customer exists."""
    return isinstance(outcome, Rejected) and any(
        error.code is Code.ALREADY_EXISTS for error in outcome.errors
    )


def adopted(refusal: Outcome, found: Outcome) -> Outcome:
    """What a duplicate means on a first attempt that may adopt: ours if our password opens it."""
    match found:
        case Registered() | Unknown() | Refused():
            return found
        case Absent() | Unresolvable() | Rejected() | Retryable():
            return refusal
        case _:
            assert_never(found)


def refused_again(found: Outcome) -> Outcome:
    """What a duplicate means after an unknown attempt: somebody exists, and that may be us.

    Our own login is the proof. Where it fails somebody has the address all the same, be it another
    or ourselves, not approved yet: only a person can tell.
    """
    match found:
        case Absent() | Rejected() | Retryable():
            return Unresolvable("refused as a duplicate, but this password opens no account")
        case Registered() | Unknown() | Refused() | Unresolvable():
            return found
        case _:
            assert_never(found)


def asked(claim: Claim, found: Outcome) -> Outcome:
    """What a question came to. One that never gets an answer is a person's to settle, in the end.

    Time alone doesn't decide whether the customer exists; it decides only who is asked.
    """
    if isinstance(found, Unresolvable) and claim.at < claim.record.settle_until:
        # A request of ours may still be carried out, also between the login and the look-up: that
        # somebody is there whom our password doesn't open is as early to believe as absence.
        return Unknown(f"not clear yet: {found.reason}")
    late = claim.at > max(claim.record.deadline_at, claim.record.settle_until)
    match found:
        case Unknown(reason) | Retryable(reason) if late and claim.record.asks >= UNANSWERED:
            return Unresolvable(f"the provider could not be asked until the deadline: {reason}")
        case Rejected(errors):
            # A question refuses nobody: our own model may have become stricter since the call.
            why = "; ".join(f"{one.field}: {one.message}" for one in errors)
            return Unresolvable(f"the registration can't be asked after any more: {why}")
        case _:
            return found


def of(claim: Claim, outcome: Outcome, watch: Watch, backoff: Backoff, chance: float) -> Verdict:
    """The verdict to settle, with its delay and what it says of the account."""
    tries = claim.record.asks + 1 if claim.asking else claim.record.attempts
    health = watch.health
    match outcome:
        case Registered():
            return Verdict(
                "registered", "found by asking" if outcome.recovered else "", 0, health=health
            )
        case Rejected(errors):
            return Verdict("rejected", ", ".join(error.code for error in errors), health=health)
        case Retryable(reason, retry_after, spends):
            delay = backoff.after(tries, chance, _capped(retry_after))
            return Verdict("retry", reason, delay, spends, health)
        case Refused(reason):
            delay = backoff.after(tries, chance, None)
            return Verdict("retry", reason, delay, spends=False, health="refused")
        case Unknown(reason, retry_after):
            delay = backoff.after(tries, chance, _capped(retry_after))
            return Verdict("unknown", reason, max(delay, _floor(backoff)), health=health)
        case Absent(reason):
            delay = max(backoff.after(tries, chance, None), _floor(backoff))
            return Verdict("absent", reason, delay, health=health)
        case Unresolvable(reason):
            return Verdict("unresolvable", reason, health=health)
        case _:
            assert_never(outcome)


def _floor(backoff: Backoff) -> float:
    # Between two questions: full jitter may say "at once", and again, and nothing has changed.
    return backoff.base / 4


def _capped(retry_after: float | None) -> float | None:
    return None if retry_after is None else min(retry_after, LONGEST_WAIT)

"""One attempt at one job: claim, call or look up, settle.

The order is the guarantee: the claim is in the ledger before a byte is sent, and the outcome is
settled under the claim's fence, in one script together with its event.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, assert_never

import structlog

from regworker import tracing
from regworker.domain.errors import InvalidJob, NotReplicated, SealingError, WrongSeal
from regworker.domain.event import EventType
from regworker.domain.outcome import (
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
from regworker.domain.retry import Backoff
from regworker.domain.states import State
from regworker.event_builder import EventBuilder
from regworker.ledger import AsyncLedger
from regworker.ledger.records import (
    TAKEN,
    WAITS,
    Claim,
    NotNow,
    Over,
    Record,
    Settled,
    Spent,
    Stale,
)
from regworker.ledger.transitions import (
    ClaimRules,
    Decision,
    Publication,
    SettleRules,
    abandon,
    claim,
    settle,
)
from worker.execution import decision
from worker.execution.leases import Lease, Leases
from worker.execution.provider_access import NotHere, ProviderAccess
from worker.execution.writable import writable
from worker.monitoring.metrics import Meter
from worker.providers.base import Provider
from worker.telemetry import about

log = structlog.get_logger(__name__)

#: Seconds until a job is tried again for which this worker lacks a key or an account: long enough
#: to avoid a busy loop, short enough to follow a deployment.
OWN_FAULT_DELAY = 15.0


#: The ends whose events say that there is no customer of the job's; and of a job that its ledger
#: has lost, nothing says that there is one.
_WITHOUT_CUSTOMER = frozenset({State.REJECTED, State.ABANDONED, State.CANCELLED, "gone"})

#: Seconds until a job is tried again whose claim reached too few replicas: they may be back by
#: then.
UNREPLICATED_DELAY = 5.0


@dataclass(frozen=True, slots=True)
class AttemptReport:
    """The result of an attempt. `until`: when the job is due again (ms; 0: never)."""

    state: str
    reason: str = ""
    until: int = 0
    ask_now: bool = False
    """The job is in doubt since this call."""


@dataclass(frozen=True, slots=True)
class AttemptRules:
    """The rules of all attempts; seconds."""

    claim: ClaimRules
    settle: SettleRules
    backoff: Backoff
    budget: float
    chance: Callable[[], float] = random.random


class Attempts:
    """Carries out attempts, as many at a time as there are tasks."""

    def __init__(
        self,
        ledger: AsyncLedger,
        leases: Leases,
        access: ProviderAccess,
        event_builder: EventBuilder,
        rules: AttemptRules,
        meter: Meter,
    ) -> None:
        self.on_claimed: Callable[[], None] = lambda: None
        """Called when a claim is answered, whatever the answer is."""
        self._meter = meter
        self._ledger = ledger
        self._leases = leases
        self._access = access
        self._event_builder = event_builder
        self._rules = rules

    async def __call__(self, job_id: str) -> AttemptReport:
        """Attempt a job. After a lost answer, the worker asks the provider at once, under a new
        claim."""
        report = await self._once(job_id)
        if report.ask_now:
            report = await self._once(job_id)
        return report

    async def _once(self, job_id: str) -> AttemptReport:
        asked_at = self._leases.now()
        claiming = claim(job_id, self._rules.claim, self._rules.chance())
        replicated = True
        try:
            claimed = await self._ledger(claiming, insist=False)
        except NotReplicated as error:
            claimed, replicated = claiming.read(error.answer), False
        self.on_claimed()
        match claimed:
            case Claim(record, asking):
                with _about(record):
                    if not (replicated or asking):
                        return await self._hand_back(claimed)
                    with _transaction(claimed) as tell:
                        return await self._carry_out(claimed, asked_at, tell)
            case Spent(record):
                with _about(record):
                    return await self._abandon(claimed)
            case NotNow(why, until):
                return AttemptReport("waits", why, until)
            case Over(state):
                return AttemptReport("over", state)
            case _:
                assert_never(claimed)

    async def _hand_back(self, claimed: Claim) -> AttemptReport:
        """Send nothing under a claim that a failover could lose. A lookup would be allowed."""
        reason = "too few replicas have the claim; nothing was sent"
        log.warning("claim not replicated", alert="replicas", reason=reason)
        verdict = Decision("retry", reason, UNREPLICATED_DELAY, spends=False)
        settled = await self._ledger(settle(claimed, verdict, self._rules.settle, None))
        if isinstance(settled, Stale):
            return AttemptReport("stale", settled.state)
        return AttemptReport(settled.state, reason, settled.until)

    async def _carry_out(
        self, claimed: Claim, asked_at: float, tell: tracing.Tell
    ) -> AttemptReport:
        _warn_of_the_lost(claimed)
        watch = decision.Watch()
        with self._leases.hold(claimed, asked_at) as lease:
            outcome = await self._outcome(claimed, lease, watch)
            watch.judged(outcome)
            if claimed.asking:
                outcome = decision.asked(claimed, outcome, self._rules.claim.max_attempts)
            at = claimed.at + (self._leases.now() - asked_at) * 1000
            decided = decision.of(
                claimed, outcome, watch, self._rules.backoff, self._rules.chance()
            )
            try:
                publication = self._publication(claimed, outcome, at)
            except Exception:
                # An unexpected error. Without an end the job would be retried for ever.
                log.exception("outcome not written")
                outcome = Unresolvable("the outcome cannot be written: a defect in the worker")
                decided = decision.of(
                    claimed, outcome, watch, self._rules.backoff, self._rules.chance()
                )
                publication = self._publication(_bare(claimed), outcome, at)
            lease.settling = True
            with tracing.span("db", "settle"):
                settled = await self._ledger(
                    settle(claimed, decided, self._rules.settle, publication), patience=60
                )
        self._meter.attempted(claimed, outcome, settled, self._leases.now() - asked_at)
        facts = {
            "outcome": type(outcome).__name__.lower(),
            "reason": decided.reason,
            "state": str(settled.state),
        }
        tell(**facts)
        level, kind = _weight(claimed, outcome, settled)
        log.log(
            level,
            "asked" if claimed.asking else "called",
            **facts,
            **({"alert": kind} if kind else {}),
            seconds=round(at - claimed.at) / 1000,
            stale=isinstance(settled, Stale),
        )
        if isinstance(settled, Stale):
            return AttemptReport("stale", settled.state)
        ask_now = settled.state is State.UNKNOWN and not claimed.asking
        return AttemptReport(settled.state, decided.reason, settled.until, ask_now)

    async def _outcome(self, claimed: Claim, lease: Lease, watch: decision.Watch) -> Outcome:
        step = asyncio.current_task()
        provider: Provider | None = None
        try:
            provider, registration = self._open(claimed, lease, watch)
            if claimed.asking:
                found = writable(await _found(provider, registration))
                return decision.answered(claimed.record, found, watch)
            return await self._register(claimed.record, provider, registration, watch)
        except WrongSeal as error:
            # The record was changed, or contains another job's payload: nothing of it is sent.
            return Unresolvable(f"the payload does not belong to this job: {error}")
        except (SealingError, NotHere) as error:
            if provider is None:
                self._lacking(claimed.record, error)
                return Retryable(str(error), retry_after=OWN_FAULT_DELAY, spends=False)
            return _fault(error)
        except InvalidJob as error:
            if provider is None:
                faults = (Fault(Code(one.code), one.field, one.message) for one in error.problems)
                rejected = Rejected(tuple(faults))
                doubted = decision.doubted(claimed.record, rejected)
                return writable(decision.unfit(rejected.errors) if doubted else rejected)
            return _fault(error)
        except BaseException as error:
            # A provider may raise anything, even what would end the loop (SystemExit).
            if _ended(step):
                raise
            if provider is None:
                log.exception("provider cannot be opened")
                why = f"the provider cannot be opened: {type(error).__name__}"
                return Retryable(why, retry_after=OWN_FAULT_DELAY, spends=False)
            return _fault(error)

    def _lacking(self, record: Record, error: Exception) -> None:
        if isinstance(error, NotHere):
            self._meter.lacked.add("account", f"{record.provider}:{record.account}")
        elif kid := self._access.missing_key(record):
            self._meter.lacked.add("key", kid)

    async def _register(
        self, record: Record, provider: Provider, registration: Any, watch: decision.Watch
    ) -> Outcome:
        outcome = writable(await provider.register(registration), type(registration))
        outcome = decision.answered(record, outcome, watch)
        duplicate = decision.duplicate(outcome)
        doubted = decision.doubted(record, outcome)
        if not doubted and not (duplicate and record.if_exists == "adopt"):
            return outcome
        found = writable(await provider.find_out(registration))
        found = decision.answered(record, found, watch)
        if not doubted:
            return decision.adopted(outcome, found)
        if duplicate or record.unproved == TAKEN:
            return decision.refused_again(found)
        return decision.rejected_again(outcome, found)

    def _open(self, claimed: Claim, lease: Lease, watch: decision.Watch) -> tuple[Provider, Any]:
        plain = self._access.registration(claimed.record)
        send = self._access.send(claimed, lease.alive, self._rules.budget, watch.heard)
        return self._access.open(claimed.record, plain, send)

    async def _abandon(self, spent: Spent) -> AttemptReport:
        began = self._leases.now()
        late = spent.record.deadline_at <= spent.at
        reason = "deadline" if late else "attempts"
        why = spent.record.why
        why = f"; last: {WAITS.get(why, why)}" if why else ""
        error = Fault(Code(reason), "", f"{decision.SPENT[reason]}{why}")
        publication = self._event_builder.failed(
            EventType.ABANDONED, spent.record, spent.at, (error,)
        )
        rules = self._rules
        settled = await self._ledger(
            abandon(
                spent.record,
                reason,
                rules.claim.max_attempts,
                rules.settle.retention,
                publication,
            )
        )
        log.info(
            "abandoned",
            outcome="abandoned",
            reason=reason,
            state=str(settled.state),
            seconds=round(self._leases.now() - began, 3),
            stale=isinstance(settled, Stale),
        )
        if isinstance(settled, Stale):
            return AttemptReport("stale", settled.state)
        self._meter.ended(spent.record, settled.state, reason, spent.at)
        return AttemptReport(settled.state, reason)

    def _publication(self, claimed: Claim, outcome: Outcome, at: float) -> Publication | None:
        record = claimed.record
        match outcome:
            case Registered():
                return self._event_builder.registered(record, at, outcome)
            case Rejected(errors):
                return self._event_builder.failed(EventType.REJECTED, record, at, errors)
            case Unresolvable(reason):
                error = Fault(Code.PROVIDER_ERROR, "", reason)
                return self._event_builder.failed(EventType.REVIEW, record, at, (error,))
            case _:
                return None


async def _found(provider: Provider, registration: Any) -> Outcome:
    """Whether the customer of an unknown job exists."""
    if getattr(provider, "repeatable", False):
        return decision.repeated(await provider.register(registration))
    return await provider.find_out(registration)


def _fault(error: BaseException) -> Unknown:
    """The outcome if a provider failed unexpectedly: a request may have been sent."""
    log.error("attempt failed", exc_info=error)
    return Unknown(f"fault in the worker: {type(error).__name__}")


def _ended(step: "asyncio.Task[Any] | None") -> bool:
    """Whether the loop ends this step, rather than an exception inside it.

    A provider may raise `CancelledError` and `GeneratorExit`, too: its step still runs then.
    """
    try:
        running = asyncio.current_task()
    except RuntimeError:  # the loop has stopped, and its remaining tasks are discarded
        return True
    return running is not step or step is None or step.cancelling() > 0


def _bare(claim: Claim) -> Claim:
    return replace(claim, record=replace(claim.record, metadata={}))


def _about(record: Record) -> AbstractContextManager[None]:
    """The fields of each log line about a job."""
    return about(
        job=record.id,
        provider=record.provider,
        account=record.account,
        attempt=record.attempts,
    )


def _transaction(claimed: Claim) -> AbstractContextManager[tracing.Tell]:
    record = claimed.record
    # A call's name is derived from the record, so that a lookup can name the same call.
    call = f"{record.id}/{record.reopened}/{record.attempts}" if record.attempts else ""
    return tracing.transaction(
        "registrations.attempt",
        record.trace,
        ("", call) if claimed.asking else (call, ""),
        kind="ask" if claimed.asking else "call",
        job=record.id,
        provider=record.provider,
        account=record.account,
        attempt=record.attempts,
    )


def _weight(claimed: Claim, outcome: Outcome, settled: Settled | Stale) -> tuple[int, str]:
    """How a step is logged: the level, and the kind of alert if a person must be notified."""
    match outcome:
        case Registered() if isinstance(settled, Stale) and settled.state in _WITHOUT_CUSTOMER:
            return logging.ERROR, "late"
        case Refused():
            return logging.ERROR, "refused"
        case Unresolvable():
            return logging.ERROR, "review"
        case Unknown() if not claimed.asking:
            return logging.WARNING, "unknown"
        case _:
            return logging.INFO, ""


def _warn_of_the_lost(claimed: Claim) -> None:
    if claimed.lost:
        log.warning("worker lost", alert="lease", reason=claimed.lost)

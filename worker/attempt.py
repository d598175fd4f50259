"""One attempt at one job: claim, call or ask, settle.

The order is the promise: the claim is in the ledger before a byte leaves, and what came back is
settled under the claim's fence, in one script with the event that tells it.
"""

import logging
import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol, assert_never
from urllib.parse import urlsplit

import structlog

from worker import tracing, verdict
from worker.announcer import Announcer
from worker.errors import InvalidJob, SealingError
from worker.event import EventType
from worker.leases import Lease, Leases
from worker.ledger import AsyncLedger
from worker.ledger.commands import (
    ClaimRules,
    Publication,
    SettleRules,
    abandon,
    claim,
    settle,
)
from worker.ledger.records import Claim, NotNow, Over, Record, Spent, Stale, Wake
from worker.lifecycle import State
from worker.metrics import Meter
from worker.outcome import (
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
from worker.providers.base import Answer, Lost, NotSent, Provider, Request, Send
from worker.providers.registry import Accounts, Registry
from worker.retry import Backoff
from worker.sealing import Keyring
from worker.telemetry import about

log = structlog.get_logger(__name__)

#: Seconds until a job is looked at again that this worker lacks a key or an account for: long
#: enough not to spin, short enough to follow a deployment.
OWN_FAULT_DELAY = 15.0


class Sender(Protocol):
    """Makes the `Send` of one attempt: within a budget, and only while the lease lives."""

    def sender(self, may_send: Callable[[], bool], budget: float) -> Send:
        """`budget`: seconds for all of one call; `may_send`: asked before bytes leave."""
        ...


@dataclass(frozen=True, slots=True)
class Report:
    """What an attempt did. `until`: when the job is due again (ms; 0: it is not)."""

    state: str
    reason: str = ""
    until: int = 0
    wakes: tuple[Wake, ...] = ()
    ask_now: bool = False
    """The call's answer was lost; nobody has asked yet."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What all attempts go by; seconds."""

    claim: ClaimRules
    settle: SettleRules
    backoff: Backoff
    budget: float


class Attempts:
    """Carries out attempts, as many at a time as there are tasks."""

    def __init__(
        self,
        ledger: AsyncLedger,
        leases: Leases,
        registry: Registry,
        accounts: Accounts,
        keyring: Keyring,
        announcer: Announcer,
        transport: Sender,
        rules: Rules,
        chance: Callable[[], float] = random.random,
        meter: Meter | None = None,
        claimed: Callable[[], None] = lambda: None,
    ) -> None:
        """`claimed`: called when a claim is answered, whatever the answer is."""
        self._meter = meter or Meter()
        self._claimed = claimed
        self._ledger = ledger
        self._leases = leases
        self._registry = registry
        self._accounts = accounts
        self._keyring = keyring
        self._announcer = announcer
        self._transport = transport
        self._rules = rules
        self._chance = chance

    async def __call__(self, job_id: str) -> Report:
        """Attempt a job. A lost answer is asked after at once, under a claim of its own."""
        report = await self._once(job_id)
        if report.ask_now:
            asked = await self._once(job_id)
            report = replace(asked, wakes=report.wakes + asked.wakes)
        return report

    async def _once(self, job_id: str) -> Report:
        asked_at = self._leases.now()
        claimed = await self._ledger(claim(job_id, self._rules.claim, self._chance()))
        self._claimed()
        match claimed:
            case Claim(record):
                with _about(record), _transaction(record) as tell:
                    return await self._carry_out(claimed, asked_at, tell)
            case Spent(record):
                with _about(record):
                    return await self._abandon(claimed)
            case NotNow(why, until):
                return Report("waits", why, until)
            case Over(state):
                return Report("over", state)
            case _:
                assert_never(claimed)

    async def _carry_out(self, claimed: Claim, asked_at: float, tell: tracing.Tell) -> Report:
        _warn_of_the_lost(claimed)
        watch = verdict.Watch()
        with self._leases.hold(claimed, asked_at) as lease, self._meter.calling(claimed.record):
            outcome = await self._outcome(claimed, lease, watch)
            if claimed.asking:
                outcome = verdict.asked(claimed, outcome)
            at = claimed.at + (self._leases.now() - asked_at) * 1000
            decided = verdict.of(claimed, outcome, watch, self._rules.backoff, self._chance())
            publication = self._publication(claimed, outcome, at)
            lease.settling = True
            with tracing.span("db", "settle"):
                settled = await self._ledger(
                    settle(claimed, decided, self._rules.settle, publication), patience=60
                )
        self._meter.attempted(claimed, outcome, settled, self._leases.now() - asked_at)
        told = {
            "outcome": type(outcome).__name__.lower(),
            "reason": decided.reason,
            "state": str(settled.state),
        }
        tell(**told)
        level, kind = _weight(claimed, outcome)
        log.log(
            level,
            "asked" if claimed.asking else "called",
            **told,
            **({"alert": kind} if kind else {}),
            seconds=round(at - claimed.at) / 1000,
            stale=isinstance(settled, Stale),
        )
        if isinstance(settled, Stale):
            return Report("stale", settled.state)
        ask_now = settled.state is State.UNKNOWN and not claimed.asking
        return Report(settled.state, decided.reason, settled.until, settled.wakes, ask_now)

    async def _outcome(self, claimed: Claim, lease: Lease, watch: verdict.Watch) -> Outcome:
        try:
            provider, registration = self._open(claimed, lease, watch)
        except (SealingError, _NotHere) as error:
            return Retryable(str(error), retry_after=OWN_FAULT_DELAY, spends=False)
        except InvalidJob as error:
            return Rejected(
                tuple(Fault(Code(one.code), one.field, one.message) for one in error.problems)
            )
        try:
            if claimed.asking:
                return await provider.find_out(registration)
            return await self._register(claimed, provider, registration)
        except Exception as error:
            # Nobody thought of this one: the request may have left.
            log.exception("attempt failed")
            return Unknown(f"fault in the worker: {type(error).__name__}")

    async def _register(self, claimed: Claim, provider: Provider, registration: Any) -> Outcome:
        outcome = await provider.register(registration)
        if not verdict.duplicate(outcome):
            return outcome
        if claimed.record.unknowns:
            return verdict.refused_again(await provider.find_out(registration))
        if claimed.record.if_exists == "adopt":
            return verdict.adopted(outcome, await provider.find_out(registration))
        return outcome

    def _open(self, claimed: Claim, lease: Lease, watch: verdict.Watch) -> tuple[Provider, Any]:
        record = claimed.record
        plain = self._keyring.open(record.payload)
        send = watch.over(_traced(self._transport.sender(lease.alive, self._rules.budget)))
        try:
            provider = self._accounts.open(record.provider, record.account, send)
        except KeyError:
            raise _NotHere(
                f"account {record.provider}/{record.account} is not configured at this worker"
            ) from None
        return provider, self._registry.read_json(record.provider, plain)

    async def _abandon(self, spent: Spent) -> Report:
        began = self._leases.now()
        late = spent.record.deadline_at <= spent.at
        reason = "deadline" if late else "attempts"
        why = f"; last: {spent.record.why}" if spent.record.why else ""
        error = Fault(Code(reason), "", f"{verdict.SPENT[reason]}{why}")
        publication = self._announcer.failed(EventType.ABANDONED, spent.record, spent.at, (error,))
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
            return Report("stale", settled.state)
        self._meter.ended(spent.record, settled.state, reason, spent.at)
        return Report(settled.state, reason, 0, settled.wakes)

    def _publication(self, claimed: Claim, outcome: Outcome, at: float) -> Publication | None:
        record = claimed.record
        match outcome:
            case Registered():
                return self._announcer.registered(record, at, outcome)
            case Rejected(errors):
                return self._announcer.failed(EventType.REJECTED, record, at, errors)
            case Unresolvable(reason):
                error = Fault(Code.PROVIDER_ERROR, "", reason)
                return self._announcer.failed(EventType.REVIEW, record, at, (error,))
            case _:
                return None


def _about(record: Record) -> AbstractContextManager[None]:
    """What each line that is told of a job says of it."""
    return about(
        job=record.id,
        provider=record.provider,
        account=record.account,
        attempt=record.attempts,
    )


def _transaction(record: Record) -> AbstractContextManager[tracing.Tell]:
    return tracing.transaction(
        "registrations.attempt",
        record.trace,
        job=record.id,
        provider=record.provider,
        account=record.account,
        attempt=record.attempts,
    )


def _traced(send: Send) -> Send:
    async def traced(request: Request) -> Answer | NotSent | Lost:
        # The path only: a base URL may hold a user and a password.
        with tracing.span("http.client", f"POST {urlsplit(request.url).path}") as tell:
            answer = await send(request)
            match answer:
                case Answer(status=status):
                    tell(status=status)
                case NotSent(reason) | Lost(reason):
                    tell(came=type(answer).__name__.lower(), reason=reason)
                case _:
                    assert_never(answer)
            return answer

    return traced


def _weight(claimed: Claim, outcome: Outcome) -> tuple[int, str]:
    """How a step is told: the line's level, and the kind of alert, if a person must know."""
    match outcome:
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


class _NotHere(Exception):  # noqa: N818
    """This worker cannot serve the job; another may."""

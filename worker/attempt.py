"""One attempt at one job: claim, call or ask, settle.

The order is the promise: the claim is in the ledger before a byte leaves, and what came back is
settled under the claim's fence, in one script with the event that tells it.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, assert_never

import structlog

from worker import verdict
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
from worker.ledger.records import Claim, NotNow, Over, Spent, Stale, Wake
from worker.lifecycle import State
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
from worker.providers.base import Provider, Send
from worker.providers.registry import Accounts, Registry
from worker.retry import Backoff
from worker.sealing import Keyring
from worker.telemetry import alert

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
    ) -> None:
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
        match claimed:
            case Claim():
                return await self._carry_out(claimed, asked_at)
            case Spent():
                return await self._abandon(claimed)
            case NotNow(why, until):
                return Report("waits", why, until)
            case Over(state):
                return Report("over", state)
            case _:
                assert_never(claimed)

    async def _carry_out(self, claimed: Claim, asked_at: float) -> Report:
        watch = verdict.Watch()
        with self._leases.hold(claimed, asked_at) as lease:
            outcome = await self._outcome(claimed, lease, watch)
            if claimed.asking:
                outcome = verdict.asked(claimed, outcome)
            at = claimed.at + (self._leases.now() - asked_at) * 1000
            decided = verdict.of(claimed, outcome, watch, self._rules.backoff, self._chance())
            publication = self._publication(claimed, outcome, at)
            settled = await self._ledger(
                settle(claimed, decided, self._rules.settle, publication), patience=60
            )
        _alert(claimed, outcome)
        log.info(
            "asked" if claimed.asking else "called",
            job=claimed.id,
            provider=claimed.record.provider,
            account=claimed.record.account,
            attempt=claimed.record.attempts,
            outcome=type(outcome).__name__.lower(),
            reason=decided.reason,
            seconds=round(at - claimed.at) / 1000,
            state=settled.state,
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
            log.exception("attempt failed", job=claimed.id, error=type(error).__name__)
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
        send = watch.over(self._transport.sender(lease.alive, self._rules.budget))
        try:
            provider = self._accounts.open(record.provider, record.account, send)
        except KeyError:
            raise _NotHere(
                f"account {record.provider}/{record.account} is not configured at this worker"
            ) from None
        return provider, self._registry.read_json(record.provider, plain)

    async def _abandon(self, spent: Spent) -> Report:
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
        log.info("abandoned", job=spent.record.id, reason=reason, state=settled.state)
        if isinstance(settled, Stale):
            return Report("stale", settled.state)
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


def _alert(claimed: Claim, outcome: Outcome) -> None:
    record = claimed.record
    match outcome:
        case Refused(reason):
            account = f"{record.provider}/{record.account}"
            alert("account refused", kind="refused", account=account, reason=reason)
        case Unresolvable(reason):
            alert("job in review", kind="review", provider=record.provider, job=record.id)
        case _:
            pass


class _NotHere(Exception):  # noqa: N818
    """This worker cannot serve the job; another may."""

"""Acts on many items: each with its choice of items, and a result for each item."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from regworker.core import record_of
from regworker.domain.actor import Actor
from regworker.domain.errors import JobNotCancellable, NotInReview, UnknownJob, UnreadableRecord
from regworker.domain.states import State
from regworker.ledger import SyncLedger
from regworker.ledger.listing import JobRow
from regworker.ledger.records import Quarantined, text
from regworker.ledger.steps import carry
from regworker.ledger.transitions import job_key
from regworker.settings import Settings
from worker.intake.quarantine import NotInQuarantine, NotRequeued, Quarantine
from worker.operations.admin_actions import AdminActions
from worker.operations.deliveries import BATCH, DeliveryAdmin, Filter
from worker.operations.jobs import JobFilter, JobList, mark_of
from worker.operations.plans import BulkAct, Done, Item, Plan, PlanStore, UnreadablePlan

#: Jobs or messages between two notes of results: after a crash, so many are checked again.
FEW = 20

#: Why an id was skipped.
GONE = "this ledger has no job with this id, or none any more"

#: Why a job was skipped, if no other reason applies.
CHANGED = "it has changed since the preview"


class Bulk:
    """Opens the objects for an act when it needs them. Close it, or use it as a context manager."""

    def __init__(self, settings: Callable[[], Settings], ledger: SyncLedger) -> None:
        """`settings`: for acts that seal; acts on deliveries need no key."""
        self._load = settings
        self._ledger = ledger
        self._opened: list[AdminActions | Quarantine] = []
        self.plans = PlanStore(ledger)

    @cached_property
    def admin(self) -> AdminActions:
        """Acts on jobs."""
        made = AdminActions(self._load())
        self._opened.append(made)
        return made

    @cached_property
    def quarantine(self) -> Quarantine:
        """The messages that were set aside."""
        made = Quarantine(self._load())
        self._opened.append(made)
        return made

    @property
    def deliveries(self) -> DeliveryAdmin:
        """Acts on deliveries."""
        return DeliveryAdmin(self._ledger)

    def jobs(self, wanted: JobFilter) -> Iterator[Item]:
        """The present jobs that match."""
        for row in JobList(self._ledger).all(wanted):
            yield Item(row.id, mark_of(row))

    def named(self, ids: Iterable[str]) -> Iterator[Item]:
        """Deliveries by their ids, in any state."""
        for id_ in ids:
            yield Item(id_, "")

    def named_jobs(self, ids: Iterable[str]) -> Iterator[Item]:
        """Jobs by their ids, in their present state; also ids of no job, or of no valid record."""
        for id_ in ids:
            job = None
            with suppress(UnreadableRecord):
                job = self.record(id_)
            yield Item(id_, mark_of(job) if job else "")

    def dead_or_pending(self, wanted: Filter) -> Iterator[Item]:
        """The present deliveries that match."""
        for one in self.deliveries.deliveries(wanted):
            yield Item(one.id, one.state)

    def messages(self, fits: Callable[[Quarantined], bool]) -> Iterator[Item]:
        """The present messages in quarantine that match."""
        for one in self.quarantine.all()[2]:
            if fits(one):
                yield Item(one.id, str(one.times))

    def record(self, job_id: str) -> JobRow | None:
        """The present record of a job; None if it does not exist. Raises `UnreadableRecord`."""
        found = carry(record_of(job_id), self._ledger.carry)
        return JobRow.of(found) if found else None

    def row(self, item: Item) -> JobRow | Done:
        """The present record of an item's job, or why the item is skipped."""
        try:
            job = self.record(item.id)
        except UnreadableRecord as error:
            return Done(item, "unreadable", well=False, why=str(error))
        return job or Done(item, "gone", well=False, why=GONE)

    def resolved_by(self, job_id: str, ticket: str) -> bool:
        """Whether the act with this ticket settled a job's review."""
        found = self._ledger.ask(lambda redis: redis.hget(job_key(job_id), "resolved"))
        return bool(found) and text(found) == ticket

    def act(self, plan: Plan) -> BulkAct:
        """The act of a plan. Raises `UnreadablePlan` for one of a newer version."""
        make = ACTS.get(plan.act)
        what = f"plan {plan.id} has an act that this version does not know: {plan.act}"
        advice = "resume it with the version that made it"
        if make is None:
            raise UnreadablePlan(f"{what}; {advice}")
        try:
            return make(self, **plan.arguments)
        except TypeError:
            # Without the arguments that it lacks, it would be another act.
            raise UnreadablePlan(f"{what}, with these arguments; {advice}") from None

    def carry_out(self, plan: Plan, actor: Actor) -> Iterator[Done]:
        """Act on the items of a plan without a result. Lazy: iterate to act."""
        yield from self.plans.carry_out(plan, self.act(plan), actor)

    def close(self) -> None:
        """Close what was opened here; the caller closes the ledger."""
        for one in self._opened:
            one.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _OneByOne(ABC):
    """An act that looks at each item by itself."""

    batch = FEW

    def __call__(
        self, items: Sequence[Item], tickets: Sequence[str], actor: Actor
    ) -> Iterable[Done]:
        """Act on one item after another. Lazy."""
        for item, ticket in zip(items, tickets, strict=True):
            yield self.one(item, ticket, actor)

    @abstractmethod
    def one(self, item: Item, ticket: str, actor: Actor) -> Done:
        """Act on one item."""


@dataclass(frozen=True, slots=True)
class CancelJobs(_OneByOne):
    """queued -> cancelled."""

    here: Bulk

    def one(self, item: Item, ticket: str, actor: Actor) -> Done:
        """Cancel the job, if it has not changed."""
        job = self.here.row(item)
        if isinstance(job, Done):
            return job
        if job.state is State.CANCELLED:
            return Done(item, "cancelled")
        if item.mark and mark_of(job) != item.mark:
            return _changed(item, f"{CHANGED}: it is {job.state}")
        try:
            self.here.admin.cancel(item.id, actor)
        except (JobNotCancellable, UnknownJob) as error:
            return _changed(item, str(error))
        return Done(item, "cancelled")


@dataclass(frozen=True, slots=True)
class ResolveReviews(_OneByOne):
    """review -> rejected, with a reason; or unknown, to be looked up and sent again."""

    here: Bulk
    rejected: str | None = None

    def one(self, item: Item, ticket: str, actor: Actor) -> Done:
        """Decide the job, if it has not changed."""
        word = "resent" if self.rejected is None else "rejected"
        job = self.here.row(item)
        if isinstance(job, Done):
            return job
        if (item.mark and mark_of(job) != item.mark) or job.state is not State.REVIEW:
            if self.here.resolved_by(item.id, ticket):
                return Done(item, word)
            return _changed(item, f"{CHANGED}: it is {job.state}")
        try:
            if self.rejected is None:
                self.here.admin.resend(item.id, actor, ticket, seen=item.mark)
            else:
                self.here.admin.rejected(item.id, self.rejected, actor, ticket, seen=item.mark)
        except (NotInReview, UnknownJob) as error:
            return _changed(item, str(error))
        return Done(item, word)


@dataclass(frozen=True, slots=True)
class SendDeliveries:
    """Replay dead deliveries (`replay`), or try pending ones now (`retry`)."""

    here: Bulk
    how: str
    batch: int = BATCH

    def __call__(
        self, items: Sequence[Item], tickets: Sequence[str], actor: Actor
    ) -> Iterable[Done]:
        """One script for all of them."""
        admin, ids = self.here.deliveries, [one.id for one in items]
        send = admin.replay if self.how == "replay" else admin.retry
        for item, (_, word) in zip(items, send(ids, actor, tickets[0]), strict=True):
            yield Done(item, word, well=word not in _LEFT, why=_LEFT.get(word, ""))


#: Texts for deliveries that were not sent.
_LEFT = {
    "gone": "it was delivered, is in another state, or was not kept",
    "disabled": "its endpoint is disabled: regworker deliveries enable",
}


@dataclass(frozen=True, slots=True)
class MoveMessages(_OneByOne):
    """Messages in quarantine: dropped (`drop`), or requeued to their own queues (`requeue`)."""

    here: Bulk
    how: str

    def one(self, item: Item, ticket: str, actor: Actor) -> Done:
        """Move the message, if it was not received again since."""
        store = self.here.quarantine
        try:
            entry = store.get(item.id)
            if item.mark and str(entry.times) != item.mark:
                return _changed(item, f"{CHANGED}: it has been received again")
            if self.how == "drop":
                store.drop(item.id, actor, entry.times)
                return Done(item, "dropped")
            store.requeue(item.id, actor)
        except NotInQuarantine:
            return Done(item, "gone", well=False, why="it is not in quarantine any more")
        except NotRequeued as error:
            return Done(item, "refused", well=False, why=str(error))
        return Done(item, "requeued")


def _changed(item: Item, why: str) -> Done:
    return Done(item, "changed", well=False, why=why)


ACTS: dict[str, Callable[..., BulkAct]] = {
    "job.cancel": CancelJobs,
    "review.rejected": ResolveReviews,
    "review.resend": ResolveReviews,
    "delivery.replay": lambda here: SendDeliveries(here, "replay"),
    "delivery.retry": lambda here: SendDeliveries(here, "retry"),
    "quarantine.drop": lambda here: MoveMessages(here, "drop"),
    "quarantine.requeue": lambda here: MoveMessages(here, "requeue"),
}
"""By the act's name in the audit log."""

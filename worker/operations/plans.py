"""Plans: acts on many items, stored before they begin, and carried out once.

A plan is a hash in the ledger, kept for a week: the act, the ids, the state of each item when it
was chosen, and its result. If the process is killed, another one continues with the items without a
result. An act that was done but not noted is repeated, which changes nothing: each act uses a
ticket that is derived from the plan and the id.
"""

import hashlib
import json
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, Protocol

from redis.exceptions import ResponseError

from regworker.domain.actor import Actor
from regworker.domain.errors import RegistrationWorkerError
from regworker.ledger import SyncLedger
from regworker.ledger.admin import PLANS, drop_plan, keep_plan, plan_key
from regworker.ledger.records import UNREADABLE, text

#: Seconds for which a plan is kept after its last step.
KEPT = 7 * 86400

#: Items read or written in one round trip.
PAGE = 500


class UnknownPlan(RegistrationWorkerError):  # noqa: N818
    """Raised when there is no plan with that id: it was dropped, or is older than a week."""


class UnreadablePlan(RegistrationWorkerError):  # noqa: N818
    """Raised when a plan's record holds something else, or an act that this version lacks."""


@dataclass(frozen=True, slots=True)
class Item:
    """An item of a plan. `mark`: its state when it was chosen."""

    id: str
    mark: str


@dataclass(frozen=True, slots=True)
class Done:
    """The result of an item: a word. `well`: the planned act was done, now or before."""

    item: Item
    word: str
    well: bool = True
    why: str = ""
    """Why it was skipped, as text."""


class BulkAct(Protocol):
    """The act on each item of a plan."""

    @property
    def batch(self) -> int:
        """How many items are acted on between two notes of their results."""
        ...

    def __call__(
        self, items: Sequence[Item], tickets: Sequence[str], actor: Actor
    ) -> Iterable[Done]:
        """Act on some items. A ticket distinguishes this plan's acts from others."""
        ...


@dataclass(frozen=True, slots=True)
class Plan:
    """A planned act, and on how many items."""

    id: str
    act: str
    """The act's name in the audit log: `job.cancel`."""
    arguments: Mapping[str, Any]
    total: int
    who: str
    """Who made it."""
    why: str
    made_at: int
    left: int = field(default=0)
    """How many items have no result yet."""

    def ticket(self, item: Item) -> str:
        """The ticket of the act on an item: the same each time the plan is carried out."""
        return hashlib.sha256(f"{self.id}\0{item.id}".encode()).hexdigest()[:16]


class PlanStore:
    """Stores plans, and carries them out."""

    def __init__(self, ledger: SyncLedger) -> None:
        self._ledger = ledger
        self.unreadable: list[str] = []
        """Keys of plans that a list has left out, because they hold no valid record."""

    def make(
        self, act: str, arguments: Mapping[str, Any], items: Iterable[Item], actor: Actor
    ) -> Plan:
        """Store a plan. Nothing is done yet."""
        id_ = secrets.token_hex(6)
        total, left = 0, iter({one.id: one for one in items}.values())
        while page := list(islice(left, PAGE)):
            fields = {
                f"i:{total + n}": json.dumps([one.id, one.mark]) for n, one in enumerate(page)
            }
            self._ledger(keep_plan(id_, fields, KEPT))
            total += len(page)
        at = round(self._ledger.now())
        plan = Plan(id_, act, dict(arguments), total, actor.who, actor.why, at, total)
        about = {
            "act": act,
            "arguments": plan.arguments,
            "total": total,
            "who": actor.who,
            "why": actor.why,
            "made_at": at,
        }
        # Last: a plan without this field does not count.
        self._ledger(keep_plan(id_, {"about": json.dumps(about)}, KEPT))
        return plan

    def get(self, id_: str) -> Plan:
        """A plan. Raises `UnknownPlan`, `UnreadablePlan`."""

        def read(redis: Any) -> Any:
            pipe = redis.pipeline(transaction=False)
            pipe.hget(plan_key(id_), "about")
            pipe.hlen(plan_key(id_))
            return pipe.execute()

        try:
            about, fields = self._ledger.ask(read)
            if about:
                found = json.loads(about)
                # Each item, and later its result, is one field.
                found["made_at"] = int(found["made_at"])
                return Plan(id=id_, left=2 * found["total"] + 1 - fields, **found)
        except (ResponseError, *UNREADABLE) as error:
            if isinstance(error, ResponseError) and "WRONGTYPE" not in str(error):
                raise
            what = (
                f"the record of plan {id_} cannot be read. If a newer version made it, resume it "
                f"with that one; if not: regworker plans drop {id_}"
            )
            raise UnreadablePlan(what) from None
        raise UnknownPlan(f"no plan {id_}: see regworker plans list")

    def all(self) -> list[Plan]:
        """All stored plans, the oldest first."""
        found = []
        for id_ in map(text, self._ledger.ask(lambda redis: redis.zrange(PLANS, 0, -1))):
            try:
                found.append(self.get(id_))
            except UnknownPlan:
                continue
            except UnreadablePlan:
                self.unreadable.append(plan_key(id_))
        return sorted(found, key=lambda one: one.made_at)

    def drop(self, id_: str, actor: Actor) -> None:
        """Delete a plan; what was done stays done. Raises `UnknownPlan`."""
        try:
            plan = self.get(id_)
            what = f"{plan.act}: {plan.left} of {plan.total} left"
        except UnreadablePlan:
            what = "it could not be read"
        self._ledger(drop_plan(id_, what, actor))

    def items(self, plan: Plan, *, left: bool = False) -> Iterator[tuple[int, Item]]:
        """Its items with their numbers; `left`: only those that have no result yet."""
        for first in range(0, plan.total, PAGE):
            numbers = range(first, min(first + PAGE, plan.total))
            names = [f"{kind}:{n}" for kind in "ir" for n in numbers]
            found = self._ledger.ask(partial(_fields, plan.id, names))
            for n, item, result in zip(
                numbers, found[: len(numbers)], found[len(numbers) :], strict=True
            ):
                if item and not (left and result):
                    yield n, Item(*json.loads(item))

    def carry_out(self, plan: Plan, act: BulkAct, actor: Actor) -> Iterator[Done]:
        """Act on the items without a result. Lazy: iterate to act; each result is stored before it
        is yielded."""
        left = self.items(plan, left=True)
        while page := list(islice(left, act.batch)):
            items = [item for _, item in page]
            numbers = {item.id: n for n, item in page}
            done = list(act(items, [plan.ticket(one) for one in items], actor))
            words = {f"r:{numbers[one.item.id]}": one.word for one in done}
            self._ledger(keep_plan(plan.id, words, KEPT))
            yield from done


def _fields(id_: str, names: Sequence[str], redis: Any) -> Any:
    return redis.hmget(plan_key(id_), names)

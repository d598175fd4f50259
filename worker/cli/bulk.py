"""The steps of every bulk action: choose, preview, confirm, carry out, report."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.cli.connection import open_ledger
from worker.cli.output import (
    err,
    note,
    plain,
    print_json,
    print_line,
    progress,
    saying_how_far,
)

if TYPE_CHECKING:
    from regworker.domain.actor import Actor
    from worker.operations.bulk import Bulk
    from worker.operations.jobs import JobFilter
    from worker.operations.plans import Done, Item, Plan

Ids = Annotated[
    list[str] | None, typer.Argument(metavar="ID", help="Ids from the list. Or choose by options.")
]
Yes = Annotated[
    bool, typer.Option("--yes", "-y", help="Act on all matching items without confirmation.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Only show what would be done, and store it as a plan.")
]
All = Annotated[bool, typer.Option("--all", help="Choose all.")]

#: Ids of a preview, and of skipped items, that are printed; --json prints all.
SHOWN = 10


@dataclass(frozen=True, slots=True)
class BulkCommand:
    """The action of a command. `words`: the counts that its JSON always has."""

    act: str
    asks: str
    """The action in the question to the user: `cancel {} jobs`."""
    words: tuple[str, ...]
    yes: bool
    dry_run: bool
    json: bool


def filtered(ids: Sequence[str] | None, given: Iterable[Any], options: str) -> bool:
    """Whether items are chosen by filters; a usage error unless either filters or ids are given."""
    by_filter = any(one not in (None, "", [], (), False) for one in given)
    if bool(ids) == by_filter:
        raise typer.BadParameter(f"choose items: either ids, or {options}")
    return by_filter


@contextmanager
def open_bulk() -> Iterator["Bulk"]:
    """The object that carries plans out; closed at the end."""
    from regworker.settings import Settings
    from worker.operations.bulk import Bulk

    with open_ledger() as ledger, Bulk(Settings.load, ledger) as bulk:
        yield bulk


def chosen_jobs(bulk: "Bulk", ids: Sequence[str] | None, wanted: "JobFilter") -> Iterable["Item"]:
    """Jobs by their ids, or all that match."""
    return bulk.named_jobs(ids) if ids else bulk.jobs(wanted)


def act_on(
    bulk: "Bulk",
    command: BulkCommand,
    items: Iterable["Item"],
    person: "Actor",
    arguments: Mapping[str, Any] | None = None,
    *,
    named: bool,
) -> None:
    """Store the items as a plan, show it, and carry it out.

    What was `named` by its id is not asked about. Exit code 1 if any was skipped, 2 without a yes.
    """
    plan = bulk.plans.make(command.act, arguments or {}, items, person)
    if command.dry_run:
        _preview(bulk, plan, command)
        return
    if not named and not command.yes and plan.total:
        _preview(bulk, plan, command, asking=True)
        _confirm(plan, command)
    carry_out(bulk, plan, person, words=command.words, json=command.json)


def carry_out(
    bulk: "Bulk", plan: "Plan", person: "Actor", *, words: Sequence[str] = (), json: bool
) -> None:
    """Carry a plan out, with a progress bar on a terminal; exit code 1 if any item was left."""
    counts = dict.fromkeys(words, 0)
    left: list[Done] = []
    rest = f"`regworker plans resume {plan.id}` carries out the rest"

    def how_far() -> str:
        return f"{sum(counts.values())} of {plan.left} are done; {rest}"

    with saying_how_far(how_far), progress() as shown:
        for one in shown.track(bulk.carry_out(plan, person), total=plan.left):
            counts[one.word] = counts.get(one.word, 0) + 1
            if not one.well:
                left.append(one)
    if json:
        skipped = [{"id": one.item.id, "what": one.word, "why": one.why} for one in left]
        print_json({"plan": plan.id, "count": plan.left, **counts, "skipped": skipped})
    else:
        done = [f"{word} {count}" for word, count in counts.items() if count]
        print_line(", ".join(done) or "nothing matches")
        for one in left[:SHOWN]:
            note(f"{plain(one.item.id)} was skipped: {one.why}")
        if len(left) > SHOWN:
            note(f"and {len(left) - SHOWN} more were skipped; --json lists all")
    if left:
        raise typer.Exit(1)


def _preview(bulk: "Bulk", plan: "Plan", command: BulkCommand, *, asking: bool = False) -> None:
    ids = (item.id for _, item in bulk.plans.items(plan))
    if command.json and not asking:
        print_json({"plan": plan.id, "count": plan.total, "act": plan.act, "ids": list(ids)})
        return
    show = note if asking or command.json else print_line
    show(f"this would {command.asks.format(plan.total)}:")
    for one in islice(ids, SHOWN):
        show(f"  {plain(one)}")
    if plan.total > SHOWN:
        show(f"  and {plan.total - SHOWN} more")
    if not asking:
        note(f"nothing was done; `regworker plans resume {plan.id}` carries out exactly this")


def _confirm(plan: "Plan", command: BulkCommand) -> None:
    if sys.stdin.isatty() and err().is_terminal:
        typer.confirm(f"{command.asks.format(plan.total)}?", abort=True, err=True)
        return
    advice = f"add --yes, or run `regworker plans resume {plan.id}`, which carries out exactly this"
    note(f"nothing was done: {advice}")
    raise typer.Exit(2)

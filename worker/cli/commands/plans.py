"""`regworker plans`: bulk actions that are not complete."""

from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.text import Text

from worker.cli.acting import By, Why, actor
from worker.cli.bulk import carry_out, open_bulk
from worker.cli.lazy import new_app, texts
from worker.cli.output import (
    AsJson,
    new_table,
    note_unreadable,
    out,
    plain,
    print_json,
    print_line,
    time_text,
)

app = new_app(no_args_is_help=True)

Id = Annotated[str, typer.Argument(metavar="ID", help="The plan's id, from the list.")]


@app.callback()
def plans() -> None:
    """Resume bulk actions on jobs, deliveries or messages that were previewed or interrupted."""


def list_(
    all_: Annotated[bool, typer.Option("--all", help="Also plans without items left.")] = False,
    json: AsJson = False,
) -> None:
    """List the plans of the last week: the action, the number of items, and how many are left.

    Without --all, only those that have items left.

    Examples:
        regworker plans list
        regworker plans list --all --json | jq .id
    """
    from regworker.domain.event import moment

    with open_bulk() as bulk:
        found = [one for one in bulk.plans.all() if one.left or all_]
        note_unreadable(bulk.plans.unreadable)
    if json:
        for one in found:
            print_json({**asdict(one), "made_at": moment(one.made_at).isoformat()})
        return
    if not found:
        print_line("there is no plan" if all_ else "no plan has items left")
        return
    table = new_table("plan", "act", "made", "by", "why", "left")
    for one in found:
        row = (one.id, one.act, time_text(moment(one.made_at)), one.who, one.why)
        table.add_row(*(Text(plain(cell)) for cell in row), f"{one.left} of {one.total}")
    out().print(table)


def resume(id_: Id, by: By = "", why: Why = "", json: AsJson = False) -> None:
    """Carry out the rest of a plan: exactly its ids, except those that have changed since.

    It can be run again at any time; nothing is done twice. Items that have changed since the
    preview are skipped and listed. Exit code 1 if any was skipped.

    Examples:
        regworker plans resume 4f1c09a2b7de
    """
    with open_bulk() as bulk:
        plan = bulk.plans.get(id_)
        person = actor(by, why or plan.why, person=plan.act.startswith("review."))
        carry_out(bulk, plan, person, json=json)


def drop(id_: Id, by: By = "", why: Why = "", json: AsJson = False) -> None:
    """Delete a plan. What was already done is not undone.

    Examples:
        regworker plans drop 4f1c09a2b7de
    """
    with open_bulk() as bulk:
        bulk.plans.drop(id_, actor(by, why))
    said: dict[str, Any] = {"dropped": id_}
    if json:
        print_json(said)
    else:
        print_line(f"dropped {id_}")


app.command("list", **texts(list_))(list_)
app.command("resume", **texts(resume))(resume)
app.command("drop", **texts(drop))(drop)

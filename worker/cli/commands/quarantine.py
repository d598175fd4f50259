"""`regworker quarantine`: messages from the broker that are not valid tasks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from worker.cli import time_arguments
from worker.cli.acting import By, Why, actor
from worker.cli.bulk import All, BulkCommand, DryRun, Ids, Yes, act_on, filtered, open_bulk
from worker.cli.lazy import new_app, texts
from worker.cli.output import AsJson, new_table, note, out, plain, print_json, print_line, time_text

if TYPE_CHECKING:
    from regworker.domain.actor import Actor
    from regworker.ledger.records import Quarantined
    from worker.intake.quarantine import Quarantine
    from worker.operations.bulk import Bulk

app = new_app(no_args_is_help=True)

Id = Annotated[str, typer.Argument(metavar="ID", help="The message's id, from the list.")]


@app.callback()
def quarantine() -> None:
    """List messages from the broker that could not be read; drop or requeue them."""


def list_(json: AsJson = False) -> None:
    """List the messages in quarantine, the newest first, without their content.

    Examples:
        regworker quarantine list
        regworker quarantine list --json | jq -r .id
    """
    with _open() as store:
        total, dropped, found = store.all()
    if json:
        for entry in found:
            print_json(_json(entry))
        return
    if not found:
        print_line("no message is in quarantine")
    else:
        table = new_table("message", "last", "times", "queue", "bytes", "why")
        for entry in found:
            at, numbers = time_text(_moment(entry.at)), (str(entry.times), str(entry.size))
            row = (entry.id, at, numbers[0], entry.queue, numbers[1], entry.reason)
            table.add_row(*(Text(plain(one)) for one in row))
        out().print(table)
    if dropped:
        note(f"{total} are kept; {dropped} older ones were dropped because the quarantine was full")


def show(
    id_: Id,
    json: AsJson = False,
    show_content: Annotated[
        bool,
        typer.Option("--show-content", help="Show the content: it may hold a customer's secrets."),
    ] = False,
) -> None:
    """Show a message in quarantine: from which queue, when, how often, and why it was quarantined.

    Examples:
        regworker quarantine show 4f1c09a2b7de
        regworker quarantine show 4f1c09a2b7de --show-content
    """
    with _open() as store:
        entry = store.get(id_)
        content = store.content(entry) if show_content else None
    shown: dict[str, Any] = _json(entry)
    if content is not None:
        shown["content"] = {**content, "body": content["body"].decode("utf-8", "backslashreplace")}
    if json:
        print_json(shown)
        return
    for name, value in shown.items():
        if name != "content":
            print_line(f"{name:10} {plain(str(value))}")
    if content is not None:
        for name, value in shown["content"].items():
            print_line(f"{name:10} {plain(str(value))}")


Queue = Annotated[str, typer.Option("--queue", help="Messages from this queue.")]
Reason = Annotated[
    str, typer.Option("--reason", help="Part of the reason why the message was quarantined.")
]
Since = Annotated[
    str | None, typer.Option(help=f"Messages last received since this time: {time_arguments.HOW}.")
]
OlderThan = Annotated[
    str | None, typer.Option("--older-than", help="Messages last received before this time.")
]


def drop(
    ids: Ids = None,
    queue: Queue = "",
    reason: Reason = "",
    since: Since = None,
    older_than: OlderThan = None,
    all_: All = False,
    yes: Yes = False,
    dry_run: DryRun = False,
    by: By = "",
    why: Why = "",
    json: AsJson = False,
) -> None:
    """Delete messages from the quarantine.

    Choose them by ids or by options. With options, the command shows all matching messages and asks
    for confirmation (--yes in scripts), then drops exactly these. A message that has been received
    again since is skipped and listed. `regworker plans resume` continues an interrupted run.

    Examples:
        regworker quarantine drop 4f1c09a2b7de
        regworker quarantine drop --reason "not JSON" --older-than 7d --yes
    """
    command = BulkCommand("quarantine.drop", "drop {} messages", ("dropped",), yes, dry_run, json)
    _move(command, ids, (queue, reason, since, older_than, all_), actor(by, why))


def requeue(
    ids: Ids = None,
    queue: Queue = "",
    reason: Reason = "",
    since: Since = None,
    older_than: OlderThan = None,
    all_: All = False,
    yes: Yes = False,
    dry_run: DryRun = False,
    by: By = "",
    why: Why = "",
    json: AsJson = False,
) -> None:
    """Requeue messages unchanged, for example after workers were updated and can read them.

    A message that was received several times is requeued once. Choose them as for `drop`.

    Examples:
        regworker quarantine requeue 4f1c09a2b7de
        regworker quarantine requeue --queue registrations --yes
    """
    command = BulkCommand(
        "quarantine.requeue", "put {} messages back", ("requeued",), yes, dry_run, json
    )
    _move(command, ids, (queue, reason, since, older_than, all_), actor(by, why))


def _move(
    command: BulkCommand,
    ids: list[str] | None,
    given: tuple[str, str, str | None, str | None, bool],
    person: "Actor",
) -> None:
    by_filter = filtered(ids, given, "--queue, --reason, --since, --older-than, --all")
    queue, reason, since, older_than, _ = given
    first = time_arguments.parse(since, "--since")
    last = time_arguments.parse(older_than, "--older-than")

    def fits(one: "Quarantined") -> bool:
        at = _moment(one.at)
        return (
            queue in {"", one.queue}
            and reason.lower() in one.reason.lower()
            and (first is None or at >= first)
            and (last is None or at <= last)
        )

    with open_bulk() as bulk:
        if ids and len(ids) == 1 and not command.dry_run:
            _move_one(bulk, command, ids[0], person)
            return
        chosen = bulk.messages(fits) if by_filter else bulk.named(ids or ())
        act_on(bulk, command, chosen, person, named=not by_filter)


def _move_one(bulk: "Bulk", command: BulkCommand, id_: str, person: "Actor") -> None:
    """One message, in its present state."""
    if command.act == "quarantine.drop":
        bulk.quarantine.drop(id_, person)
        said, line = {"dropped": id_}, f"dropped {id_}"
    else:
        entry = bulk.quarantine.requeue(id_, person)
        said, line = {"requeued": id_, "queue": entry.queue}, f"put back on {plain(entry.queue)}"
    if command.json:
        print_json(said)
    else:
        print_line(line)


@contextmanager
def _open() -> Iterator["Quarantine"]:
    from regworker.settings import Settings
    from worker.intake.quarantine import Quarantine

    store = Quarantine(Settings.load())
    try:
        yield store
    finally:
        store.close()


def _moment(at: int) -> Any:
    from regworker.domain.event import moment

    return moment(at)


def _json(entry: "Quarantined") -> dict[str, Any]:
    return {
        "id": entry.id,
        "queue": entry.queue,
        "reason": entry.reason,
        "size": entry.size,
        "whole": entry.whole,
        "times": entry.times,
        "first_at": _moment(entry.first_at).isoformat(),
        "at": _moment(entry.at).isoformat(),
    }


app.command("list", **texts(list_))(list_)
app.command("show", **texts(show))(show)
app.command("drop", **texts(drop))(drop)
app.command("requeue", **texts(requeue))(requeue)

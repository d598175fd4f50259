"""`regworker quarantine`: messages from the broker that no task could be made of."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from worker.cli.lazy import new_app, texts
from worker.cli.output import AsJson, note, out, plain, print_json, print_line, time_text

if TYPE_CHECKING:
    from worker.ledger.records import Quarantined
    from worker.quarantine import Quarantine

app = new_app(no_args_is_help=True)

Id = Annotated[str, typer.Argument(metavar="ID", help="The message's id, from the list.")]


@app.callback()
def quarantine() -> None:
    """See what came from the broker and could not be read, and drop it or put it back."""


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
        table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
        for heading in ("message", "last", "times", "queue", "bytes", "why"):
            table.add_column(heading, overflow="fold")
        for entry in found:
            at, numbers = time_text(_moment(entry.at)), (str(entry.times), str(entry.size))
            row = (entry.id, at, numbers[0], entry.queue, numbers[1], entry.reason)
            table.add_row(*(Text(plain(one)) for one in row))
        out().print(table)
    if dropped:
        note(f"{total} are kept; {dropped} older ones were dropped for room")


def show(
    id_: Id,
    json: AsJson = False,
    show_content: Annotated[
        bool,
        typer.Option("--show-content", help="Show what came: it may hold a customer's secrets."),
    ] = False,
) -> None:
    """Show a message in quarantine: where it came, when, how often, and why it was set aside.

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


def drop(id_: Id, json: AsJson = False) -> None:
    """Forget a message.

    Examples:
        regworker quarantine drop 4f1c09a2b7de
    """
    with _open() as store:
        store.drop(id_)
    if json:
        print_json({"dropped": id_})
    else:
        print_line(f"dropped {id_}")


def requeue(id_: Id, json: AsJson = False) -> None:
    """Put a message back on its queue as it came: for when workers have learnt to read it.

    A message that came several times over goes back once.

    Examples:
        regworker quarantine requeue 4f1c09a2b7de
    """
    with _open() as store:
        entry = store.requeue(id_)
    if json:
        print_json({"requeued": id_, "queue": entry.queue})
    else:
        print_line(f"put back on {plain(entry.queue)}")


@contextmanager
def _open() -> Iterator["Quarantine"]:
    from worker.quarantine import Quarantine
    from worker.settings import Settings

    store = Quarantine(Settings.load())
    try:
        yield store
    finally:
        store.close()


def _moment(at: int) -> Any:
    from worker.event import moment

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

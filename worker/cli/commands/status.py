"""`regworker status`."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from worker.cli import time_arguments
from worker.cli.connection import status_of
from worker.cli.output import (
    AsJson,
    ShowOutcome,
    event_line,
    new_table,
    out,
    plain,
    print_json,
    public,
    state_text,
    status_json,
    time_text,
)
from worker.operations import words

if TYPE_CHECKING:
    from regworker.producer import Status


def status(
    job_id: Annotated[str | None, typer.Argument(metavar="ID", help="The job's id.")] = None,
    key: Annotated[str | None, typer.Option(help="Its idempotency key, instead of the id.")] = None,
    provider: Annotated[str | None, typer.Option(help="With --key: the provider.")] = None,
    account: Annotated[str, typer.Option(help="With --key: the account.")] = "default",
    json: AsJson = False,
    show_outcome: ShowOutcome = False,
) -> None:
    """Show a job's state and its timeline: when, which worker, the answers, why it waits.

    Name the job by its id, or by provider, account and idempotency key. Times are UTC.

    Examples:
        regworker status 6a1f0b0e-9b58-8f0c-8d4e-0f0e3f1f2a3b
        regworker status --key crm-8841 --provider skypostal --json
    """
    if (job_id is None) == (key is None):
        raise typer.BadParameter("name the job by ID, or by --key and --provider")
    if key is not None and provider is None:
        raise typer.BadParameter("--key needs --provider")
    found = status_of(job_id, key=key, provider=provider or "", account=account)
    if json:
        print_json(status_json(found, show_outcome=show_outcome))
    else:
        show(found, show_outcome=show_outcome)


def show(found: "Status", *, show_outcome: bool) -> None:
    """Print a job for people: its state, why it waits, and its timeline."""
    now = datetime.now(UTC)
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim")
    facts.add_column(overflow="fold")
    facts.add_row("job", found.job_id)
    facts.add_row("state", state_text(found.state))
    if found.corrected:
        facts.add_row("corrected", Text.assemble("to ", state_text(found.corrected)))
    if (why := words.why(found.state, found.why)) and not found.final:
        facts.add_row("waits", Text(plain(why)))
    if found.due is not None and found.due > now:
        facts.add_row("until", _when(found.due, now))
    facts.add_row("key", Text(plain(found.idempotency_key)))
    facts.add_row("account", Text(plain(f"{found.provider}/{found.account}")))
    facts.add_row("attempts", str(found.attempts))
    facts.add_row("accepted", _when(found.accepted_at, now))
    if found.finished_at is None:
        facts.add_row("deadline", _when(found.deadline, now))
    else:
        facts.add_row("finished", _when(found.finished_at, now))

    way = new_table()
    way.add_column("when")
    way.add_column("after", justify="right", style="dim")
    way.add_column("who", style="dim", no_wrap=True)
    way.add_column("what", overflow="fold")
    for at, line in found.timeline:
        after = (at - found.accepted_at).total_seconds()
        way.add_row(time_text(at), _after(after), *_step(plain(line)))

    console = out()
    console.print(facts)
    console.print()
    console.print(way)
    if found.event is not None:
        console.print()
        event = public(found.event, show_outcome=show_outcome)
        console.print(event_line(event), soft_wrap=True)


def _step(line: str) -> tuple[Text, Text]:
    """Who did something, if the timeline says it, and what."""
    found = words.step(line)
    if found.who:
        return Text(found.who), Text(found.what)
    reason = f": {found.reason}" if found.reason else ""
    return Text(), Text.assemble(state_text(found.what), reason)


def _when(at: datetime, now: datetime) -> str:
    """A time, and its distance from now."""
    seconds = (at - now).total_seconds()
    away = time_arguments.length(abs(seconds))
    return f"{time_text(at)} ({f'in {away}' if seconds > 0 else f'{away} ago'})"


def _after(seconds: float) -> str:
    """The time since acceptance: in milliseconds at first, where they matter."""
    return f"{seconds:.3f} s" if seconds < 60 else time_arguments.length(seconds)

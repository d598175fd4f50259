"""`regworker status`."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from worker.cli import moments
from worker.cli.connection import open_producer
from worker.cli.output import (
    AsJson,
    ShowOutcome,
    event_line,
    out,
    plain,
    print_json,
    public,
    state_text,
    status_json,
    time_text,
)

if TYPE_CHECKING:
    from worker.producer import Status

#: What a claim that was turned away leaves as the reason, in words.
_WAITS = {
    "due": "its time has not come",
    "pace": "the account's pace: so many calls in a period",
    "full": "as many calls as the account takes are under way",
    "breaker": "the provider fails; one job at a time tries it",
    "refused": "the provider refuses the account's credentials: see the account's settings",
    "paused": "an operator has paused the account",
}

_NEXT = {
    "calling": "a worker holds it; a request may be on the wire",
    "unknown": "an answer was lost; the provider is asked before anything is sent again",
    "review": "only a person can tell what became of it at the provider",
}


def status(
    job_id: Annotated[str | None, typer.Argument(metavar="ID", help="The job's id.")] = None,
    key: Annotated[str | None, typer.Option(help="Its idempotency key, instead of the id.")] = None,
    provider: Annotated[str | None, typer.Option(help="With --key: the provider.")] = None,
    account: Annotated[str, typer.Option(help="With --key: the account.")] = "default",
    json: AsJson = False,
    show_outcome: ShowOutcome = False,
) -> None:
    """Show where a job stands, and its way there: when, who, what came back, why it waits.

    A job is named by its id, or by what the id follows from: provider, account and idempotency
    key. Times are UTC.

    Examples:
        regworker status 6a1f0b0e-9b58-8f0c-8d4e-0f0e3f1f2a3b
        regworker status --key crm-8841 --provider skypostal --json
    """
    if (job_id is None) == (key is None):
        raise typer.BadParameter("name the job by ID, or by --key and --provider")
    if key is not None and provider is None:
        raise typer.BadParameter("--key needs --provider")
    with open_producer() as producer:
        found = producer.status(job_id, key=key, provider=provider or "", account=account)
    if json:
        print_json(status_json(found, show_outcome=show_outcome))
    else:
        show(found, show_outcome=show_outcome)


def show(found: "Status", *, show_outcome: bool) -> None:
    """Print a job for people: where it stands, why it waits, and its timeline."""
    now = datetime.now(UTC)
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim")
    facts.add_column(overflow="fold")
    facts.add_row("job", found.job_id)
    facts.add_row("state", state_text(found.state))
    if (why := _why(found)) and not found.final:
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

    way = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
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


#: Lines of a timeline that say who: what they did, in words.
_DOINGS = {
    "calling": "calls the provider",
    "asking": "asks the provider what became of it",
    "registered": "registered, says a person",
    "rejected": "rejected, says a person",
    "resend": "to be sent again, says a person, unless it is found",
}


def _step(line: str) -> tuple[Text, Text]:
    """Who did something, where the timeline says it, and what."""
    what, by, who = line.partition(" by ")
    if by and what in _DOINGS:
        return Text(who), Text(_DOINGS[what])
    # `unknown: ReadTimeout`: the state in its colour, then what led there.
    state, colon, reason = line.partition(":")
    return Text(), Text.assemble(state_text(state), colon, reason)


def _when(at: datetime, now: datetime) -> str:
    """A time, and how far it is from now."""
    seconds = (at - now).total_seconds()
    away = moments.length(abs(seconds))
    return f"{time_text(at)} ({f'in {away}' if seconds > 0 else f'{away} ago'})"


def _after(seconds: float) -> str:
    """How long after acceptance: to the millisecond at first, where that tells something."""
    return f"{seconds:.3f} s" if seconds < 60 else moments.length(seconds)


def _why(found: "Status") -> str:
    parts = (_NEXT.get(found.state, ""), _WAITS.get(found.why, found.why))
    return "; ".join(part for part in parts if part)

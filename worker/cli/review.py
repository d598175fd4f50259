"""`regworker review`: jobs that only a person can settle."""

import getpass
import json as json_
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from worker.cli.connection import open_operator, open_producer
from worker.cli.lazy import new_app, texts
from worker.cli.output import AsJson, out, plain, print_json, print_line, status_json, time_text
from worker.cli.status import show as show_status

app = new_app(no_args_is_help=True)


@app.callback()
def review() -> None:
    """Settle jobs of which the provider could not tell us what became."""


def list_(json: AsJson = False) -> None:
    """List the jobs that wait for a person, the oldest first.

    Examples:
        regworker review list
        regworker review list --json | jq -r .job_id
    """
    from worker.event import moment

    with open_operator() as operator:
        found = list(operator.reviews())
    if json:
        for record in found:
            print_json(
                {
                    "job_id": record.id,
                    "provider": record.provider,
                    "account": record.account,
                    "idempotency_key": record.idempotency_key,
                    "why": record.why,
                    "accepted_at": moment(record.accepted_at).isoformat(),
                    "attempts": record.attempts,
                }
            )
        return
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for heading in ("job", "key", "account", "accepted", "why"):
        table.add_column(heading, overflow="fold")
    for record in found:
        account = f"{record.provider}/{record.account}"
        row = (record.id, record.idempotency_key, account)
        accepted = time_text(moment(record.accepted_at))
        table.add_row(*(Text(plain(one)) for one in (*row, accepted, record.why)))
    if found:
        out().print(table)
    else:
        print_line("no job waits for a person")


def show(
    job_id: Annotated[str, typer.Argument(metavar="ID", help="The job's id.")],
    json: AsJson = False,
) -> None:
    """Show a job's timeline: what was called, what was asked, and what was found out.

    Look the customer up at the provider by the job's e-mail, which its producer knows by the key;
    then say what you found with `regworker review resolve`.

    Examples:
        regworker review show 6a1f0b0e-9b58-8f0c-8d4e-0f0e3f1f2a3b
    """
    with open_producer() as producer:
        found = producer.status(job_id)
    if json:
        print_json(status_json(found, show_outcome=False))
    else:
        show_status(found, show_outcome=False)


def resolve(
    job_id: Annotated[str, typer.Argument(metavar="ID", help="The job's id.")],
    registered: Annotated[
        bool, typer.Option("--registered", help="The customer exists, and is this job's.")
    ] = False,
    rejected: Annotated[
        str | None, typer.Option(metavar="WHY", help="There will be no customer; why.")
    ] = None,
    resend: Annotated[
        bool, typer.Option("--resend", help="Go on: ask first, call if nobody is there.")
    ] = False,
    outcome: Annotated[
        Path | None,
        typer.Option(
            allow_dash=True,
            metavar="FILE|-",
            help="With --registered: what the provider gave, as one JSON object.",
        ),
    ] = None,
    who: Annotated[str, typer.Option(help="Who decides; stands in the timeline.")] = "",
    json: AsJson = False,
) -> None:
    """Settle a job in review. Its event is published at once, or the job goes on.

    The outcome holds the customer's credentials: give it in a file or on stdin, not on the command
    line, where others can read it.

    Examples:
        regworker review resolve ID --registered --outcome - < customer.json
        regworker review resolve ID --rejected "another customer has this address"
        regworker review resolve ID --resend
    """
    if sum((registered, rejected is not None, resend)) != 1:
        raise typer.BadParameter("say one of --registered, --rejected WHY, --resend")
    if outcome is not None and not registered:
        raise typer.BadParameter("--outcome goes with --registered")
    person = plain(who or getpass.getuser())
    with open_operator() as operator:
        if registered:
            done = operator.registered(job_id, _outcome(outcome), person)
        elif rejected is not None:
            done = operator.rejected(job_id, rejected, person)
        else:
            done = operator.resend(job_id, person)
    if json:
        print_json({"job_id": job_id, "state": done.state})
    else:
        print_line(f"{done.state} {job_id}")


def _outcome(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    text = sys.stdin.read() if str(file) == "-" else file.read_text("utf-8")
    try:
        found = json_.loads(text)
    except ValueError:
        raise typer.BadParameter("--outcome holds no JSON") from None
    if not isinstance(found, dict):
        raise typer.BadParameter("--outcome holds no JSON object")
    return found


app.command("list", **texts(list_))(list_)
app.command("show", **texts(show))(show)
app.command("resolve", **texts(resolve))(resolve)

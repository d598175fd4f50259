"""`regworker providers`: the accounts at the providers, and whether their calls go through."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from worker.cli.connection import open_operator
from worker.cli.lazy import new_app, texts
from worker.cli.output import AsJson, out, plain, print_json, print_line

if TYPE_CHECKING:
    from worker.operator import AccountState

app = new_app(no_args_is_help=True)

Name = Annotated[
    str, typer.Argument(metavar="PROVIDER/ACCOUNT", help="For example skypostal/default.")
]


@app.callback()
def providers() -> None:
    """Look after the accounts at the providers: pace, breaker, pause."""


def list_(json: AsJson = False) -> None:
    """List the accounts: pace, calls in flight, jobs that wait, breaker.

    Examples:
        regworker providers list
        regworker providers list --json | jq 'select(.breaker != "closed")'
    """
    with open_operator() as operator:
        accounts = operator.accounts()
    if json:
        for account in accounts:
            print_json(asdict(account))
        return
    if not accounts:
        print_line("no worker has announced an account yet")
        return
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for heading in ("account", "calls/s", "in flight", "waiting", "breaker", "reason"):
        table.add_column(heading, overflow="fold")
    for account in accounts:
        table.add_row(
            f"{account.provider}/{account.account}",
            f"{account.rate:.2f}" if account.rate else "no limit",
            f"{account.in_flight} of {account.max_in_flight}",
            str(account.waiting),
            _breaker(account),
            Text(plain(account.reason)),
        )
    out().print(table)


def pause(
    name: Name,
    why: Annotated[str, typer.Option(help="Shown to whoever looks.")] = "paused by an operator",
) -> None:
    """Let no call of an account through until it is resumed. Jobs wait, and lose no attempt.

    Calls on the wire end as they do.

    Examples:
        regworker providers pause open2b/default --why "maintenance until six"
    """
    with open_operator() as operator:
        operator.pause(*_parts(name), plain(why))
    print_line(f"paused {name}")


def resume(name: Name) -> None:
    """Close an account's breaker, end its pause, and let its jobs go on at once.

    Do this after you mended what the breaker's reason names: refused credentials stay refused.

    Examples:
        regworker providers resume skypostal/default
    """
    with open_operator() as operator:
        let_go = operator.resume(*_parts(name))
    print_line(f"resumed {name}; {let_go} waiting jobs go on")


def _parts(name: str) -> tuple[str, str]:
    provider, _, account = name.partition("/")
    return provider, account or "default"


def _breaker(account: "AccountState") -> Text:
    if account.paused:
        return Text("paused", style="yellow")
    return Text(account.breaker, style="green" if account.breaker == "closed" else "red")


app.command("list", **texts(list_))(list_)
app.command("pause", **texts(pause))(pause)
app.command("resume", **texts(resume))(resume)

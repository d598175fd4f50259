"""`regworker providers`: the accounts at the providers, and whether their calls succeed."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from regworker.domain.pace import Pace
from worker.cli import time_arguments
from worker.cli.acting import By, Why, actor, required
from worker.cli.connection import open_admin, open_ledger
from worker.cli.lazy import new_app, texts
from worker.cli.numbers import MOST
from worker.cli.output import (
    AsJson,
    connections,
    new_table,
    note,
    note_unreadable,
    out,
    plain,
    print_json,
    print_line,
    time_text,
)

if TYPE_CHECKING:
    from datetime import datetime

    from regworker.ledger.snapshot import AccountSnapshot
    from worker.operations.admin_actions import AdminActions

app = new_app(no_args_is_help=True)

Name = Annotated[
    str, typer.Argument(metavar="PROVIDER/ACCOUNT", help="For example skypostal/default.")
]

OneName = Annotated[
    str | None,
    typer.Argument(metavar="PROVIDER/ACCOUNT", help="For example skypostal/default. Or --all."),
]

Names = Annotated[
    list[str] | None,
    typer.Argument(metavar="[PROVIDER/ACCOUNT]...", help="The accounts to check. Default: all."),
]

#: Accounts shown without --limit or --json.
SHOWN = 50


@app.callback()
def providers() -> None:
    """Manage the accounts at the providers: rate limit, breaker, pause, credentials."""


def list_(
    provider: Annotated[
        str, typer.Option(metavar="GLOB", help="Providers of this name; * and ? match any.")
    ] = "*",
    account: Annotated[
        str, typer.Option(metavar="GLOB", help="Accounts of this name; * and ? match any.")
    ] = "*",
    limit: Annotated[int | None, typer.Option(min=1, max=MOST, help="At most this many.")] = None,
    json: AsJson = False,
) -> None:
    """List the accounts, by name: rate limit, calls in flight, waiting jobs, breaker.

    Without --limit the table shows the first 50, and --json all. A note says how many match. Quote
    a GLOB, so that the shell leaves it as it is.

    Examples:
        regworker providers list
        regworker providers list --provider open2b --account 'store-1*' --limit 200
        regworker providers list --json | jq 'select(.breaker != "closed")'
    """
    from worker.operations.accounts import find_accounts

    most = limit or (None if json else SHOWN)
    with open_ledger() as ledger:
        found = find_accounts(ledger, provider, account, most)
        note_unreadable(found.unreadable)
    if most is not None and found.matching > most:
        note(f"{most} of {found.matching} shown; --provider, --account and --limit choose others")
    if json:
        for one in found.accounts:
            print_json(_json(one))
        return
    if not found.matching:
        every = provider == account == "*"
        print_line("no worker has announced an account yet" if every else "no account matches")
        return
    table = new_table(
        "account", "calls/s", "in flight", "waiting", "breaker", "connections", "reason"
    )
    for one in found.accounts:
        table.add_row(
            f"{one.provider}/{one.account}",
            _rate(one),
            f"{one.in_flight} of {one.max_in_flight}",
            str(one.waiting),
            _breaker(one),
            connections(one.stray_at),
            Text(plain(one.reason)),
        )
    out().print(table)


def pause(
    name: OneName = None,
    why: Annotated[
        str, typer.Option(help="The reason; lists and pages show it.")
    ] = "paused by an admin",
    until: Annotated[
        str | None, typer.Option(help=f"When the pause ends by itself: {time_arguments.AHEAD}.")
    ] = None,
    all_: Annotated[
        bool, typer.Option("--all", help="All announced accounts that are not held already.")
    ] = False,
    by: By = "",
    json: AsJson = False,
) -> None:
    """Pause an account: workers start no call for it until it is resumed. Jobs wait and use no
    attempt.

    Calls that have started are completed. A time of day is the next one in this machine's time
    zone; the output shows it with its zone. With --all, an account that is held already, by a pause
    without an end or by a refusal of its provider, keeps its reason. Exit code 1 if any account
    could not be paused.

    Examples:
        regworker providers pause open2b/default --why "maintenance until six" --until 18:00
        regworker providers pause --all --why "the ledger's disk is full"
    """
    person = actor(by, required(why, "--why"))
    with open_admin() as admin:
        end = None if until is None else time_arguments.ahead(until, "--until", admin.now())
        held = {
            (one.provider, one.account)
            for one in admin.accounts()
            if all_ and ((one.paused and not one.paused_until) or one.breaker == "refused")
        }

        def one(provider: str, account: str) -> tuple[str, dict[str, Any]]:
            if (provider, account) in held:
                return f"{provider}/{account} was held already", {"paused": False}
            admin.pause(provider, account, person, end)
            said = {"paused": True, "until": end.isoformat() if end else None}
            return f"paused {provider}/{account}{_until(end)}", said

        _each(admin, name, one, all_=all_, json=json)


def pace(
    name: Name,
    wanted: Annotated[str, typer.Argument(metavar="PACE", help="50/300s, or `default`.")],
    by: By = "",
    why: Why = "",
    json: AsJson = False,
) -> None:
    """Set how many calls an account may make in a period. All workers follow it at once.

    It overrides the setting RATE, also after workers restart, until `default` removes it. A tenth
    of the calls may be made at once. Calls made before the change count too.

    Examples:
        regworker providers pace open2b/default 50/300s --why "the shop asked for less"
        regworker providers pace open2b/default default
    """
    try:
        found = None if wanted == "default" else Pace.parse(wanted)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="PACE") from None
    words = "the setting" if found is None else wanted
    with open_admin() as admin:
        before = admin.pace(*_parts(name), found, words, actor(by, why))
    if json:
        print_json({**_named(*_parts(name)), "pace": words, "before": before})
    else:
        print_line(f"the pace of {name} is {words}; it was {before}")


def resume(
    name: OneName = None,
    all_: Annotated[bool, typer.Option("--all", help="All announced accounts.")] = False,
    reason: Annotated[
        str | None,
        typer.Option(help="With --all: only accounts that are held for this reason; a part."),
    ] = None,
    by: By = "",
    why: Why = "",
    json: AsJson = False,
) -> None:
    """Close an account's breaker, end its pause, and start its waiting jobs at once.

    First fix the cause that the breaker's reason names: a provider that refused credentials refuses
    them again. --all also ends pauses that others made, unless --reason chooses. Exit code 1 if any
    account could not be resumed.

    Examples:
        regworker providers resume skypostal/default
        regworker providers resume --all --reason "the ledger's disk is full"
    """
    if reason is not None and not all_:
        raise typer.BadParameter("goes with --all", param_hint="--reason")
    from redis.exceptions import ResponseError

    reason = None if reason is None else required(reason, "--reason")
    person = actor(by, why)
    with open_admin() as admin:
        held = {(one.provider, one.account): one.reason for one in admin.accounts() if reason}

        def one(provider: str, account: str) -> tuple[str, dict[str, Any]]:
            shown, nothing = f"{provider}/{account}", {"resumed": False, "started": 0}
            if reason and (provider, account) not in held:
                raise ResponseError("its record cannot be read")
            if reason and reason not in held[provider, account]:
                return f"{shown} is not held for this reason", nothing
            let_go = admin.resume(provider, account, person)
            if let_go is None:
                return f"{shown} is not paused, and its breaker is closed", nothing
            said = {"resumed": True, "started": let_go}
            return f"resumed {shown}; {let_go} waiting jobs start", said

        _each(admin, name, one, all_=all_, json=json)


def check(names: Names = None, json: AsJson = False) -> None:
    """Test the connection and the credentials of each account with a harmless request.

    Run it with a worker's settings, where the accounts are configured. It looks up an e-mail
    address that no customer has, and changes no customer and no job. Exit code 1 if an account does
    not work.

    Examples:
        regworker providers check
        regworker providers check skypostal/default
    """
    from regworker.settings import Settings
    from worker.operations.account_check import check_accounts

    found = check_accounts(Settings.load(), [_parts(name) for name in names or ()])
    for (provider, account), one in found.items():
        if json:
            print_json(
                {"provider": provider, "account": account, "state": one.state, "why": one.words}
            )
        else:
            print_line(f"{provider}/{account}: {one.state}: {one.words}")
    if any(one.state in {"refused", "unreached"} for one in found.values()):
        raise typer.Exit(1)


def trust(name: Name, by: By = "", why: Why = "", json: AsJson = False) -> None:
    """Reuse an account's connections again, after a stray answer.

    A stray answer belongs to no call: the provider, or a proxy in front of it, sent an answer twice
    or without a request. From then on each call uses its own connection, which costs some time. Run
    this after the cause is fixed: on a reused connection, a late answer can be mistaken for the
    next customer's.

    Examples:
        regworker providers trust skypostal/default
    """
    with open_admin() as admin:
        was = admin.trust(*_parts(name), actor(by, why))
    if json:
        print_json({**_named(*_parts(name)), "was_distrusted": was})
        return
    print_line(f"{name} is trusted again" if was else f"{name} has sent no stray answer")


def _parts(name: str) -> tuple[str, str]:
    provider, _, account = name.partition("/")
    return provider, account or "default"


def _named(provider: str, account: str) -> dict[str, Any]:
    return {"provider": provider, "account": account}


def _each(
    admin: "AdminActions",
    name: str | None,
    act: Callable[[str, str], tuple[str, dict[str, Any]]],
    *,
    all_: bool,
    json: bool,
) -> None:
    """Act on one account or on all, and print a line for each; the fault of one stops no other.

    `act` returns what was done: a sentence, and fields for --json.
    """
    from redis.exceptions import ResponseError

    if (name is None) != all_:
        raise typer.BadParameter("name one account, or say --all")
    failed = False
    for provider, account in admin.account_names() if name is None else [_parts(name)]:
        try:
            words, said = act(provider, account)
        except ResponseError as error:
            if name is not None:
                raise
            failed = True
            note(plain(f"{provider}/{account} could not be changed: {error}"))
            continue
        if json:
            print_json({**_named(provider, account), **said})
        else:
            print_line(plain(words))
    if failed:
        raise typer.Exit(1)


def _json(one: "AccountSnapshot") -> dict[str, Any]:
    from regworker.domain.event import moment

    return {
        "provider": one.provider,
        "account": one.account,
        "paused": one.paused,
        "paused_until": moment(one.paused_until).isoformat() if one.paused_until else None,
        "breaker": one.breaker,
        "reason": one.reason,
        "failures": one.failures,
        "in_flight": one.in_flight,
        "max_in_flight": one.max_in_flight,
        "waiting": one.waiting,
        "rate": one.rate,
        "own_pace": one.own_pace or None,
        "retry_at": one.retry_at,
        "stray_at": one.stray_at,
    }


def _rate(account: "AccountSnapshot") -> str:
    by = f" (operator: {account.own_pace})" if account.own_pace else ""
    return f"{account.rate:.2f}{by}" if account.rate else "no limit"


def _until(end: "datetime | None") -> str:
    """A time in this machine's zone, and in UTC."""
    return f" until {end:%Y-%m-%d %H:%M %Z} ({time_text(end)})" if end else ""


def _breaker(account: "AccountSnapshot") -> Text:
    if account.paused:
        from regworker.domain.event import moment

        end = account.paused_until
        until = _until(moment(end).astimezone()) if end else ""
        return Text(f"paused{until}", style="yellow")
    return Text(account.breaker, style="green" if account.breaker == "closed" else "red")


app.command("list", **texts(list_))(list_)
app.command("check", **texts(check))(check)
app.command("pace", **texts(pace))(pace)
app.command("pause", **texts(pause))(pause)
app.command("trust", **texts(trust))(trust)
app.command("resume", **texts(resume))(resume)

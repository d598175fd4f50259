"""`regworker tokens`: who may use the HTTP API."""

from typing import Annotated

import typer

from regworker.domain.event import moment
from worker.cli.acting import By, Why, actor
from worker.cli.connection import open_ledger
from worker.cli.lazy import new_app, texts
from worker.cli.numbers import real
from worker.cli.output import AsJson, new_table, note, out, print_json, print_line, time_text

app = new_app(no_args_is_help=True)

RATE = 200.0
MOST_RATE = 1_000_000.0


@app.callback()
def tokens() -> None:
    """Create, list and revoke the bearer tokens of the HTTP API (`regworker serve`)."""


def new(
    name: Annotated[
        str,
        typer.Option(
            help="The owner's name. Jobs belong to this name: tokens with the same name see the "
            "same jobs."
        ),
    ],
    may: Annotated[
        str,
        typer.Option(
            metavar="SCOPE,...",
            help="enqueue (and cancel own jobs), read (own jobs), read:all, operate (cancel any "
            "job). On the pages: read:all only views, support decides reviews and cancels, "
            "operate may do everything.",
        ),
    ] = "enqueue,read",
    account: Annotated[
        list[str] | None,
        typer.Option(metavar="PROVIDER/ACCOUNT", help="Only for this account. Repeatable."),
    ] = None,
    rate: Annotated[
        float,
        typer.Option(
            min=0.01,
            max=MOST_RATE,
            callback=real,
            help="Requests per second that each process accepts with this token.",
        ),
    ] = RATE,
    by: By = "",
    why: Why = "",
    json: AsJson = False,
) -> None:
    """Create a token, and print it once: only its hash is stored.

    To replace a token, create another with the same name, pass it on, and revoke the first.

    Examples:
        regworker tokens new --name shop --may enqueue,read --account open2b/default
        regworker tokens new --name ann --may support
    """
    from worker.operations.tokens import TokenStore

    scopes = tuple(one.strip() for one in may.split(",") if one.strip())
    with open_ledger() as ledger:
        text, token = TokenStore(ledger).new(
            name, scopes, tuple(account or ()), rate, actor=actor(by, why)
        )
    if json:
        print_json({**token.model_dump(exclude={"hash"}), "token": text})
        return
    print_line(text)
    note(f"token {token.id} of {token.name}: store it now, it cannot be shown again")


def list_(json: AsJson = False) -> None:
    """List all tokens, without secrets.

    Examples:
        regworker tokens list
        regworker tokens list --json
    """
    from worker.operations.tokens import TokenStore

    with open_ledger() as ledger:
        store = TokenStore(ledger)
        found = store.all()
    for id_ in store.unreadable:
        note(f"token {id_} cannot be read, and opens nothing: revoke it")
    if json:
        for one in found:
            print_json(one.model_dump(exclude={"hash"}))
        return
    table = new_table("id", "name", "may", "accounts", "rate", "made", "revoked")
    for one in found:
        revoked = time_text(moment(one.revoked_at)) if one.revoked_at else ""
        accounts = ", ".join(one.accounts) or "all"
        made = time_text(moment(one.created_at))
        table.add_row(
            one.id, one.name, ",".join(one.may), accounts, f"{one.rate:g}/s", made, revoked
        )
    out().print(table)


def revoke(
    id_: Annotated[str, typer.Argument(metavar="ID", help="The token's id, from `tokens list`.")],
    by: By = "",
    why: Why = "",
    json: AsJson = False,
) -> None:
    """Revoke a token. Every service refuses it within seconds.

    Examples:
        regworker tokens revoke 3f9a1c0b77de
    """
    from worker.operations.tokens import TokenStore

    with open_ledger() as ledger:
        token = TokenStore(ledger).revoke(id_, actor(by, why))
    if json:
        print_json(token.model_dump(exclude={"hash"}))
    else:
        print_line(f"revoked {token.id} of {token.name}")


app.command("new", **texts(new))(new)
app.command("list", **texts(list_))(list_)
app.command("revoke", **texts(revoke))(revoke)

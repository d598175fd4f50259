"""`regworker jobs`: lists of jobs."""

from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer
from rich.text import Text

from regworker.domain.states import State
from worker.cli import time_arguments
from worker.cli.connection import open_ledger
from worker.cli.numbers import MOST
from worker.cli.output import (
    AsJson,
    new_table,
    note,
    note_unreadable,
    out,
    plain,
    print_json,
    print_line,
    state_text,
    time_text,
)

if TYPE_CHECKING:
    from regworker.ledger.listing import JobRow
    from worker.operations.jobs import JobFilter

States = Annotated[
    list[State] | None, typer.Option("--state", help="Jobs in this state. Repeatable.")
]
Provider = Annotated[str, typer.Option(help="Of this provider.")]
Account = Annotated[str, typer.Option(help="Of this account.")]
Key = Annotated[str, typer.Option(help="With this idempotency key.")]
Since = Annotated[
    str | None,
    typer.Option(
        help=f"Jobs that ended (unfinished: were accepted) since this time: {time_arguments.HOW}."
    ),
]
OlderThan = Annotated[
    str | None,
    typer.Option(
        "--older-than", help="Jobs that ended (unfinished: were accepted) before this time."
    ),
]
Reason = Annotated[
    str,
    typer.Option(
        "--reason",
        "--why",
        help="Part of the reason why the job waits, or of the last line of its timeline.",
    ),
]
Metadata = Annotated[
    list[str] | None, typer.Option("--metadata", metavar="NAME=VALUE", help="With this metadata.")
]

#: Jobs shown without --limit or --json.
SHOWN = 50


def jobs(
    states: States = None,
    provider: Provider = "",
    account: Account = "",
    key: Key = "",
    since: Since = None,
    older_than: OlderThan = None,
    reason: Reason = "",
    metadata: Metadata = None,
    sort: Annotated[str, typer.Option(help="newest or oldest first.")] = "newest",
    limit: Annotated[int | None, typer.Option(min=1, max=MOST, help="At most this many.")] = None,
    json: AsJson = False,
) -> None:
    """List jobs, by state, account, age, key, reason and metadata.

    A job's time is the time when it ended; for an unfinished job, when it was accepted. State,
    account, age and key are read from an index. Reason and metadata need the record of every job
    that the other filters leave: add a state or a time.

    Examples:
        regworker jobs --state review --older-than 2h
        regworker jobs --state rejected --account default --since 1d --reason "e-mail"
        regworker jobs --metadata order=4711 --json | jq -r .job_id
    """
    from worker.operations.jobs import JobList

    if sort not in {"newest", "oldest"}:
        raise typer.BadParameter("takes newest or oldest", param_hint="--sort")
    wanted = job_filter(states, provider, account, key, (since, older_than), reason, metadata, sort)
    most = limit or (None if json else SHOWN)
    rows: list[JobRow] = []
    more = False
    with open_ledger() as ledger:
        found = JobList(ledger)
        for number, row in enumerate(found.all(wanted)):
            if most is not None and number >= most:
                more = True
                break
            if json:
                print_json(row_json(row))
            else:
                rows.append(row)
        note_unreadable(found.unreadable)
    if json:
        return
    if rows:
        _print(rows)
    else:
        print_line("no job matches")
    if more and not limit:
        note(f"these are the first {len(rows)}; --limit shows more, --json all")


def job_filter(
    states: list[State] | None,
    provider: str,
    account: str,
    key: str,
    times: tuple[str | None, str | None],
    reason: str,
    metadata: list[str] | None,
    sort: str = "newest",
) -> "JobFilter":
    """A filter from the command line's options."""
    from worker.operations.jobs import JobFilter

    pairs = []
    for one in metadata or ():
        name, equals, value = one.partition("=")
        if not equals or not name:
            raise typer.BadParameter("takes NAME=VALUE", param_hint="--metadata")
        pairs.append((name, value))
    return JobFilter(
        states=tuple(states or ()),
        provider=provider,
        account=account,
        key=key,
        since=time_arguments.parse(times[0], "--since"),
        until=time_arguments.parse(times[1], "--older-than"),
        reason=reason,
        metadata=tuple(pairs),
        sort=cast("Literal['newest', 'oldest']", sort),
    )


def row_json(row: "JobRow") -> dict[str, Any]:
    """A listed job as JSON."""
    return {
        "job_id": row.id,
        "state": row.state,
        "provider": row.provider,
        "account": row.account,
        "idempotency_key": row.idempotency_key,
        "lane": row.lane,
        "why": row.why,
        "last": row.last,
        "attempts": row.attempts,
        "accepted_at": _iso(row.accepted_at),
        "due_at": _iso(row.due_at),
        "deadline_at": _iso(row.deadline_at),
        "finished_at": _iso(row.finished_at),
    }


def _print(rows: list["JobRow"]) -> None:
    from regworker.domain.event import moment

    table = new_table("job", "state", "account", "key", "accepted or ended", "last")
    for row in rows:
        table.add_row(
            row.id,
            state_text(row.state),
            Text(plain(f"{row.provider}/{row.account}")),
            Text(plain(row.idempotency_key)),
            time_text(moment(row.at)),
            Text(plain(row.last)),
        )
    out().print(table)


def _iso(ms: int) -> str | None:
    from regworker.domain.event import moment

    return moment(ms).isoformat() if ms else None

"""`regworker review`: jobs that need a person's decision."""

import json as json_
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from regworker.domain.states import State
from worker.cli.acting import By, Why, actor, required
from worker.cli.bulk import (
    All,
    BulkCommand,
    DryRun,
    Ids,
    Yes,
    act_on,
    chosen_jobs,
    filtered,
    open_bulk,
)
from worker.cli.commands.jobs import (
    Account,
    Key,
    Metadata,
    OlderThan,
    Provider,
    Since,
    job_filter,
)
from worker.cli.commands.status import show as show_status
from worker.cli.connection import open_admin, status_of
from worker.cli.lazy import new_app, texts
from worker.cli.output import (
    AsJson,
    new_table,
    note_unreadable,
    out,
    plain,
    print_json,
    print_line,
    status_json,
    time_text,
)

app = new_app(no_args_is_help=True)

Reason = Annotated[
    str, typer.Option("--reason", help="Part of the reason why the job is in review.")
]
Registered = Annotated[
    bool, typer.Option("--registered", help="The customer exists and belongs to this job.")
]
Rejected = Annotated[
    str | None,
    typer.Option(metavar="WHY", help="No customer exists or will be created; the reason."),
]
Outcome = Annotated[
    Path | None,
    typer.Option(
        allow_dash=True,
        metavar="FILE|-",
        help="Required with --registered: the provider's data of the customer, as one JSON object.",
    ),
]


@app.callback()
def review() -> None:
    """Decide jobs whose outcome could not be found out from the provider."""


def list_(json: AsJson = False) -> None:
    """List the jobs in review, the oldest first.

    Examples:
        regworker review list
        regworker review list --json | jq -r .job_id
    """
    from regworker.domain.event import moment

    with open_admin() as admin:
        found = list(admin.reviews())
        note_unreadable(admin.unreadable)
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
    table = new_table("job", "key", "account", "accepted", "why")
    for record in found:
        account = f"{record.provider}/{record.account}"
        row = (record.id, record.idempotency_key, account)
        accepted = time_text(moment(record.accepted_at))
        table.add_row(*(Text(plain(one)) for one in (*row, accepted, record.why)))
    if found:
        out().print(table)
    else:
        print_line("no job is in review")


def show(
    job_id: Annotated[str, typer.Argument(metavar="ID", help="The job's id.")],
    json: AsJson = False,
) -> None:
    """Show a job's timeline: the requests, the look-ups, and what they found.

    Look the customer up at the provider by the job's e-mail address, which the producer knows from
    the key; then record what you found with `regworker review resolve`.

    Examples:
        regworker review show 6a1f0b0e-9b58-8f0c-8d4e-0f0e3f1f2a3b
    """
    found = status_of(job_id)
    if json:
        print_json(status_json(found, show_outcome=False))
    else:
        show_status(found, show_outcome=False)


def resolve(
    ids: Ids = None,
    registered: Registered = False,
    rejected: Rejected = None,
    resend: Annotated[
        bool,
        typer.Option(
            "--resend",
            help="Continue: the worker asks the provider, and sends the request if there is no "
            "customer.",
        ),
    ] = False,
    outcome: Outcome = None,
    provider: Provider = "",
    account: Account = "",
    key: Key = "",
    since: Since = None,
    older_than: OlderThan = None,
    reason: Reason = "",
    metadata: Metadata = None,
    all_: All = False,
    yes: Yes = False,
    dry_run: DryRun = False,
    by: By = "",
    why: Why = "",
    json: AsJson = False,
) -> None:
    """Decide jobs in review. Their events are published at once, or the jobs continue.

    --registered takes one job. The outcome has the provider's fields: customer_box_id and
    customer_key at SkyPostal, customer_key at Open2b. It holds the customer's credentials: pass it
    in a file or on stdin, not on the command line, where others can read it.

    --rejected and --resend take many jobs, by ids or by options. With options, the command shows
    all matching jobs in review and asks for confirmation (--yes in scripts), then decides exactly
    these. Jobs that have changed since are skipped and listed. `regworker plans resume` continues
    an interrupted run.

    Examples:
        regworker review resolve ID --registered --outcome - < customer.json
        regworker review resolve ID --rejected "another customer has this address"
        regworker review resolve --resend --account default --since 3h --why "they are well again"
    """
    if sum((registered, rejected is not None, resend)) != 1:
        raise typer.BadParameter("say one of --registered, --rejected WHY, --resend")
    _check_decision(outcome, rejected, registered=registered)
    given = (provider, account, key, since, older_than, reason, metadata, all_)
    by_filter = filtered(ids, given, "--account, --older-than, --reason, --metadata, ..., --all")
    if registered and (dry_run or len(ids or ()) != 1):
        raise typer.BadParameter(
            "--registered takes the id of one job, because each job has its own outcome"
        )
    person = actor(by, why, person=True)
    if ids and len(ids) == 1 and not dry_run:
        with open_admin() as admin:
            if registered:
                done = admin.registered(ids[0], _outcome(outcome), person)
            elif rejected is not None:
                done = admin.rejected(ids[0], rejected, person)
            else:
                done = admin.resend(ids[0], person)
        if json:
            print_json({"job_id": ids[0], "state": done.state})
        else:
            print_line(f"{done.state} {ids[0]}")
        return
    times = (since, older_than)
    wanted = job_filter([State.REVIEW], provider, account, key, times, reason, metadata, "oldest")
    act, word = ("review.resend", "resent") if resend else ("review.rejected", "rejected")
    asks = "resend {} jobs" if resend else "reject {} jobs"
    arguments = {} if resend else {"rejected": rejected}
    with open_bulk() as bulk:
        chosen = chosen_jobs(bulk, ids, wanted)
        command = BulkCommand(act, asks, (word,), yes, dry_run, json)
        act_on(bulk, command, chosen, person, arguments, named=not by_filter)


def correct(
    job_id: Annotated[str, typer.Argument(metavar="ID", help="The job's id.")],
    registered: Registered = False,
    rejected: Rejected = None,
    outcome: Outcome = None,
    by: By = "",
    why: Why = "",
    json: AsJson = False,
) -> None:
    """Correct a wrong decision on a job in review. A job can be corrected once.

    Its producer receives an event of type registration.corrected with the right result. The job's
    state does not change, and no request is sent to the provider. Only a person's decision
    (regworker review resolve, or the job's page) can be corrected, while the job's record is kept.

    Examples:
        regworker review correct ID --rejected "the customer is another shop's" --why "ticket 4711"
        regworker review correct ID --registered --outcome - --why "wrong box" < customer.json
    """
    if registered == (rejected is not None):
        raise typer.BadParameter("say one of --registered, --rejected WHY")
    _check_decision(outcome, rejected, registered=registered)
    if not why.strip():
        raise typer.BadParameter(
            "--why is required: say why the decision was wrong", param_hint="--why"
        )
    person = actor(by, why, person=True)
    with open_admin() as admin:
        right = _outcome(outcome) if rejected is None else rejected
        decided = admin.correct(job_id, right, person)
    if json:
        print_json({"job_id": job_id, "corrected": decided})
    else:
        print_line(f"corrected to {decided} {job_id}")


def _check_decision(file: Path | None, rejected: str | None, *, registered: bool) -> None:
    if rejected is not None:
        required(rejected, "--rejected")
    if file is not None and not registered:
        raise typer.BadParameter("--outcome goes with --registered")


def _outcome(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        content = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        found = json_.loads(content)
    except (ValueError, RecursionError):
        raise typer.BadParameter("the file is not JSON", param_hint="--outcome") from None
    if not isinstance(found, dict):
        raise typer.BadParameter("the file is not a JSON object", param_hint="--outcome")
    return found


app.command("list", **texts(list_))(list_)
app.command("show", **texts(show))(show)
app.command("resolve", **texts(resolve))(resolve)
app.command("correct", **texts(correct))(correct)

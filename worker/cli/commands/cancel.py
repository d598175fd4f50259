"""`regworker cancel`."""

from typing import Annotated

import typer

from worker.cli.acting import By, Why, actor
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
from worker.cli.connection import open_admin
from worker.cli.output import AsJson, print_json, print_line, status_json

Reason = Annotated[str, typer.Option("--reason", help="Part of the reason why the job waits.")]


def cancel(
    ids: Ids = None,
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
    """Cancel jobs that have not been sent to the provider.

    The result event has the type `registration.cancelled`. A job cannot be cancelled after its
    request may have been sent: it continues to its end, and the exit code is 1.

    Choose jobs by ids or by options. With options, the command shows all matching queued jobs and
    asks for confirmation (--yes in scripts), then cancels exactly these. Jobs that have changed
    since are skipped and listed. `regworker plans resume` continues an interrupted run.

    Examples:
        regworker cancel 6a1f0b0e-9b58-8f0c-8d4e-0f0e3f1f2a3b
        regworker cancel --account default --older-than 2d --dry-run
        regworker cancel --metadata campaign=spring --yes --why "the campaign was withdrawn"
    """
    from regworker.domain.states import State

    given = (provider, account, key, since, older_than, reason, metadata, all_)
    by_filter = filtered(ids, given, "--account, --older-than, --reason, --metadata, ..., --all")
    person = actor(by, why)
    if ids and len(ids) == 1 and not dry_run:
        with open_admin() as admin:
            status = admin.cancel(ids[0], person)
        if json:
            print_json(status_json(status, show_outcome=False))
        else:
            print_line(f"cancelled {status.job_id}")
        return
    times = (since, older_than)
    wanted = job_filter([State.QUEUED], provider, account, key, times, reason, metadata, "oldest")
    command = BulkCommand("job.cancel", "cancel {} jobs", ("cancelled",), yes, dry_run, json)
    with open_bulk() as bulk:
        act_on(bulk, command, chosen_jobs(bulk, ids, wanted), person, named=not by_filter)

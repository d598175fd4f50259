"""`regworker export` and `regworker forget`: all stored data about one job."""

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from worker.cli.acting import By, Why, actor
from worker.cli.connection import open_ledger
from worker.cli.output import SECRET, AsJson, print_json, print_line, public

if TYPE_CHECKING:
    from regworker.ledger.steps import Steps
    from worker.operations.job_data import JobData

T = TypeVar("T")

#: Seconds to wait for a ledger that does not answer.
PATIENCE = 10.0

JobId = Annotated[str | None, typer.Argument(metavar="ID", help="The job's id.")]
Key = Annotated[str | None, typer.Option(help="Its idempotency key, instead of the id.")]
Provider = Annotated[str | None, typer.Option(help="With --key: the provider.")]
Account = Annotated[str, typer.Option(help="With --key: the account.")]
ShowSecrets = Annotated[
    bool,
    typer.Option("--show-secrets", help="Show the registration and the customer's credentials."),
]


def export(
    job_id: JobId = None,
    key: Key = None,
    provider: Provider = None,
    account: Account = "default",
    show_secrets: ShowSecrets = False,
    by: By = "",
    why: Why = "",
) -> None:
    """Print all stored data about a job, as JSON.

    The record and timeline, the registration of an unfinished job, the events on results streams,
    the pending and dead deliveries, the audit entries, and the indexes that list the job. Sealed
    data is opened if its key is in REGWORKER_SEALING_KEYS. The audit log records the export.

    Examples:
        regworker export --key crm-8841 --provider skypostal --by ann@support --why "request 4711"
        regworker export 6a1f0b0e-9b58-8f0c-8d4e-0f0e3f1f2a3b --show-secrets > person.json
    """
    from worker.operations.job_data import without_secrets

    id_ = _named(job_id, key, provider, account)
    found = _carried(lambda data: data.export(id_, actor(by, why)))
    if not show_secrets:
        found = without_secrets(found, lambda one: public(one, show_outcome=False), SECRET)
    print_json(found)


def forget(
    job_id: JobId = None,
    key: Key = None,
    provider: Provider = None,
    account: Account = "default",
    by: By = "",
    why: Why = "",
    json: AsJson = False,
) -> None:
    """Erase all stored data about a finished job. This cannot be undone.

    The record, the key, the events on results streams and the deliveries are erased in one step,
    which the audit log records. An endpoint that has not received the result will not receive it.
    The job's id stays until the record would have expired, so that a repeat of its key is refused
    and creates no second customer. The customer at the provider is not changed. Safe to repeat.

    Examples:
        regworker forget --key crm-8841 --provider skypostal --by ann@support --why "request 4711"
    """
    id_ = _named(job_id, key, provider, account)
    acting = actor(by, why, person=True)
    done = _carried(lambda data: data.forget(id_, acting))
    if json:
        print_json({"job_id": id_, **asdict(done)})
        return
    print_line(f"forgot {id_}: {done.entries} events on streams, {done.deliveries} deliveries")
    if done.undelivered:
        print_line(f"{done.undelivered} of the deliveries had not arrived, and will not")


def _named(job_id: str | None, key: str | None, provider: str | None, account: str) -> str:
    if (job_id is None) == (key is None):
        raise typer.BadParameter("name the job by ID, or by --key and --provider")
    if key is not None and provider is None:
        raise typer.BadParameter("--key needs --provider")
    from regworker.core import named

    return named(job_id, key, provider or "", account)


def _carried(act: "Callable[[JobData], Steps[T]]") -> T:
    from regworker.ledger.steps import carry
    from regworker.settings import Settings
    from worker.operations.job_data import JobData

    settings = Settings.load()
    with open_ledger(settings) as ledger:
        return carry(act(JobData(settings)), lambda step: ledger.carry(step, PATIENCE))

"""`regworker cancel`."""

from typing import Annotated

import typer

from worker.cli.connection import open_producer
from worker.cli.output import AsJson, print_json, print_line, status_json


def cancel(
    job_id: Annotated[str, typer.Argument(metavar="ID", help="The job's id.")],
    json: AsJson = False,
) -> None:
    """Take a job back before it is called out to the provider.

    Its result event says `registration.cancelled`. A job whose call may have left cannot be taken
    back: this fails, and the job goes on to its end.

    Examples:
        regworker cancel 6a1f0b0e-9b58-8f0c-8d4e-0f0e3f1f2a3b
    """
    with open_producer() as producer:
        status = producer.cancel(job_id)
    if json:
        print_json(status_json(status, show_outcome=False))
    else:
        print_line(f"cancelled {status.job_id}")

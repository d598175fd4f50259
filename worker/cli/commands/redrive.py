"""`regworker redrive`: retry abandoned jobs."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from regworker.domain.errors import (
    InvalidJob,
    LedgerUnavailable,
    RegistrationWorkerError,
    SettingsError,
)
from worker.cli.acting import By, Why, actor
from worker.cli.connection import open_admin
from worker.cli.files.reading import read_ndjson
from worker.cli.output import AsJson, err, print_json, print_line, saying_how_far


def redrive(
    file: Annotated[
        Path,
        typer.Argument(
            dir_okay=False, allow_dash=True, metavar="FILE|-", help="NDJSON; - reads stdin."
        ),
    ],
    by: By = "",
    why: Why = "",
    json: AsJson = False,
) -> None:
    """Retry abandoned jobs, with their content from the producer.

    A job's content is erased when it ends, so the file must hold it again, with the same key and
    the same content. The worker asks the provider before it sends anything: no second customer is
    created. Jobs that are not abandoned are refused, line by line; exit code 1 if any was. If the
    command is interrupted, run it again: it refuses the jobs that it has redriven before.

    Examples:
        regworker redrive abandoned.ndjson
    """
    driven = refused = 0
    person = actor(by, why)

    def how_far() -> str:
        done = f"{driven} redriven, {refused} refused; run it again with the same file"
        return done if driven or refused else ""

    with open_admin() as admin:
        source = sys.stdin.buffer if str(file) == "-" else file.open("rb")
        with source, saying_how_far(how_far):
            for line in read_ndjson(source):
                try:
                    if line.problems:
                        raise InvalidJob(line.problems)
                    admin.redrive(line.job or {}, person)
                    driven += 1
                except (LedgerUnavailable, SettingsError):
                    raise  # It would be the fault of every line.
                except RegistrationWorkerError as error:
                    refused += 1
                    err().print(f"line {line.number}: {error}", markup=False, soft_wrap=True)
    if json:
        print_json({"redriven": driven, "refused": refused})
    else:
        print_line(f"redriven {driven}, refused {refused}")
    raise typer.Exit(1 if refused else 0)

"""`regworker redrive`: another life for abandoned jobs."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from worker.cli.connection import open_operator
from worker.cli.output import AsJson, err, print_json, print_line
from worker.cli.reading import read_ndjson
from worker.errors import InvalidJob, RegistrationWorkerError


def redrive(
    file: Annotated[
        Path,
        typer.Argument(
            dir_okay=False, allow_dash=True, metavar="FILE|-", help="NDJSON; - reads stdin."
        ),
    ],
    json: AsJson = False,
) -> None:
    """Give abandoned jobs another life, with the content that their producer brings again.

    A job's content is erased when it ends, so it must come with the same key and content as the
    first time. The provider is asked before anything is sent: no second customer is made. Jobs
    that are not abandoned are refused, line by line; exit code 1 if any was.

    Examples:
        regworker redrive abandoned.ndjson
    """
    driven = refused = 0
    with open_operator() as operator:
        source = sys.stdin.buffer if str(file) == "-" else file.open("rb")
        with source:
            for line in read_ndjson(source):
                try:
                    if line.problems:
                        raise InvalidJob(line.problems)
                    operator.redrive(line.job or {})
                    driven += 1
                except RegistrationWorkerError as error:
                    refused += 1
                    err().print(f"line {line.number}: {error}", markup=False, soft_wrap=True)
    if json:
        print_json({"redriven": driven, "refused": refused})
    else:
        print_line(f"redriven {driven}, refused {refused}")
    raise typer.Exit(1 if refused else 0)

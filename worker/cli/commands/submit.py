"""`regworker submit`."""

import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from regworker.domain.errors import (
    IdempotencyConflict,
    InvalidJob,
    LedgerUnavailable,
    Problem,
    UnreadableRecord,
)
from worker.cli.connection import open_producer
from worker.cli.files.csv_columns import Columns
from worker.cli.files.reading import InputLine, read_csv, read_json, read_ndjson
from worker.cli.files.report import Report
from worker.cli.numbers import LONGEST, real
from worker.cli.output import (
    AsJson,
    ShowOutcome,
    err,
    event_line,
    note,
    print_line,
    public,
)

if TYPE_CHECKING:
    from regworker.producer import Producer, Refused
    from regworker.settings import Settings

#: Seconds of one wait. After it, the command checks whether a job is in `review`.
_LOOK = 2.0


class Format(StrEnum):
    """The formats of a file."""

    JSON = "json"
    NDJSON = "ndjson"
    CSV = "csv"


class Lane(StrEnum):
    """The values of `regworker.domain.job`."""

    LIVE = "live"
    BULK = "bulk"


_SUFFIXES = {
    ".json": Format.JSON,
    ".ndjson": Format.NDJSON,
    ".jsonl": Format.NDJSON,
    ".csv": Format.CSV,
}


def submit(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE|-", dir_okay=False, readable=True, help="The file; - reads stdin."
        ),
    ],
    format_: Annotated[
        Format | None,
        typer.Option(
            "--format",
            help="Default: from the file's name (.json .ndjson .jsonl .csv); ndjson for stdin.",
        ),
    ] = None,
    provider: Annotated[str | None, typer.Option(help="Of jobs that name none.")] = None,
    account: Annotated[str | None, typer.Option(help="Of jobs that name none.")] = None,
    lane: Annotated[
        Lane | None, typer.Option(help="The lane of jobs that name none. Use bulk for imports.")
    ] = None,
    reply_to: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="The endpoint of jobs that name none. Repeatable."),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until the jobs end, and print their results.")
    ] = False,
    timeout: Annotated[
        float,
        typer.Option(
            min=0,
            max=LONGEST,
            callback=real,
            metavar="SECONDS",
            help="With --wait: the limit for all jobs together.",
        ),
    ] = 300.0,
    json: AsJson = False,
    show_outcome: ShowOutcome = False,
) -> None:
    """Submit jobs from a file. Refused jobs are listed with their line numbers.

    json: one job, or a list of jobs. ndjson: one job per line. csv: see below. A refused line does
    not stop the others. Submitting a file again is safe: jobs that were already accepted are
    counted as repeated. NDJSON and CSV files may have any length.

    A CSV file has a header. Each column is a path into the job; a number in the path is a position
    in a list. Columns are separated by commas, semicolons or tabs, or by the character that a first
    line such as sep=; names. The encoding is UTF-8; a row is one line. Empty columns at the end are
    ignored.

      idempotency_key, provider, account, lane, if_exists, deadline, reply_to.0
      registration.customer_phone.0.phone_number, metadata.order, ...

    Jobs without a traceparent belong to the trace of the environment variable TRACEPARENT, if it is
    set.

    An empty cell omits its field; a cell of two single quotes ('') is an empty text. The field's
    type decides how a cell is read: a text stays exactly as it is (0123, true, blanks); a cell is
    read as a number or as true/false only if the provider's field has that type. Write null for a
    number that may be null.

    --json prints {accepted, repeated, refused, job_id, problems: [{line, idempotency_key, field,
    code, message}]}; job_id is set if there is only one job, else it is null. With --wait also
    outcomes (the number of jobs in each state) and events.

    Exit code 1 if a job was refused or, with --wait, was not registered.

    Examples:
        regworker submit job.json --wait
        regworker submit customers.csv --provider skypostal --lane bulk
        jq -c '.[]' jobs.json | regworker submit - --json | jq .problems
    """
    from regworker.settings import Settings

    if not _is_stdin(file) and not file.exists():
        raise typer.BadParameter(f"there is no file {str(file)!r}")
    read_as = format_ or _format_of(file)
    given = {"provider": provider, "account": account, "lane": lane and lane.value}
    defaults: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if reply_to:
        defaults["reply_to"] = reply_to
    if trace := os.environ.get("TRACEPARENT"):
        defaults["traceparent"] = trace
    settings = Settings.load_for_client()
    report = Report()
    with ExitStack() as open_:
        producer = open_.enter_context(open_producer(settings))
        stream = open_.enter_context(_Watched(file))
        lines = stream.watch(_read(stream, read_as, settings, provider), report)
        try:
            _enqueue(producer, lines, defaults, report, keep=wait)
            if wait:
                _await(producer, report, timeout, show_outcome=show_outcome, json=json)
        except (LedgerUnavailable, KeyboardInterrupt) as error:
            report.print(json=json, wait=wait)
            note(_how_to_go_on(interrupted=isinstance(error, KeyboardInterrupt)))
            raise
    report.print(json=json, wait=wait)
    if report.refused or (wait and report.outcomes.total() != report.outcomes["registered"]):
        raise typer.Exit(1)


def _how_to_go_on(*, interrupted: bool) -> str:
    begun = "interrupted; up to 500 more jobs may have been accepted than are counted here. "
    return (
        f"{begun if interrupted else ''}Submit the same file again to continue: jobs that were "
        "already accepted are counted as repeated"
    )


def _enqueue(
    producer: "Producer",
    lines: Iterator[InputLine],
    defaults: Mapping[str, Any],
    report: Report,
    *,
    keep: bool,
) -> None:
    from regworker.producer import Refused

    waiting: deque[InputLine] = deque()
    """Jobs that the producer has taken and not answered yet: at most one batch."""

    def jobs() -> Iterator[dict[str, Any]]:
        for line in lines:
            if line.job is None:
                report.refuse(line.number, line.key, line.problems)
            else:
                waiting.append(InputLine(line.number, None, (), line.key))
                yield {**defaults, **line.job}

    for result in producer.enqueue_many(jobs()):
        line = waiting.popleft()
        if isinstance(result, Refused):
            report.refuse(line.number, line.key, _problems(result))
            continue
        if result.repeat:
            report.repeated += 1
        else:
            report.accepted += 1
        if keep or not report.ids:
            report.ids.append(result.job_id)


def _problems(refused: "Refused") -> tuple[Problem, ...]:
    match refused.error:
        case InvalidJob(problems=problems):
            return problems
        case IdempotencyConflict(job_id=job_id):
            what = f"is taken by job {job_id} with other content"
            return (Problem("idempotency_conflict", "idempotency_key", what),)
        case UnreadableRecord():
            return (Problem("unreadable_record", "", str(refused.error)),)


def _await(
    producer: "Producer", report: Report, timeout: float, *, show_outcome: bool, json: bool
) -> None:
    end = time.monotonic() + timeout
    for id_ in report.ids:
        while True:
            status = producer.status(id_)
            left = end - time.monotonic()
            if status.final or status.state == "review" or left <= 0:
                break
            try:
                producer.wait(id_, min(left, _LOOK))
            except TimeoutError:
                continue
        report.outcomes[status.state.value] += 1
        if status.event is None:
            if not json:
                print_line(f"{id_} is {status.state} after {timeout:g} s")
            continue
        event = public(status.event, show_outcome=show_outcome)
        if json:
            report.events.append(event)
        else:
            print_line(event_line(event))


def _is_stdin(file: Path) -> bool:
    return str(file) == "-"


def _format_of(file: Path) -> Format:
    if _is_stdin(file):
        return Format.NDJSON
    found = _SUFFIXES.get(file.suffix.lower())
    if found is None:
        raise typer.BadParameter(
            f"the name {file.name!r} does not show the format: add --format json, ndjson or csv"
        )
    return found


def _read(
    stream: "_Watched", read_as: Format, settings: "Settings", provider: str | None
) -> Iterator[InputLine]:
    match read_as:
        case Format.JSON:
            return read_json(stream.bytes)
        case Format.NDJSON:
            hint = " (for one document, or a list, say --format json)"
            return read_ndjson(stream.bytes, hint)
        case Format.CSV:
            return read_csv(stream.bytes, _columns(settings), provider)


def _columns(settings: "Settings") -> Columns:
    from regworker.domain.job import Job
    from worker.providers.registry import Registry

    registry = Registry(settings.providers)
    known = {name: registry.form(name).model_json_schema() for name in registry}
    return Columns(Job.model_json_schema(), known)


class _Watched:
    """The file, with a progress bar if stderr is a terminal."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._opened = ExitStack()
        self.bytes: BinaryIO = sys.stdin.buffer

    def __enter__(self) -> "_Watched":
        if not _is_stdin(self._file):
            self.bytes = self._opened.enter_context(self._file.open("rb"))
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def watch(self, lines: Iterator[InputLine], report: Report) -> Iterator[InputLine]:
        """The same lines; the bar moves as they are read."""
        console = err()
        # A pipe or stdin has no size, so the bar shows activity only.
        size = self._file.stat().st_size if self._file.is_file() else None
        text = "{task.fields[in_]} accepted, {task.fields[refused]} refused"
        with Progress(
            SpinnerColumn(),
            BarColumn(),
            TextColumn(text),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        ) as progress:
            bar = progress.add_task("", total=size, in_=0, refused=0)
            for line in lines:
                yield line
                progress.update(
                    bar,
                    completed=self.bytes.tell() if size is not None else None,
                    in_=report.accepted + report.repeated,
                    refused=report.refused,
                )

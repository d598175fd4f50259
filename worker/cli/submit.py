"""`regworker submit`."""

import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from worker.cli.cells import Columns
from worker.cli.connection import open_producer
from worker.cli.output import (
    AsJson,
    ShowOutcome,
    err,
    event_line,
    note,
    print_line,
    public,
)
from worker.cli.reading import Line, read_csv, read_json, read_ndjson
from worker.cli.report import Report
from worker.errors import IdempotencyConflict, InvalidJob, LedgerUnavailable, Problem

if TYPE_CHECKING:
    from worker.producer import Producer, Refused
    from worker.settings import Settings

#: Seconds of one wait, after which a job is looked at that may have come to `review` meanwhile.
_LOOK = 2.0


class Format(StrEnum):
    """What a file holds."""

    JSON = "json"
    NDJSON = "ndjson"
    CSV = "csv"


class Lane(StrEnum):
    """As in `worker.job`."""

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
            help="Default: by the file's name (.json .ndjson .jsonl .csv); ndjson for stdin.",
        ),
    ] = None,
    provider: Annotated[str | None, typer.Option(help="Of jobs that name none.")] = None,
    account: Annotated[str | None, typer.Option(help="Of jobs that name none.")] = None,
    lane: Annotated[
        Lane | None, typer.Option(help="Of jobs that name none. An import belongs in bulk.")
    ] = None,
    reply_to: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Endpoint, of jobs that name none. Repeatable."),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for the jobs' ends, and print their results.")
    ] = False,
    timeout: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="With --wait: for all of them together.")
    ] = 300.0,
    json: AsJson = False,
    show_outcome: ShowOutcome = False,
) -> None:
    """Submit jobs from a file; each that is refused is told with its line.

    json: one job, or a list of jobs. ndjson: one job a line. csv: see below. A line that is
    refused holds up no other, and submitting a file again is safe: jobs that are in already are
    counted as repeated. NDJSON and CSV may be of any length.

    A CSV has a header; each column is a path into the job, a number standing for a place in a
    list. Separated by commas, semicolons or tabs; UTF-8; a row is a line.

      idempotency_key, provider, account, lane, if_exists, deadline, reply_to.0
      registration.customer_phone.0.phone_number, metadata.order, ...

    An empty cell leaves its field out; a cell of two single quotes ('') is an empty text. A cell
    becomes what its field takes: a text stays exactly as it is (0123, true, blanks), and only
    where the provider's field is a number or true/false is the cell read as one. null can be
    written for a number that may be null.

    --json prints {accepted, repeated, refused, job_id, problems: [{line, idempotency_key, field,
    code, message}]}; job_id is that of the only job, else null. With --wait also outcomes (how
    many jobs came to each state) and events.

    Exit code 1 if a job was refused or, with --wait, did not come to be registered.

    Examples:
        regworker submit job.json --wait
        regworker submit customers.csv --provider skypostal --lane bulk
        jq -c '.[]' jobs.json | regworker submit - --json | jq .problems
    """
    from worker.settings import Settings

    if not _is_stdin(file) and not file.exists():
        raise typer.BadParameter(f"there is no file {str(file)!r}")
    read_as = format_ or _format_of(file)
    given = {"provider": provider, "account": account, "lane": lane and lane.value}
    defaults: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if reply_to:
        defaults["reply_to"] = reply_to
    settings = Settings.load()
    report = Report()
    with ExitStack() as open_:
        producer = open_.enter_context(open_producer(settings))
        stream = open_.enter_context(_Watched(file))
        lines = stream.watch(_read(stream, read_as, settings, provider), report)
        try:
            _enqueue(producer, lines, defaults, report, keep=wait)
            if wait:
                _await(producer, report, timeout, show_outcome=show_outcome, json=json)
        except LedgerUnavailable:
            report.print(json=json, wait=wait)
            note("submit the file again: jobs that are in already are not doubled")
            raise
    report.print(json=json, wait=wait)
    if report.refused or (wait and report.outcomes.total() != report.outcomes["registered"]):
        raise typer.Exit(1)


def _enqueue(
    producer: "Producer",
    lines: Iterator[Line],
    defaults: Mapping[str, Any],
    report: Report,
    *,
    keep: bool,
) -> None:
    from worker.producer import Refused

    waiting: deque[Line] = deque()
    """Those given to the producer whose answers have not come back: a batch at most."""

    def jobs() -> Iterator[dict[str, Any]]:
        for line in lines:
            if line.job is None:
                report.refuse(line.number, line.key, line.problems)
            else:
                waiting.append(Line(line.number, None, (), line.key))
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
            f"the name {file.name!r} doesn't say what is in it: add --format json, ndjson or csv"
        )
    return found


def _read(
    stream: "_Watched", read_as: Format, settings: "Settings", provider: str | None
) -> Iterator[Line]:
    match read_as:
        case Format.JSON:
            return read_json(stream.bytes)
        case Format.NDJSON:
            return read_ndjson(stream.bytes)
        case Format.CSV:
            return read_csv(stream.bytes, _columns(settings), provider)


def _columns(settings: "Settings") -> Columns:
    from worker.job import Job
    from worker.providers.registry import Registry

    Registry(settings.providers)  # names the setting where a path is wrong
    known = {}
    for path in settings.providers:
        module, _, attribute = path.partition(":")
        found = getattr(import_module(module), attribute)
        known[found.name] = found.Registration.model_json_schema()
    return Columns(Job.model_json_schema(), known)


class _Watched:
    """A file that is read, with a bar on stderr where that is a terminal."""

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

    def watch(self, lines: Iterator[Line], report: Report) -> Iterator[Line]:
        """The same lines; the bar moves as they are taken."""
        console = err()
        # A pipe or stdin has no size: a bar that doesn't know its end moves to and fro.
        size = self._file.stat().st_size if self._file.is_file() else None
        text = "{task.fields[in_]} in, {task.fields[refused]} refused"
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

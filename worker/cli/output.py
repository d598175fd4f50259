"""Output: results on stdout, for people or as JSON; notes on stderr."""

import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from regworker.domain.portable import plain as plain

if TYPE_CHECKING:
    from rich.progress import Progress

    from regworker.producer import Status

SECRET = "[secret]"  # noqa: S105 -- replaces a secret

#: Columns: wider than any line.
_UNFOLDED = 10_000

COLOURS = {
    "queued": "cyan",
    "calling": "cyan",
    "unknown": "yellow",
    "review": "yellow",
    "registered": "green",
    "rejected": "red",
    "abandoned": "red",
    "cancelled": "dim",
}

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]
ShowOutcome = Annotated[
    bool,
    typer.Option("--show-outcome", help="Show the customer's secret credentials."),
]


def out() -> Console:
    """For people, on stdout: colours on terminals only, and none with `NO_COLOR`."""
    # Output into a pipe is not wrapped.
    folds = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(highlight=False, width=None if folds else _UNFOLDED)


def err() -> Console:
    """For people, on stderr: progress and notes."""
    return Console(stderr=True, highlight=False)


def progress() -> "Progress":
    """A progress bar with counts, if stderr is a terminal; removed at the end."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress

    console = err()
    return Progress(
        BarColumn(),
        MofNCompleteColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


class _Table(Table):
    """Shows texts as they are: a name in the ledger may contain rich's markup, or control codes."""

    def add_row(self, *cells: Any, **options: Any) -> None:
        shown = (Text(plain(cell)) if isinstance(cell, str) else cell for cell in cells)
        super().add_row(*shown, **options)


def new_table(*headings: str) -> Table:
    """A table in our style: no lines, and columns that wrap long text."""
    table = _Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def note(text: str) -> None:
    """Print a note on stderr."""
    err().print(Text(plain(text), style="dim"), soft_wrap=True)


@contextmanager
def saying_how_far(said: Callable[[], str]) -> Iterator[None]:
    """If a long command is interrupted or fails, print on stderr how far it came; '': nowhere."""
    try:
        yield
    except (KeyboardInterrupt, Exception) as error:
        begun = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        if how_far := said():
            note(f"{begun}: {how_far}")
        raise


def note_unreadable(keys: Sequence[str]) -> None:
    """Print on stderr which records a list has left out."""
    for key in keys:
        note(f"{key} is not a valid record and is left out; look at it with redis-cli")


def print_json(value: Any) -> None:
    """Print one JSON object as a line of stdout. ASCII, so that no locale can break it."""
    try:
        line = json.dumps(value, allow_nan=False)
    except ValueError:
        line = json.dumps(_without_nan(value))
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _without_nan(value: Any) -> Any:
    """The value, with null for each number that JSON does not allow: others write streams, too."""
    if isinstance(value, Mapping):
        return {name: _without_nan(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_line(line: Text | str) -> None:
    """Print a line for people: a terminal wraps it, a pipe receives it whole."""
    out().print(line, soft_wrap=True, markup=False)


def state_text(state: str) -> Text:
    """A state in its colour."""
    return Text(state, style=COLOURS.get(state, ""))


def time_text(at: datetime) -> str:
    """A time in UTC, to the second."""
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def public(event: Mapping[str, Any], *, show_outcome: bool) -> dict[str, Any]:
    """The event for display: the values of its outcome are hidden unless `show` is set."""
    data = event.get("data")
    if show_outcome or not isinstance(data, Mapping) or "outcome" not in data:
        return dict(event)
    outcome = data["outcome"]
    hidden = dict.fromkeys(outcome, SECRET) if isinstance(outcome, Mapping) else SECRET
    return {**event, "data": {**data, "outcome": hidden}}


def event_line(event: Mapping[str, Any]) -> Text:
    """An event on one line: time, type, job id, key, provider, and the errors or the outcome."""
    data = event.get("data")
    if not isinstance(data, Mapping):
        data = {}
    parts = [
        Text(plain(str(event.get("time", "?"))), style="dim"),
        state_text(plain(str(event.get("type", "?")).removeprefix("registration."))),
        Text(plain(str(event.get("subject", "?")))),
        Text(plain(str(data.get("idempotency_key", "?"))), style="bold"),
        Text(plain(f"{data.get('provider', '?')}/{data.get('account', '?')}")),
    ]
    parts += [Text(plain(_error(error)), style="red") for error in data.get("errors") or ()]
    if isinstance(outcome := data.get("outcome"), Mapping):
        shown = " ".join(f"{name}={value}" for name, value in outcome.items())
        parts.append(Text(plain(shown), style="dim"))
    return Text("  ").join(parts)


def status_json(status: "Status", *, show_outcome: bool) -> dict[str, Any]:
    """A job's status as JSON."""
    event = status.event and public(status.event, show_outcome=show_outcome)
    timeline = [{"at": at.isoformat(), "what": what} for at, what in status.timeline]
    found = {**asdict(status), "final": status.final, "timeline": timeline, "event": event}
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in found.items()
    }


def _error(error: Any) -> str:
    if not isinstance(error, Mapping):
        return "?"
    field = f"{error['field']}: " if error.get("field") else ""
    return f"{field}{error.get('message', '')} ({error.get('code', '?')})"


def connections(stray_at: int) -> Text:
    """How an account's or endpoint's connections are used. `stray_at`: ms; 0: never."""
    if not stray_at:
        return Text("kept", style="dim")
    from regworker.domain.event import moment

    return Text(f"one a call (stray answer {time_text(moment(stray_at))})", style="red")

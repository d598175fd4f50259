"""`regworker results`."""

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from json import loads
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.table import Table
from rich.text import Text

from worker.cli.connection import open_ledger
from worker.cli.lazy import new_app, texts
from worker.cli.output import (
    AsJson,
    ShowOutcome,
    event_line,
    note,
    out,
    plain,
    print_json,
    print_line,
    public,
)
from worker.errors import LedgerUnavailable

if TYPE_CHECKING:
    from worker.ledger import SyncLedger
    from worker.results import Result
    from worker.settings import Settings

T = TypeVar("T")

#: Entries in one read.
_PAGE = 200

#: Milliseconds. Shorter than the connection's timeout, so that a quiet stream is no dead server.
_BLOCK = 2000

#: Seconds without an answer after which whoever follows hears that the server is away.
_QUIET = 2.0

app = new_app(invoke_without_command=True)

Stream = Annotated[
    str, typer.Option(metavar="NAME", help="The stream, as its endpoint is configured.")
]


def results(
    context: typer.Context,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with new results as they come.")
    ] = False,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="ID|0|$",
            help="Only what comes after this entry of the stream; 0: all; $: only what comes from "
            "now on. Default: 0, or $ with --follow. With --group: where a new group begins.",
        ),
    ] = None,
    count: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Stop after so many.")
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Read as a member of this consumer group, which is made if it isn't there. What "
            "is printed is acknowledged: the group's other consumers don't get it.",
        ),
    ] = None,
    stream: Stream = "{reg}:results",
    json: AsJson = False,
    show_outcome: ShowOutcome = False,
) -> None:
    """Print results from the results stream, one a line.

    A line holds time, state, job id, idempotency key, account, and the errors or the outcome.
    --json prints the events themselves (CloudEvents), one JSON object a line. The outcome holds a
    customer's credentials: its values are shown as [secret] unless --show-outcome is given.

    A last note on stderr names the entry to go on from. Following survives a restart of the
    server, and misses nothing that came meanwhile. A sealed stream is opened with
    REGWORKER_SEALING_KEYS.

    Examples:
        regworker results --follow
        regworker results --json --show-outcome | jq .data
        regworker results --since 1767225600000-0 --count 100
        regworker results --group crm --follow --json --show-outcome | ./handle
        regworker results groups
    """
    if context.invoked_subcommand:
        return
    if since is not None and not re.fullmatch(r"\$|\d{1,20}(-\d{1,20})?", since, re.ASCII):
        raise typer.BadParameter(
            "takes an entry's id (1767225600000-0), 0 or $", param_hint="--since"
        )
    if since == "$" and not follow:
        raise typer.BadParameter(
            "$ is what comes from now on: it needs --follow", param_hint="--since"
        )
    from worker.results import reader_settings

    settings = reader_settings()
    shown, last = 0, ""
    with _reading(settings, stream, since, group, follow=follow) as (found, done):
        for result in found:
            event = _event(result)
            if event is None:
                continue
            event = public(event, show_outcome=show_outcome)
            if json:
                print_json(event)
            else:
                print_line(event_line(event))
            done(result)
            last = result.entry
            shown += 1
            if shown == count:
                break
    if shown and group is None:
        note(f"go on with --since {last}")


def groups(
    stream: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Only this stream. Default: all that workers write to."),
    ] = None,
    json: AsJson = False,
) -> None:
    """List the consumer groups of the streams, and how far each is behind.

    `pending` was given out and not acknowledged, `lag` was not given out yet. `behind` is the age
    of the oldest of these: it is kept, however old, until its group has read it. A group that
    nobody reads any more should be dropped, or its stream grows for ever.

    Examples:
        regworker results groups
        regworker results groups --json | jq 'select(.behind > 3600)'
    """
    from worker.groups import groups as groups_of
    from worker.groups import streams

    with open_ledger() as ledger:
        names = streams(ledger) if stream is None else [stream]
        found = [one for name in names for one in groups_of(ledger, name)]
    if json:
        for one in found:
            print_json(asdict(one))
        return
    if not found:
        print_line("nobody reads as a group")
        return
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for heading in ("group", "stream", "consumers", "pending", "lag", "asked", "behind"):
        table.add_column(heading, overflow="fold")
    for one in found:
        lag = "?" if one.lag is None else str(one.lag)
        asked = "never" if one.idle is None else f"{_span(one.idle)} ago"
        row = (one.name, one.stream, str(one.consumers), str(one.pending), lag, asked)
        table.add_row(*(Text(plain(cell)) for cell in (*row, _span(one.behind))))
    out().print(table)


def drop_group(
    group: Annotated[str, typer.Argument(metavar="GROUP", help="The group's name.")],
    stream: Stream = "{reg}:results",
    json: AsJson = False,
) -> None:
    """Drop a consumer group that nobody reads any more, so that its stream can be trimmed.

    Where it stood is forgotten with it: a consumer that comes back begins anew, with all that is
    kept.

    Examples:
        regworker results drop-group old-crm
    """
    from worker.groups import drop_group as drop

    with open_ledger() as ledger:
        dropped = drop(ledger, stream, group)
    if json:
        print_json({"group": group, "stream": stream, "dropped": dropped})
    elif dropped:
        print_line(plain(f"dropped group {group} of {stream}"))
    if not dropped:
        note(f"{stream} has no group {group}: see regworker results groups")
        raise typer.Exit(1)


@contextmanager
def _reading(
    settings: "Settings", stream: str, since: str | None, group: str | None, *, follow: bool
) -> Iterator[tuple[Iterator["Result"], Callable[["Result"], None]]]:
    """What is there and what comes, and what is to be called when a result has been printed."""
    if group is None:
        with open_ledger(settings) as ledger:
            reader = _Reader(settings, ledger, stream, patience=math.inf if follow else 10.0)
            since = since or ("$" if follow else "0")
            last = reader.newest() if since == "$" else since
            if follow:
                note(f"following {stream} after {last}")
            yield reader.entries(last, follow=follow), lambda _: None
        return
    from worker.results import ResultConsumer

    with ResultConsumer(group, stream=stream, start=since or "0", settings=settings) as consumer:
        if follow:
            note(f"following {stream} as {consumer.consumer} of group {group}")
        found = iter(consumer) if follow else iter(lambda: consumer.take(0), None)
        yield found, consumer.ack


class _Reader:
    """Reads a stream, through restarts of its server for as long as `patience` (seconds) lasts."""

    def __init__(
        self, settings: "Settings", ledger: "SyncLedger", stream: str, patience: float
    ) -> None:
        from worker.results import Result, opener

        self._open = opener(settings)
        self._result = Result
        self._ledger = ledger
        self._stream = stream
        self._patience = patience

    def newest(self) -> str:
        """The id of the newest entry there is."""
        found = self._patiently(lambda: self._ledger.redis.xrevrange(self._stream, count=1))
        return _text(found[0][0]) if found else "0"

    def entries(self, last: str, *, follow: bool) -> Iterator["Result"]:
        """The entries after `last`."""
        while True:
            page = self._page(last)
            for entry, fields in page:
                last = _text(entry)
                yield self._result(last, fields, _open=self._open)
            if not page:
                if not follow:
                    return
                self._wait(last)

    def _page(self, last: str) -> list[tuple[bytes, dict[bytes, bytes]]]:
        found: list[tuple[bytes, dict[bytes, bytes]]] = self._patiently(
            lambda: self._ledger.redis.xrange(self._stream, min=f"({last}", count=_PAGE)
        )
        return found

    def _wait(self, last: str) -> None:
        self._patiently(
            lambda: self._ledger.redis.xread({self._stream: last}, count=1, block=_BLOCK)
        )

    def _patiently(self, ask: Callable[[], Any]) -> Any:
        try:
            return self._ledger.patiently(ask, min(_QUIET, self._patience))
        except LedgerUnavailable as error:
            if self._patience <= _QUIET:
                raise
            if self._patience == math.inf:
                note(f"{error}; trying again until it does")
        answer = self._ledger.patiently(ask, self._patience - _QUIET)
        if self._patience == math.inf:
            note("the server is back")
        return answer


def _event(result: "Result") -> dict[str, Any] | None:
    """The event as it stands there, of whatever shape; None, with a note, where there is none."""
    from worker.results import UnreadableEvent

    try:
        event = loads(result.raw)
    except UnreadableEvent as error:
        note(str(error))
        return None
    except ValueError:
        event = None
    if not isinstance(event, dict):
        note(f"entry {result.entry} holds no event that can be read here")
        return None
    return event


def _span(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _text(entry: bytes | str) -> str:
    return entry.decode() if isinstance(entry, bytes) else entry


app.callback(**texts(results))(results)
app.command("groups", **texts(groups))(groups)
app.command("drop-group", **texts(drop_group))(drop_group)

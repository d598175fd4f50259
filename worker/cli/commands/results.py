"""`regworker results`."""

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from json import loads
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.text import Text

from regworker.domain.errors import LedgerUnavailable
from worker.cli.acting import By, Why, actor
from worker.cli.connection import open_ledger
from worker.cli.lazy import new_app, texts
from worker.cli.numbers import MOST
from worker.cli.output import (
    AsJson,
    ShowOutcome,
    event_line,
    new_table,
    note,
    out,
    plain,
    print_json,
    print_line,
    public,
)

if TYPE_CHECKING:
    from regworker.ledger import SyncLedger
    from regworker.ledger.streams import Asking
    from regworker.ledger.transitions import Command
    from regworker.results import Result
    from regworker.settings import Settings

T = TypeVar("T")

#: Seconds. Shorter than the connection's timeout, so that a quiet stream does not count as a dead
#: server.
_BLOCK = 2.0

#: Seconds without an answer (beyond the wait), after which `--follow` reports that the server does
#: not answer.
_QUIET = 2.0

app = new_app(invoke_without_command=True)

Stream = Annotated[
    str, typer.Option(metavar="NAME", help="The stream's name, as in its endpoint's settings.")
]


def results(
    context: typer.Context,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Keep printing new results.")
    ] = False,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="ID|0|$",
            help="Print only entries after this entry id; 0: all; $: only new entries. Default: "
            "0, or $ with --follow. With --group: where a new group starts.",
        ),
    ] = None,
    count: Annotated[
        int | None, typer.Option(min=1, max=MOST, metavar="N", help="Stop after this many.")
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Read as a member of this consumer group; it is created if it does not exist. "
            "Printed results are acknowledged: the group's other consumers do not receive "
            "them.",
        ),
    ] = None,
    stream: Stream = "{reg}:results",
    json: AsJson = False,
    show_outcome: ShowOutcome = False,
) -> None:
    """Print results from the results stream, one per line.

    A line holds time, state, job id, idempotency key, account, and the errors or the outcome.
    --json prints the events themselves (CloudEvents), one JSON object per line. The outcome holds a
    customer's credentials: its values are shown as [secret] unless --show-outcome is given.

    The last line on stderr shows the entry id from which to continue. --follow continues after a
    restart of the server, and misses no entry. A sealed stream is opened with
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
    if since is not None and any(int(one) >= 2**64 for one in re.findall(r"\d+", since)):
        raise typer.BadParameter("has a number of more than 64 bits", param_hint="--since")
    if since == "$" and not follow:
        raise typer.BadParameter(
            "$ means only new entries: it needs --follow", param_hint="--since"
        )
    from regworker.ledger.streams import PAGE
    from regworker.results import reader_settings

    settings = reader_settings()
    shown, last = 0, ""
    # No more than is printed: what is fetched, the group's other consumers get later.
    page = min(count or PAGE, PAGE)
    with _reading(settings, stream, since, group, page, follow=follow) as (found, done):
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
        note(f"continue with --since {last}")


def groups(
    stream: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Only this stream. Default: all streams that workers write to."
        ),
    ] = None,
    json: AsJson = False,
) -> None:
    """List the consumer groups of the streams, and how far each is behind.

    `pending` entries were delivered and not acknowledged; `lag` counts entries not delivered yet.
    `behind` is the age of the oldest of both: entries are kept, however old, until the group has
    read them. Drop a group that is no longer used, or its stream grows without limit.

    Examples:
        regworker results groups
        regworker results groups --json | jq 'select(.behind > 3600)'
    """
    from worker.operations.consumer_groups import groups as groups_of
    from worker.operations.consumer_groups import streams

    with open_ledger() as ledger:
        names = streams(ledger) if stream is None else [stream]
        found = [one for name in names for one in groups_of(ledger, name)]
    if json:
        for one in found:
            print_json(asdict(one))
        return
    if not found:
        print_line("no stream has a consumer group")
        return
    table = new_table("group", "stream", "consumers", "pending", "lag", "asked", "behind")
    for one in found:
        lag = "?" if one.lag is None else str(one.lag)
        asked = "never" if one.idle is None else f"{_span(one.idle)} ago"
        row = (one.name, one.stream, str(one.consumers), str(one.pending), lag, asked)
        table.add_row(*(Text(plain(cell)) for cell in (*row, _span(one.behind))))
    out().print(table)


def drop_group(
    group: Annotated[str, typer.Argument(metavar="GROUP", help="The group's name.")],
    stream: Stream = "{reg}:results",
    by: By = "",
    why: Why = "",
    json: AsJson = False,
) -> None:
    """Drop a consumer group that is no longer used, so that its stream can be trimmed.

    Its position is lost: if a consumer recreates the group, it reads all entries that are still
    kept.

    Examples:
        regworker results drop-group old-crm
    """
    from worker.operations.consumer_groups import drop_group as drop

    with open_ledger() as ledger:
        dropped = drop(ledger, stream, group, actor(by, why))
    if json:
        print_json({"group": group, "stream": stream, "dropped": dropped})
    elif dropped:
        print_line(plain(f"dropped group {group} of {stream}"))
    if not dropped:
        note(f"{stream} has no group {group}: see regworker results groups")
        raise typer.Exit(1)


@contextmanager
def _reading(
    settings: "Settings",
    stream: str,
    since: str | None,
    group: str | None,
    page: int,
    *,
    follow: bool,
) -> Iterator[tuple[Iterator["Result"], Callable[["Result"], None]]]:
    """The present and future entries, and the callback for each printed result."""
    if group is None:
        with open_ledger(settings) as ledger:
            reader = _Reader(settings, ledger, stream, patience=math.inf if follow else 10.0)
            since = since or ("$" if follow else "0")
            last = reader.newest() if since == "$" else since
            if follow:
                note(f"following {stream} after {last}")
            yield reader.entries(last, follow=follow), lambda _: None
        return
    from regworker.results import ResultConsumer

    with ResultConsumer(
        group, stream=stream, start=since or "0", page=page, settings=settings
    ) as consumer:
        if follow:
            note(f"following {stream} as {consumer.consumer} of group {group}")
        found = iter(consumer) if follow else iter(lambda: consumer.take(0), None)
        yield found, consumer.ack


class _Reader:
    """Reads a stream, and reconnects for `patience` seconds while its server does not answer."""

    def __init__(
        self, settings: "Settings", ledger: "SyncLedger", stream: str, patience: float
    ) -> None:
        from regworker.results import Result, is_sealed, opener

        self._open = opener(settings)
        self._sealed = is_sealed(settings, stream)
        self._result = Result
        self._ledger = ledger
        self._stream = stream
        self._patience = patience

    def newest(self) -> str:
        """The id of the newest entry."""
        from regworker.ledger.streams import asking, edge

        command = edge(self._stream, "+")
        return self._patiently(command, asking(command, self._stream, "0")) or "0"

    def entries(self, last: str, *, follow: bool) -> Iterator["Result"]:
        """The entries after `last`."""
        from regworker.ledger.streams import asking, page

        wait = 0.0
        while True:
            command = page(self._stream, last)
            found = self._patiently(command, asking(command, self._stream, last, wait), wait)
            for one in found:
                last = one.entry
                yield self._result(last, one.fields, 1, one.size, self._open, self._sealed)
            if not found and not follow:
                return
            wait = 0.0 if found else _BLOCK

    def _patiently(self, command: "Command[T]", asked: "Asking", wait: float = 0.0) -> T:
        """`wait`: seconds for which the server itself may wait for an entry."""

        def ask() -> T:
            return command.read(self._ledger.exchange(asked))

        quiet = wait + _QUIET
        try:
            return self._ledger.patiently(ask, min(quiet, self._patience))
        except LedgerUnavailable as error:
            if self._patience <= quiet:
                raise
            if self._patience == math.inf:
                note(f"{error}; retrying")
        answer = self._ledger.patiently(ask, self._patience - quiet)
        if self._patience == math.inf:
            note("the server answers again")
        return answer


def _event(result: "Result") -> dict[str, Any] | None:
    """The event of an entry, unchecked; None, with a note on stderr, if the entry holds none."""
    from regworker.results import UnreadableEvent

    try:
        event = loads(result.raw)
    except UnreadableEvent as error:
        note(str(error))
        return None
    except (ValueError, RecursionError):
        event = None
    if not isinstance(event, dict):
        note(f"entry {result.entry} holds no event that this command can read")
        return None
    return event


def _span(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


app.callback(**texts(results))(results)
app.command("groups", **texts(groups))(groups)
app.command("drop-group", **texts(drop_group))(drop_group)

"""`regworker results`."""

import math
import re
from collections.abc import Callable, Iterator
from json import loads
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from worker.cli.connection import open_ledger
from worker.cli.output import (
    AsJson,
    ShowOutcome,
    event_line,
    note,
    print_json,
    print_line,
    public,
)
from worker.errors import LedgerUnavailable

if TYPE_CHECKING:
    from worker.ledger import SyncLedger

T = TypeVar("T")

#: Entries in one read.
_PAGE = 200

#: Milliseconds. Shorter than the connection's timeout, so that a quiet stream is no dead server.
_BLOCK = 2000

#: Seconds without an answer after which whoever follows hears that the server is away.
_QUIET = 2.0


def results(
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with new results as they come.")
    ] = False,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="ID|0|$",
            help="Only what comes after this entry of the stream; 0: all; $: only what comes from "
            "now on. Default: 0, or $ with --follow.",
        ),
    ] = None,
    count: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Stop after so many.")
    ] = None,
    stream: Annotated[
        str, typer.Option(metavar="NAME", help="The stream, as its endpoint is configured.")
    ] = "{reg}:results",
    json: AsJson = False,
    show_outcome: ShowOutcome = False,
) -> None:
    """Print results from the results stream, one a line.

    A line holds time, state, job id, idempotency key, account, and the errors or the outcome.
    --json prints the events themselves (CloudEvents), one JSON object a line. The outcome holds a
    customer's credentials: its values are shown as [secret] unless --show-outcome is given.

    A last note on stderr names the entry to go on from. Following survives a restart of the
    server, and misses nothing that came meanwhile.

    Examples:
        regworker results --follow
        regworker results --json --show-outcome | jq .data
        regworker results --since 1767225600000-0 --count 100
    """
    if since is None:
        since = "$" if follow else "0"
    if not re.fullmatch(r"\$|\d{1,20}(-\d{1,20})?", since, re.ASCII):
        raise typer.BadParameter(
            "takes an entry's id (1767225600000-0), 0 or $", param_hint="--since"
        )
    if since == "$" and not follow:
        raise typer.BadParameter(
            "$ is what comes from now on: it needs --follow", param_hint="--since"
        )
    with open_ledger() as ledger:
        reader = _Reader(ledger, stream, patience=math.inf if follow else 10.0)
        last = reader.newest() if since == "$" else since
        if follow:
            note(f"following {stream} after {last}")
        shown = 0
        for entry, event in reader.entries(last, follow=follow):
            last = entry
            if event is None:
                note(f"{entry} holds no event that can be read here")
                continue
            event = public(event, show_outcome=show_outcome)
            if json:
                print_json(event)
            else:
                print_line(event_line(event))
            shown += 1
            if shown == count:
                break
    if shown:
        note(f"go on with --since {last}")


class _Reader:
    """Reads a stream, through restarts of its server for as long as `patience` (seconds) lasts."""

    def __init__(self, ledger: "SyncLedger", stream: str, patience: float) -> None:
        self._ledger = ledger
        self._stream = stream
        self._patience = patience

    def newest(self) -> str:
        """The id of the newest entry there is."""
        found = self._patiently(lambda: self._ledger.redis.xrevrange(self._stream, count=1))
        return _text(found[0][0]) if found else "0"

    def entries(self, last: str, *, follow: bool) -> Iterator[tuple[str, dict[str, Any] | None]]:
        """The entries after `last`: id, and the event, or None where there is none to be read."""
        while True:
            page = self._page(last)
            for entry, fields in page:
                last = _text(entry)
                yield last, _event(fields.get(b"event"))
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


def _event(text: bytes | None) -> dict[str, Any] | None:
    try:
        event = loads(text or b"")
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


def _text(entry: bytes | str) -> str:
    return entry.decode() if isinstance(entry, bytes) else entry

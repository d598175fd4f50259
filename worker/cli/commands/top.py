"""`regworker top`: the whole installation on one screen, live."""

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import RenderableType
from rich.live import Live
from rich.text import Text

from regworker.domain.errors import LedgerUnavailable
from worker.cli.connection import open_observer
from worker.cli.numbers import LONGEST, real
from worker.cli.output import AsJson, out, plain, print_json

if TYPE_CHECKING:
    from worker.cli.screen import Screen
    from worker.monitoring.overview import Observer, Overview

_HELP = "q quits"

#: Waits for the given seconds; true as soon as q is pressed.
_Asked = Callable[[float], bool]


def top(
    interval: Annotated[
        float,
        typer.Option(
            "--interval",
            "-i",
            min=0.1,
            max=LONGEST,
            callback=real,
            help="Seconds between refreshes.",
        ),
    ] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print one screen, and exit.")] = False,
    json: AsJson = False,
) -> None:
    """Watch the installation live: lanes, accounts with breaker and rate limit, endpoints, workers,
    the outcomes of the last minute, and what needs a person.

    Quits on q or Ctrl-C. Into a pipe it prints one screen and exits, as with --once. --json prints
    one object per refresh. A refresh costs the ledger a tenth of a millisecond, however many jobs
    there are.

    Examples:
        regworker top
        regworker top --interval 5
        regworker top --json | jq .jobs
    """
    from worker.cli.commands.stats import numbers
    from worker.cli.screen import Screen

    with open_observer() as observer:
        if json:
            while True:
                print_json(numbers(observer.look()))
                if once:
                    return
                time.sleep(interval)
        if once or not sys.stdout.isatty():
            out().print(Screen().whole(observer.look()))
            return
        _watch(observer, interval)


def _watch(observer: "Observer", interval: float) -> None:
    from worker.cli.screen import Screen

    screen, last = Screen(), None
    console = out()
    with _keys() as asked, Live(console=console, screen=True, auto_refresh=False) as live:
        try:
            while True:
                trouble = ""
                try:
                    last = observer.look()
                except LedgerUnavailable as error:
                    trouble = plain(str(error))
                live.update(_frame(screen, last, console.height, trouble), refresh=True)
                if asked(interval):
                    return
        except KeyboardInterrupt:
            return


def _frame(screen: "Screen", found: "Overview | None", height: int, trouble: str) -> RenderableType:
    if found is None:
        return Text(trouble, style="bold red")
    return screen.fitting(found, height, trouble or _HELP)


@contextmanager
def _keys() -> Iterator[_Asked]:
    """A function that waits for the given seconds and returns whether q was pressed."""
    if not sys.stdin.isatty():
        yield _sleep
        return
    before = termios.tcgetattr(sys.stdin)
    try:
        # Keys arrive at once and are not echoed; Ctrl-C is still a signal.
        tty.setcbreak(sys.stdin)
        yield _pressed
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _pressed(seconds: float) -> bool:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if select.select([sys.stdin], [], [], left)[0]:
            keys = os.read(sys.stdin.fileno(), 64)
            # End of input: the terminal is gone.
            if not keys or b"q" in keys.lower():
                return True
    return False


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False

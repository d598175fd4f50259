"""`regworker top`: the whole installation on one screen, as it goes."""

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

from worker.cli.connection import open_lookout
from worker.cli.output import AsJson, out, plain, print_json
from worker.errors import LedgerUnavailable

if TYPE_CHECKING:
    from worker.cli.panels import Screen
    from worker.lookout import Lookout, Overview

_HELP = "q quits"

#: Waits so many seconds, or until q is pressed: then it says so.
_Asked = Callable[[float], bool]


def top(
    interval: Annotated[
        float, typer.Option("--interval", "-i", min=0.1, help="Seconds between looks.")
    ] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Look once, and end.")] = False,
    json: AsJson = False,
) -> None:
    """Watch the installation live: lanes, accounts with breaker and pace, endpoints, workers, what
    came out in the last minute, and what needs a person.

    Quits on q or Ctrl-C. Into a pipe it prints one look and ends, as with --once; with --json one
    object a look. A look costs the ledger a tenth of a millisecond, however many jobs there are.

    Examples:
        regworker top
        regworker top --interval 5
        regworker top --json | jq .jobs
    """
    from worker.cli.panels import Screen
    from worker.cli.stats import numbers

    with open_lookout() as lookout:
        if json:
            while True:
                print_json(numbers(lookout.look()))
                if once:
                    return
                time.sleep(interval)
        if once or not sys.stdout.isatty():
            out().print(Screen().whole(lookout.look()))
            return
        _watch(lookout, interval)


def _watch(lookout: "Lookout", interval: float) -> None:
    from worker.cli.panels import Screen

    screen, last = Screen(), None
    console = out()
    with _keys() as asked, Live(console=console, screen=True, auto_refresh=False) as live:
        try:
            while True:
                trouble = ""
                try:
                    last = lookout.look()
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
    """A question, whether somebody has pressed q within so many seconds."""
    if not sys.stdin.isatty():
        yield _sleep
        return
    before = termios.tcgetattr(sys.stdin)
    try:
        # Keys at once and unseen; Ctrl-C is still a signal.
        tty.setcbreak(sys.stdin)
        yield _pressed
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _pressed(seconds: float) -> bool:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if select.select([sys.stdin], [], [], left)[0]:
            keys = os.read(sys.stdin.fileno(), 64)
            # Nothing at all: whoever typed has hung up.
            if not keys or b"q" in keys.lower():
                return True
    return False


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False

"""Limits of numbers on the command line."""

import math

import typer

#: The largest number of things. More is a mistake, and some libraries count no further.
MOST = 1_000_000_000

#: Seconds: the longest time that a command waits.
LONGEST = 7 * 86400.0


def real(value: float) -> float:
    """Refuse NaN: comparing it with limits is always false. For options, as `callback`."""
    if math.isnan(value):
        raise typer.BadParameter("is not a number")
    return value

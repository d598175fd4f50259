"""Times on the command line: a time, or how long ago."""

import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import typer

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

_EPOCH, _LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)

HOW = "an ISO 8601 time (2026-11-22T05:00Z; UTC unless it says otherwise), or how long ago: 90m, 3d"


def parse(text: str | None, option: str, now: datetime | None = None) -> datetime | None:
    """Read an option's time; None if it was not given. `now`: by default, by the ledger's clock,
    which has written what is compared: this machine's may be hours off."""
    if text is None:
        return None
    if ago := re.fullmatch(r"(\d{1,6})([smhd])", text, re.ASCII):
        found = _EPOCH
        with suppress(OverflowError):
            found = (now or _ledgers_now()) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
    else:
        try:
            found = datetime.fromisoformat(text)
        except ValueError:
            raise typer.BadParameter(f"takes {HOW}", param_hint=option) from None
    found = found if found.tzinfo else found.replace(tzinfo=UTC)
    # A time outside the range of the ledger's clock is before or after all jobs.
    return min(max(found, _EPOCH), _LATEST)


def _ledgers_now() -> datetime:
    from regworker.domain.event import moment
    from worker.cli.connection import open_ledger

    # The command itself says which ledger it uses.
    with open_ledger(probe=True) as ledger:
        return moment(ledger.now())


AHEAD = "a time of day here (18:00), an ISO 8601 time, or how long from now: 90m, 2h"


def ahead(text: str, option: str, now: datetime) -> datetime:
    """Read an option's future time, in this machine's time zone unless it names another.

    A time of day is the next one. `now`: by the clock that will compare it.
    """
    here = now.astimezone()
    try:
        if length_ := re.fullmatch(r"(\d{1,6})([smhd])", text, re.ASCII):
            found = here + timedelta(**{_UNITS[length_[2]]: int(length_[1])})
        elif re.fullmatch(r"\d{1,2}:\d\d", text, re.ASCII):
            clock = datetime.strptime(text, "%H:%M").time()
            # Without a zone first: the offset is that of the day itself, also after a clock change.
            found = datetime.combine(here.date(), clock).astimezone()
            if found <= here:
                found = datetime.combine(here.date() + timedelta(days=1), clock).astimezone()
        else:
            found = datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        raise typer.BadParameter(f"takes {AHEAD}", param_hint=option) from None
    if found <= here:
        raise typer.BadParameter(
            f"{text} is not in the future: give a later time", param_hint=option
        )
    return min(found, _LATEST)


def length(seconds: float) -> str:
    """A length of time in its two largest units: `3d 4h`, `12s`."""
    left = max(0, round(seconds))
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or (unit == "s" and not parts):
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2])

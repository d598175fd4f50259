"""Times on the command line: a moment, or how long ago it was."""

import re
from datetime import UTC, datetime, timedelta

import typer

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

HOW = "an ISO 8601 time (2026-11-22T05:00Z; UTC unless it says otherwise), or how long ago: 90m, 3d"


def parse(text: str | None, option: str, now: datetime | None = None) -> datetime | None:
    """Read an option's moment; None where it was not given."""
    if text is None:
        return None
    if ago := re.fullmatch(r"(\d{1,6})([smhd])", text, re.ASCII):
        return (now or datetime.now(UTC)) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"takes {HOW}", param_hint=option) from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def length(seconds: float) -> str:
    """A length of time in its two largest units: `3d 4h`, `12s`."""
    left = max(0, round(seconds))
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or (unit == "s" and not parts):
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2])

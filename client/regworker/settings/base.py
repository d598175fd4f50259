"""What all subjects share: the class of a part of `Settings`, and checks."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from regworker import addresses


class SettingsPart(BaseModel):
    """The settings of one subject; `Settings` has them all."""

    # Nobody makes one by itself, so that its validator need not be built.
    model_config = ConfigDict(defer_build=True)


#: Seconds: a hundred years. A longer time is a mistake, and exceeds the ledger's clock.
LONGEST = 100 * 365.25 * 86400


#: The highest count: a higher one is a mistake, and Lua and JSON would round some of them.
HIGHEST = 1_000_000_000


def bounded(value: Any) -> Any:
    """Refuse a time that is too long, and a number that is too high."""
    if isinstance(value, float) and not value <= LONGEST:
        raise ValueError("is longer than a hundred years (in seconds)")
    if isinstance(value, int) and value > HIGHEST:
        raise ValueError(f"is higher than {HIGHEST}")
    return value


def split(value: Any) -> Any:
    """The parts of a list separated by commas."""
    if not isinstance(value, str):
        return value
    return [part for part in map(str.strip, value.split(",")) if part]


def blank(value: Any) -> Any:
    """A blank value counts as none, as in the environment."""
    value = addresses.unquoted(value)
    return None if value == "" else value

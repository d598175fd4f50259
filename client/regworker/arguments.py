"""What a host passes: a wrong argument is named, with what to pass instead, before anything is
sent."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn


class OfOneProcess:
    """Holds keys and connections, which belong in no pickle."""

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        what = f"{type(self).__name__} holds keys and connections: it cannot be pickled or copied"
        raise TypeError(f"{what}. Create one in each process")


def seconds(value: object, name: str = "timeout") -> float:
    """A number of seconds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number of seconds, not {type(value).__name__}")
    if math.isnan(value):
        raise ValueError(f"{name} must be a number of seconds, not NaN")
    return value


def seconds_or_usual(timeout: object) -> float | None:
    """The same for one call; None: as the constructor says."""
    return None if timeout is None else seconds(timeout)


def of_kind(name: str, value: object, kinds: type | tuple[type, ...], what: str) -> None:
    """`what`: what to pass instead of a value of another kind."""
    if not isinstance(value, kinds):
        raise TypeError(f"{name} must be {what}, not {type(value).__name__}")


def several(jobs: Any) -> None:
    """Many jobs. A single one could be iterated, too: as its fields."""
    from pydantic import BaseModel

    if isinstance(jobs, Mapping | BaseModel | str | bytes):
        what = type(jobs).__name__
        raise TypeError(f"jobs must be a list of jobs, not one {what}: give [job], or use enqueue")
    of_kind("jobs", jobs, Iterable, "a list of jobs, or another iterable")

"""Checks of the sandbox's input: each error is a sentence that names the field."""

from collections.abc import Iterable, Mapping
from typing import Any


class BadControl(ValueError):  # noqa: N818 - reads as what it is: bad control input
    """Raised for invalid control input. Its text names the field and the valid values."""


def mapping(value: object, field: str) -> Mapping[str, Any]:
    """Require a JSON object."""
    if not isinstance(value, Mapping):
        raise BadControl(f"{field} must be an object.")
    return value


def known(value: Mapping[str, Any], names: Iterable[str], field: str) -> None:
    """Require that an object has no other members."""
    names = sorted(names)
    for name in value:
        if name not in names:
            raise BadControl(f"{field}.{name} is unknown; {field} takes {', '.join(names)}.")


def boolean(value: object, field: str) -> bool:
    """Require true or false."""
    if not isinstance(value, bool):
        raise BadControl(f"{field} must be true or false.")
    return value


def text(value: object, field: str) -> str:
    """Require a string."""
    if not isinstance(value, str):
        raise BadControl(f"{field} must be a string.")
    return value


def whole(value: object, field: str, minimum: int = 0) -> int:
    """Require a whole number of at least `minimum`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise BadControl(f"{field} must be a whole number of at least {minimum}.")
    return value


def seconds(value: object, field: str) -> float:
    """Require a number of seconds, 0 or more."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1e9:
        raise BadControl(f"{field} must be a number of seconds, 0 or more.")
    return float(value)


def probability(value: object, field: str) -> float:
    """Require a probability."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
        raise BadControl(f"{field} must be a probability from 0 to 1.")
    return float(value)

"""What every line says of the step that it is told in: which job, account, attempt."""

from collections.abc import Mapping
from contextvars import ContextVar, Token
from types import MappingProxyType
from typing import Any

_ABOUT: ContextVar[Mapping[str, Any]] = ContextVar("about", default=MappingProxyType({}))


class about:  # noqa: N801 -- used as a function: `with about(job=...):`
    """Adds fields to all lines that are told inside, also in tasks that are started there.

    One variable for all fields. structlog's own has one for each, and looks through all variables
    that a task has at each line: several times the cost.
    """

    __slots__ = ("_fields", "_token")

    def __init__(self, **fields: object) -> None:
        self._fields = fields

    def __enter__(self) -> None:
        self._token: Token[Mapping[str, Any]] = _ABOUT.set({**_ABOUT.get(), **self._fields})

    def __exit__(self, *_: object) -> None:
        _ABOUT.reset(self._token)


def told() -> Mapping[str, Any]:
    """What lines that are told here say."""
    return _ABOUT.get()

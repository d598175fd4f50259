"""The fields that every log line of a step has: job, account, attempt."""

from collections.abc import Mapping
from contextvars import ContextVar, Token
from types import MappingProxyType
from typing import Any

_ABOUT: ContextVar[Mapping[str, Any]] = ContextVar("about", default=MappingProxyType({}))


class about:  # noqa: N801 -- used as a function: `with about(job=...):`
    """Adds fields to all log lines inside, also in tasks that are started there.

    One variable holds all fields. structlog's own has one for each, and searches all variables of a
    task at each line, which costs several times as much.
    """

    __slots__ = ("_fields", "_token")

    def __init__(self, **fields: object) -> None:
        self._fields = fields

    def __enter__(self) -> None:
        self._token: Token[Mapping[str, Any]] = _ABOUT.set({**_ABOUT.get(), **self._fields})

    def __exit__(self, *_: object) -> None:
        _ABOUT.reset(self._token)


def fields() -> Mapping[str, Any]:
    """The fields of log lines in this context."""
    return _ABOUT.get()

"""Limits log lines about other programs' input: a flood of junk must not become a flood of
lines."""

import time
from collections.abc import Callable
from typing import Any

#: Lines of one kind in one period (seconds): enough to see what happens, and from where.
MOST, PERIOD = 20, 60.0


class Sampled:
    """Logs a warning for the first `MOST` events of a kind in a period, and then how many more
    came.

    The kind is the line without its fields.
    """

    def __init__(self, warn: Callable[..., Any], now: Callable[[], float] = time.monotonic) -> None:
        """`warn`: a logger's method."""
        self._warn = warn
        self._now = now
        self._kinds: dict[str, tuple[float, int]] = {}
        """By kind: when its period began, and how many came in it."""

    def __call__(self, line: str, *parts: Any, **facts: Any) -> None:
        """Warn, or count."""
        now = self._now()
        since, count = self._kinds.get(line, (now, 0))
        if now - since >= PERIOD:
            if count > MOST:
                self._warn(f"{line} (and %d more of these)" % (*parts, count - MOST), **facts)
            since, count = now, 0
        self._kinds[line] = since, count + 1
        if count < MOST:
            self._warn(line, *parts, **facts)

"""When to try again: exponential backoff with full jitter, and the provider's Retry-After."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

#: Seconds. The longest `Retry-After` that is obeyed: waiting a year, for example, would keep an
#: unknown job from ever being settled.
LONGEST_WAIT = 86400.0


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential backoff with full jitter: anywhere between 0 and min(cap, base * 2^n) seconds.

    Full jitter spreads what failed together (AWS Architecture Blog, "Exponential Backoff And
    Jitter").
    """

    base: float
    cap: float

    def delay(self, tries: int, chance: float) -> float:
        """Seconds to wait after `tries` failures (>= 1); `chance` is a random number in [0, 1)."""
        # 2**32 exceeds any cap; a larger power would only overflow the float.
        return min(self.cap, self.base * 2.0 ** min(tries - 1, 32)) * chance

    def after(self, tries: int, chance: float, retry_after: float | None) -> float:
        """Seconds to wait, never less than the provider asked for."""
        own = self.delay(tries, chance)
        if retry_after is None:
            return own
        # Jitter on top: otherwise all jobs with the same delay return in the same second.
        return retry_after + own


def parse_retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """Seconds from a `Retry-After` header (RFC 9110, section 10.2.3): a number or a date.

    None where the header is absent or unreadable; never negative, and never more than
    `LONGEST_WAIT`. Of several numbers (a proxy adds its own header) the largest counts; empty items
    of such a list say nothing (RFC 9110, section 5.6.1).
    """
    if value is None:
        return None
    waits = [_seconds(part) for part in value.split(",") if part.strip(" \t")]
    if waits and None not in waits:
        return max(filter(None, waits), default=0.0)
    try:
        date = parsedate_to_datetime(value.strip())
        if date.tzinfo is None:
            date = date.replace(tzinfo=UTC)
        wait = (date - (now or datetime.now(UTC))).total_seconds()
    except (ValueError, OverflowError):
        return None
    return min(max(0.0, wait), LONGEST_WAIT)


def longest_retry_after(values: Iterable[str]) -> str | None:
    """Of several `Retry-After` headers the one with the longest wait, as `parse_retry_after`
    chooses from one with several numbers."""
    return max(values, key=lambda value: parse_retry_after(value) or 0.0, default=None)


def _seconds(text: str) -> float | None:
    # Some servers write 1.5, which the RFC does not allow; its meaning is clear.
    found = re.fullmatch(r"[ \t]*([0-9]+(?:\.[0-9]*)?)[ \t]*", text, re.ASCII)
    return min(float(found[1]), LONGEST_WAIT) if found else None

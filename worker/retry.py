"""When to try again: exponential backoff with full jitter, and the provider's Retry-After."""

from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


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
        # 2**32 is past any cap; a larger power would only overflow the float.
        return min(self.cap, self.base * 2.0 ** min(tries - 1, 32)) * chance

    def after(self, tries: int, chance: float, retry_after: float | None) -> float:
        """Seconds to wait, never less than what the provider asked for."""
        own = self.delay(tries, chance)
        if retry_after is None:
            return own
        # Jitter on top, or all jobs told the same second come back in the same second.
        return retry_after + own


def parse_retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """Seconds from a `Retry-After` header (RFC 9110, section 10.2.3): a number or a date.

    None where the header is absent or unreadable; never negative.
    """
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - (now or datetime.now(UTC))).total_seconds())

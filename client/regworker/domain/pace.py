"""An account's pace: so many calls in a period."""

import re
from dataclasses import dataclass

#: The share of a period's calls that may be made at once.
BURST = 0.1

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

HOW = "calls per period, such as 50/300s (units: s, m, h, d)"


@dataclass(frozen=True, slots=True)
class Pace:
    """So many calls in `period` seconds. 0 calls: no limit."""

    calls: int
    period: float

    @classmethod
    def parse(cls, text: str) -> "Pace":
        """Read `50/300s`. Raises `ValueError`."""
        found = re.fullmatch(r"(\d{1,9})/(\d{0,7})([smhd])", text, re.ASCII)
        if found is None:
            raise ValueError(f"takes {HOW}")
        calls, period = int(found[1]), float(found[2] or 1) * _UNITS[found[3]]
        if calls < 1 or period <= 0:
            raise ValueError(
                "must be at least one call, in a period of one second or more; to stop all "
                "calls, pause the account"
            )
        return cls(calls, period)

    @property
    def interval(self) -> float:
        """Milliseconds per call (GCRA)."""
        return self.period / self.calls * 1000 if self.calls else 0.0

    @property
    def burst(self) -> float:
        """Milliseconds that may be used up at once."""
        return self.period * 1000 * BURST if self.calls else 0.0

"""When a worker's part counts as silent."""

from collections.abc import Mapping

Parts = Mapping[str, tuple[float, float]]
"""Seconds since each part last worked, and the allowed maximum."""


def silent(parts: Parts, since: float = 0.0) -> dict[str, float]:
    """The parts that are silent for too long, `since` seconds ago; with the seconds of each."""
    return {part: age + since for part, (age, limit) in parts.items() if age + since > limit}

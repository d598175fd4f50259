"""Jobs by their final state."""

from regworker.domain.states import FINAL
from regworker.ledger.snapshot import Snapshot


def finished(g: Snapshot) -> dict[str, int]:
    """How many jobs have reached each final state so far."""
    counted = {str(state): 0 for state in sorted(FINAL)}
    for name, number in g.stats.items():
        state, _, account = name.partition(":")
        if account and state in counted:
            counted[state] += number
    return counted

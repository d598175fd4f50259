"""Which accounts have series of their own; the others are summed by provider.

Prometheus keeps each series. With an account a store, there would be eleven for each store.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from regworker.ledger.snapshot import AccountSnapshot

#: Replaces an account: all accounts of a provider without series of their own. No account has this
#: name.
OTHERS = "*"


@dataclass(frozen=True, slots=True)
class AccountSeries:
    """`limit`: the number of accounts up to which each one has series of its own; `always`: a
    pattern of those that have them anyway (`open2b/store-1*`); '': none."""

    limit: int = 200
    always: str = ""

    def own(self, accounts: Iterable[AccountSnapshot]) -> frozenset[tuple[str, str]]:
        """The accounts with counters and gauges of their own."""
        every = [(one.provider, one.account) for one in accounts]
        if len(every) <= self.limit:
            return frozenset(every)
        return frozenset(one for one in every if self.always_own(*one))

    def always_own(self, provider: str, account: str) -> bool:
        """Whether the pattern names this account, announced or not."""
        return fnmatchcase(f"{provider}/{account}", self.always)

    def alerting(self, accounts: Iterable[AccountSnapshot]) -> frozenset[tuple[str, str]]:
        """Accounts that alerts name: with gauges of their own, but no counters.

        A counter that took turns with the others' sum would make that one fall.
        """
        found = [
            (one.provider, one.account)
            for one in accounts
            if one.paused or one.breaker != "closed" or one.stray_at
        ]
        return frozenset(found[: self.limit])


def folded(
    accounts: Iterable[AccountSnapshot], own: frozenset[tuple[str, str]]
) -> Mapping[str, int]:
    """How many accounts of each provider have no series of their own."""
    found: Counter[str] = Counter()
    for one in accounts:
        found[one.provider] += (one.provider, one.account) not in own
    return found

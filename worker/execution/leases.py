"""The leases this process holds, and their renewal in bulk."""

from collections import Counter
from collections.abc import Callable
from typing import Self

from regworker.clock import steady
from regworker.ledger import AsyncLedger
from regworker.ledger.identity import NO_CLAIM
from regworker.ledger.records import Claim
from regworker.ledger.transitions import renew


class Lease:
    """One lease, kept until the end of `with`.

    Check `alive()` before anything is sent to the provider.
    """

    __slots__ = ("_leases", "account", "expires", "key", "settling")

    def __init__(self, claim: Claim, expires: float, leases: "Leases") -> None:
        record = claim.record
        self.key = (record.id, record.fence)
        self.account = (record.provider, record.account)
        self.expires = expires
        self.settling = False
        """The settle that ends it is under way: the server may already have removed it."""
        self._leases = leases

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._leases.let_go(self)

    def alive(self) -> bool:
        """Whether the server surely still holds the lease."""
        return self._leases.now() < self.expires


class Leases:
    """All leases of this process. They expire by themselves while the ledger cannot be reached."""

    def __init__(
        self, ledger: AsyncLedger, seconds: float, now: Callable[[], float] = steady
    ) -> None:
        self._ledger = ledger
        self._seconds = seconds
        self._now = now
        self._held: dict[tuple[str, int], Lease] = {}
        self.calls: Counter[tuple[str, ...]] = Counter()
        """The number of leases by provider and account; 0 for those that had some."""
        self.last = NO_CLAIM
        """Job id and fence of the last one for a call, which may have ended: a lost lookup creates
        no customer."""

    def now(self) -> float:
        """The clock of leases: read it before a claim is sent."""
        return self._now()

    def hold(self, claim: Claim, asked_at: float) -> Lease:
        """Keep a claim's lease renewed. `asked_at`: `now()` from before the claim was sent.

        Counted from then, so that the lease never seems to last longer here than at the server.
        """
        lease = Lease(claim, asked_at + self._seconds, self)
        self._held[lease.key] = lease
        if not claim.asking:
            self.last = lease.key
        self.calls[lease.account] += 1
        return lease

    def let_go(self, lease: Lease) -> None:
        """Renew it no longer."""
        self._held.pop(lease.key, None)
        self.calls[lease.account] -= 1

    async def renew_once(self) -> int:
        """Renew all held leases in one command; return the number of lost ones."""
        leases = list(self._held.values())
        if not leases:
            return 0
        asked_at = self._now()
        keys = [lease.key for lease in leases]
        # No longer than a lease: a later answer would say nothing about the present.
        kept = await self._ledger(renew(keys, self._seconds), patience=self._seconds / 2)
        for lease, alive in zip(leases, kept, strict=True):
            lease.expires = asked_at + self._seconds if alive else 0.0
        return sum(
            not alive and not lease.settling for lease, alive in zip(leases, kept, strict=True)
        )

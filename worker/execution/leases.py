"""The leases this process holds, and their renewal in bulk."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from regworker.clock import steady
from regworker.ledger import AsyncLedger
from regworker.ledger.records import Claim
from regworker.ledger.transitions import renew


class Lease:
    """One lease. Check `alive()` before anything is sent to the provider."""

    __slots__ = ("_now", "expires", "fence", "job_id", "settling")

    def __init__(self, job_id: str, fence: int, expires: float, now: Callable[[], float]) -> None:
        self.job_id = job_id
        self.fence = fence
        self.expires = expires
        self.settling = False
        """The settle that ends it is under way: the server may already have removed it."""
        self._now = now

    def alive(self) -> bool:
        """Whether the server surely still holds the lease."""
        return self._now() < self.expires


class Leases:
    """All leases of this process. They expire by themselves while the ledger cannot be reached."""

    def __init__(
        self, ledger: AsyncLedger, seconds: float, now: Callable[[], float] = steady
    ) -> None:
        self._ledger = ledger
        self._seconds = seconds
        self._now = now
        self._held: dict[tuple[str, int], Lease] = {}

    def now(self) -> float:
        """The clock of leases: read it before a claim is sent."""
        return self._now()

    @contextmanager
    def hold(self, claim: Claim, asked_at: float) -> Iterator[Lease]:
        """Keep a claim's lease renewed. `asked_at`: `now()` from before the claim was sent.

        Counted from then, so that the lease never seems to last longer here than at the server.
        """
        key = (claim.id, claim.record.fence)
        lease = self._held[key] = Lease(*key, asked_at + self._seconds, self._now)
        try:
            yield lease
        finally:
            self._held.pop(key, None)

    async def renew_once(self) -> int:
        """Renew all held leases in one command; return the number of lost ones."""
        leases = list(self._held.values())
        if not leases:
            return 0
        asked_at = self._now()
        keys = [(lease.job_id, lease.fence) for lease in leases]
        # No longer than a lease: a later answer would say nothing about the present.
        kept = await self._ledger(renew(keys, self._seconds), patience=self._seconds / 2)
        for lease, alive in zip(leases, kept, strict=True):
            lease.expires = asked_at + self._seconds if alive else 0.0
        return sum(
            not alive and not lease.settling for lease, alive in zip(leases, kept, strict=True)
        )

    def __len__(self) -> int:
        return len(self._held)

"""The leases this process holds, and their renewal in bulk."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from worker.clock import steady
from worker.ledger import AsyncLedger
from worker.ledger.commands import renew
from worker.ledger.records import Claim


class Lease:
    """One lease. `alive()` must be asked before anything leaves for the provider."""

    __slots__ = ("_now", "expires", "fence", "job_id", "settling")

    def __init__(self, job_id: str, fence: int, expires: float, now: Callable[[], float]) -> None:
        self.job_id = job_id
        self.fence = fence
        self.expires = expires
        self.settling = False
        """Its settle is under way, which ends it: then the server may say that it is gone."""
        self._now = now

    def alive(self) -> bool:
        """Whether the lease surely still holds at the server."""
        return self._now() < self.expires


class Leases:
    """All leases of this process. They end by themselves when the ledger is out of reach."""

    def __init__(
        self, ledger: AsyncLedger, seconds: float, now: Callable[[], float] = steady
    ) -> None:
        self._ledger = ledger
        self._seconds = seconds
        self._now = now
        self._held: dict[tuple[str, int], Lease] = {}

    def now(self) -> float:
        """The time leases are measured by: note it before a claim is sent."""
        return self._now()

    @contextmanager
    def hold(self, claim: Claim, asked_at: float) -> Iterator[Lease]:
        """Keep a claim's lease renewed. `asked_at`: `now()` from before the claim was sent.

        Counted from then, so that here it never seems to last longer than at the server.
        """
        key = (claim.id, claim.record.fence)
        lease = self._held[key] = Lease(*key, asked_at + self._seconds, self._now)
        try:
            yield lease
        finally:
            self._held.pop(key, None)

    async def renew_once(self) -> int:
        """Renew all that are held, in one command; the number of leases lost."""
        leases = list(self._held.values())
        if not leases:
            return 0
        asked_at = self._now()
        keys = [(lease.job_id, lease.fence) for lease in leases]
        # No longer than a lease: an answer past that says nothing of now.
        kept = await self._ledger(renew(keys, self._seconds), patience=self._seconds / 2)
        for lease, alive in zip(leases, kept, strict=True):
            lease.expires = asked_at + self._seconds if alive else 0.0
        return sum(
            not alive and not lease.settling for lease, alive in zip(leases, kept, strict=True)
        )

    def __len__(self) -> int:
        return len(self._held)

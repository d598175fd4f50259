"""Servers that sent unrequested bytes: recorded for all workers, until an operator trusts them
again.

With HTTP/1.1, such an answer cannot be distinguished from ours if it arrives after the next request
was written. So a server that ever sent one gets a new connection for each call.
"""

import asyncio
from collections.abc import Callable
from functools import partial

import structlog

from regworker.ledger import AsyncLedger
from regworker.ledger.admin import stray
from regworker.ledger.endpoints import endpoint_key
from regworker.ledger.records import Claim
from regworker.ledger.transitions import account_key
from regworker.way_out import WayOut
from worker.monitoring.metrics import Meter
from worker.providers.base import Send
from worker.providers.http import HttpTransport

log = structlog.get_logger(__name__)


class StrayAnswers:
    """Records stray answers. They count in this process at once, also while the ledger is away."""

    def __init__(self, ledger: AsyncLedger, meter: Meter) -> None:
        self._ledger = ledger
        self._meter = meter
        self._unwritten: set[str] = set()
        self._news = asyncio.Event()

    def account(self, provider: str, account: str) -> None:
        """An account's server sent unrequested bytes."""
        self._note("account", f"{provider}/{account}", account_key(provider, account))

    def endpoint(self, name: str) -> None:
        """An endpoint's server did."""
        self._note("endpoint", name, endpoint_key(name))

    def unwritten(self, key: str) -> bool:
        """Whether the ledger does not know yet what this process has seen."""
        return key in self._unwritten

    async def write_once(self) -> float:
        """Write the recorded answers; wait if there are none."""
        await self._news.wait()
        while self._unwritten:
            key = next(iter(self._unwritten))
            await self._ledger(stray(key), patience=60)
            self._unwritten.discard(key)
        self._news.clear()
        return 0.0

    def _note(self, kind: str, name: str, key: str) -> None:
        self._meter.strays.add(kind, name)
        log.warning("stray answer", alert="stray", kind=kind, who=name)
        self._unwritten.add(key)
        self._news.set()


class AttemptSender:
    """Makes the `Send` of one attempt: on a new connection for accounts that sent a stray
    answer."""

    def __init__(
        self,
        transport: HttpTransport,
        strays: StrayAnswers,
        way: Callable[[tuple[str, str]], WayOut],
    ) -> None:
        """`way`: the route of an account's connections."""
        self._transport = transport
        self._strays = strays
        self._way = way

    def sender(self, claim: Claim, may_send: Callable[[], bool], budget: float) -> Send:
        """As `HttpTransport.sender`."""
        provider, account = claim.record.provider, claim.record.account
        return self._transport.sender(
            may_send,
            budget,
            partial(self._strays.account, provider, account),
            fresh=claim.stray or self._strays.unwritten(account_key(provider, account)),
            way=self._way((provider, account)),
        )

"""How long the ledger's clients wait while its server is away."""

import asyncio
import random
from collections.abc import Callable
from typing import Never

import pytest
from redis.exceptions import ConnectionError  # noqa: A004

from regworker.domain.errors import LedgerUnavailable
from regworker.ledger import AsyncLedger, SyncLedger
from tests.doubles import differing

URL = "redis://127.0.0.1:1/0"


class Clock:
    """A time that passes only in pauses."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        """The time in seconds."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Pause."""
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clients' clock; each of their pauses is as long as it can be."""
    made = Clock()

    async def sleep(seconds: float) -> None:
        made.sleep(seconds)

    monkeypatch.setattr("regworker.ledger.client.time", made)
    monkeypatch.setattr("regworker.ledger.client.asyncio", differing(asyncio, sleep=sleep))
    longest = differing(random, uniform=lambda _, most: most)
    monkeypatch.setattr("regworker.ledger.client.random", longest)
    return made


def sync_client(patience: float) -> None:
    """Wait with the client for threads."""

    def away() -> Never:
        raise ConnectionError("away")

    ledger = SyncLedger(URL)
    try:
        ledger.patiently(away, patience)
    finally:
        ledger.close()


def async_client(patience: float) -> None:
    """Wait with the client for loops."""

    async def away() -> Never:
        raise ConnectionError("away")

    async def wait() -> None:
        ledger = AsyncLedger(URL)
        try:
            await ledger.patiently(away, patience)
        finally:
            await ledger.aclose()

    asyncio.run(wait())


@pytest.mark.parametrize("wait", [sync_client, async_client])
@pytest.mark.parametrize("patience", [0.0, 0.06, 0.25, 4.0])
def test_no_pause_ends_after_the_callers_time_limit(
    clock: Clock, wait: Callable[[float], None], patience: float
) -> None:
    """A client that cannot try again in time raises at once."""
    with pytest.raises(LedgerUnavailable, match="away"):
        wait(patience)
    assert clock.now <= patience

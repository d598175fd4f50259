"""Carries out a core's steps: `SyncShell` in a thread, `AsyncShell` in an event loop."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any, TypeVar

from regworker.core import Given, ProducerCore, batches, late
from regworker.domain.errors import LedgerUnavailable
from regworker.domain.receipt import Receipt, Refused
from regworker.ledger import AsyncLedger, SyncLedger
from regworker.ledger.client import login_errors
from regworker.ledger.endings import Endings
from regworker.ledger.steps import Step, Steps, carry, carry_async
from regworker.ledger.transitions import done_channel
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from regworker.tracing import span

T = TypeVar("T")

#: Seconds between checks of a job while `wait` listens for its end: the message may get lost.
LOOK_AGAIN = 1.0

#: The same for a loop in which thousands may wait, and learn when their connection is lost.
LOOK_AGAIN_ASYNC = 15.0


_LATE = "the ledger did not answer within {:g} s"


class SyncShell:
    """Carries out steps by blocking. Thread-safe."""

    def __init__(self, settings: Settings, timeout: float) -> None:
        self.core = ProducerCore(settings)
        self._timeout = timeout
        self._ledger = SyncLedger(settings.redis_url)
        self._closed = False

    def enqueue_many(
        self, jobs: Iterable[Given], timeout: float | None
    ) -> Iterator[Receipt | Refused]:
        """Accept jobs, one batch each time that the results of the last one are used up."""
        for batch in batches(jobs):
            with span("queue.publish", "registrations.enqueue"):
                results = self.carry(self.core.accept(batch), timeout)
            yield from results

    def enqueue_each(
        self, jobs: Iterable[Given], timeout: float | None, _away: object
    ) -> Iterator[Receipt | Refused]:
        """As `SyncShells.enqueue_each`: there is no other ledger."""
        return self.enqueue_many(jobs, timeout)

    @login_errors()
    def wait(self, id_: str, timeout: float) -> dict[str, Any]:
        """Wait for a job's end; return its event."""
        self._open()
        end = time.monotonic() + timeout
        listener = self._ledger.listener()
        try:
            self._ledger.patiently(
                lambda: listener.subscribe(done_channel(id_)), max(LOOK_AGAIN, timeout)
            )
            while True:
                # At least once, and long enough to distinguish a slow job from a ledger that is
                # away.
                limit = max(LOOK_AGAIN, end - time.monotonic())
                status = self.carry(self.core.status(id_), limit)
                if status.final and status.event is not None:
                    return status.event
                left = end - time.monotonic()
                if left <= 0:
                    raise late(status, timeout)
                self._ledger.patiently(
                    lambda left=left: listener.get_message(timeout=min(left, LOOK_AGAIN)),  # type: ignore[misc]
                    left,
                )
        finally:
            listener.close()

    def about(self, _id: str, steps: Steps[T], timeout: float | None = None) -> T:
        """Carry out steps about one job."""
        return self.carry(steps, timeout)

    @login_errors()
    def carry(self, steps: Steps[T], timeout: float | None = None) -> T:
        """Carry out steps within `timeout` seconds in total; default: that of the constructor."""
        self._open()
        limit = self._timeout if timeout is None else timeout
        if limit <= 0:
            raise LedgerUnavailable(_LATE.format(limit))
        end = time.monotonic() + limit

        def do(step: Step) -> Any:
            return self._ledger.carry(step, max(0.0, end - time.monotonic()))

        return carry(steps, do)

    def close(self) -> None:
        """Close all connections for good: those in use as soon as their calls have ended."""
        self._closed = True
        self._ledger.close()

    def _open(self) -> None:
        if self._closed:
            raise LedgerUnavailable("this Producer is closed")


class AsyncShell:
    """Carries out steps in one loop: one connection for all commands, another for all that wait."""

    def __init__(self, settings: Settings, timeout: float, keyring: Keyring | None = None) -> None:
        """`keyring`: as for `ProducerCore`."""
        self.core = ProducerCore(settings, keyring)
        self._timeout = timeout
        self.ledger = AsyncLedger(settings.redis_url)
        self._endings = Endings(self.ledger.redis)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    async def enqueue_many(
        self,
        jobs: Iterable[Given],
        timeout: float | None,  # noqa: ASYNC109 -- a host's word
    ) -> AsyncIterator[Receipt | Refused]:
        """Accept jobs, one batch each time that the results of the last one are used up."""
        for batch in batches(jobs):
            with span("queue.publish", "registrations.enqueue"):
                results = await self.carry(self.core.accept(batch), timeout)
            for result in results:
                yield result

    async def wait(self, id_: str, timeout: float) -> dict[str, Any]:  # noqa: ASYNC109
        """Wait for a job's end; return its event, which is empty without keys to open it."""
        loop = self._own_loop()
        end = loop.time() + timeout
        async with self._endings.of(done_channel(id_)) as heard:
            while True:
                await heard(min(LOOK_AGAIN_ASYNC, end - loop.time()))
                limit = max(LOOK_AGAIN, end - loop.time())
                status = await self.carry(self.core.status(id_), limit)
                if status.final and (status.event is not None or not self.core.opens):
                    return status.event or {}
                if loop.time() >= end:
                    raise late(status, timeout)

    async def about(self, _id: str, steps: Steps[T], timeout: float | None = None) -> T:  # noqa: ASYNC109
        """Carry out steps about one job."""
        return await self.carry(steps, timeout)

    async def carry(self, steps: Steps[T], timeout: float | None = None) -> T:  # noqa: ASYNC109
        """Carry out steps within `timeout` seconds in total; default: that of the constructor.

        If it is cancelled, steps that were sent may or may not have been carried out.
        """
        self._own_loop()
        limit = self._timeout if timeout is None else timeout
        try:
            with login_errors():
                async with asyncio.timeout(limit):
                    return await carry_async(steps, lambda step: self.ledger.carry(step, limit))
        except TimeoutError:
            raise LedgerUnavailable(_LATE.format(limit)) from None

    async def aclose(self) -> None:
        """Close all connections for good: calls under way end with `LedgerUnavailable`."""
        self._closed = True
        await self._endings.aclose()
        await self.ledger.aclose()

    def _own_loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if self._closed:
            raise LedgerUnavailable("this AsyncProducer is closed")
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise RuntimeError(
                "this AsyncProducer belongs to another event loop: its connections cannot be used "
                "in this one. Create one in each loop"
            )
        return loop

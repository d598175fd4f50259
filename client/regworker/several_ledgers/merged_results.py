"""Reads the results streams of several ledgers at a time."""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import CancelledError
from typing import Any, Generic, Protocol, TypeVar

from redis.exceptions import RedisError

from regworker.clock import steady
from regworker.domain.errors import LedgerUnavailable, RegistrationWorkerError
from regworker.ledger.client import FIRST_PAUSE, LAST_PAUSE
from regworker.membership import BLOCK

T = TypeVar("T")

log = logging.getLogger(__name__)

#: Seconds for a fetch, at least: one of a moment would only start it.
SHORTEST = 0.05

#: Seconds in which fetches end that began before a consumer was closed: longer than one blocking
#: read, so that none of the entries that it gets stays with a consumer that has gone.
LAST = 2 * BLOCK


class FetchingReader(Protocol):
    """Reads one stream, and keeps a page of it."""

    @property
    def ledger(self) -> str:
        """The name of its ledger."""

    @property
    def ready(self) -> bool:
        """Whether an entry can be given out."""

    async def fetch(self, patience: float) -> None:
        """Get a page, or keep the present one from being delivered again."""


R = TypeVar("R", bound=FetchingReader)


class Merged(Generic[R]):
    """Fetches from all readers at a time. A fetch goes on after the call that started it."""

    def __init__(self, readers: Iterable[R]) -> None:
        self.stopping = False
        self._readers = deque(readers)
        self._fetches: dict[R, asyncio.Task[None]] = {}
        self._faulty: dict[R, Exception] = {}
        """Readers whose ledgers answer with an error that waiting does not end."""

    async def ready(self, patience: float) -> R | None:
        """A reader with an entry, in turn; None if none comes within `patience` seconds.

        Raises a ledger's error if all are faulty.
        """
        end = steady() + max(patience, SHORTEST)
        while not self.stopping:
            for reader in tuple(self._readers):
                if (fetch := self._fetches.get(reader)) is not None:
                    if not fetch.done():
                        continue
                    self._fetches.pop(reader).result()
                if len(self._faulty) == len(self._readers):
                    fault = self._faulty[reader]
                    self._faulty.clear()
                    raise fault
                if reader.ready:
                    self._readers.remove(reader)
                    self._readers.append(reader)
                    return reader
                self._fetches[reader] = asyncio.create_task(self._fetch(reader))
            if (left := end - steady()) <= 0:
                break
            await asyncio.wait(
                self._fetches.values(), timeout=left, return_when=asyncio.FIRST_COMPLETED
            )
        return None

    async def _fetch(self, reader: R) -> None:
        pause = FIRST_PAUSE
        while not self.stopping:
            try:
                await reader.fetch(BLOCK)
            except (RedisError, RegistrationWorkerError) as error:
                if reader not in self._faulty:
                    log.warning("no results of the ledger %s: %s; retrying", reader.ledger, error)
                self._faulty[reader] = error
                if len(self._faulty) == len(self._readers):
                    return
            else:
                if self._faulty.pop(reader, None) is not None:
                    log.warning("the ledger %s answers again", reader.ledger)
                return
            await asyncio.sleep(pause)
            pause = min(LAST_PAUSE, pause * 2)

    async def aclose(self) -> None:
        """Wait until no fetch is under way."""
        self.stopping = True
        if not self._fetches:
            return
        _, pending = await asyncio.wait(self._fetches.values(), timeout=LAST)
        for fetch in pending:
            fetch.cancel()
        await asyncio.gather(*self._fetches.values(), return_exceptions=True)


class LoopThread:
    """An event loop in a thread, which both begin with the first call: after a fork, loops would
    share what they are waked with."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="regworker-results", daemon=True)
        self._lock = threading.Lock()
        self._closed = False

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Carry it out there; return its result. `LedgerUnavailable` once the thread is closed."""
        with self._lock:
            if self._closed:
                work.close()
                raise LedgerUnavailable(_CLOSED)
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread.start()
            done = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return done.result()
        except BaseException as error:
            done.cancel()
            if self._closed and isinstance(error, CancelledError):
                raise LedgerUnavailable(_CLOSED) from None
            raise

    def close(self, farewell: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Carry out `farewell`, cancel all calls that are left, and end the thread; once."""
        with self._lock:
            closed, self._closed = self._closed, True
        if closed or self._loop is None:
            return
        try:
            asyncio.run_coroutine_threadsafe(_last(farewell), self._loop).result()
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _run(self) -> None:
        assert self._loop is not None  # noqa: S101 -- for the type checker
        self._loop.run_forever()


_CLOSED = "this ResultConsumer is closed"


async def _last(farewell: Callable[[], Coroutine[Any, Any, None]]) -> None:
    try:
        await farewell()
    finally:
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

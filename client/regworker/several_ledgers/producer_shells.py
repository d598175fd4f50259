"""A producer's jobs in several ledgers: each account's jobs are in one of them.

A layer above the shells of single ledgers (`carriers.py`), used only where the settings name more
than one ledger. No command goes to two ledgers, except the question where a job is: its id does not
say that.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from pydantic import TypeAdapter
from redis.exceptions import RedisError

from regworker.carriers import LOOK_AGAIN, AsyncShell, SyncShell
from regworker.core import Given, ProducerCore, batches, record_of
from regworker.domain.errors import LedgerUnavailable, RegistrationWorkerError, SettingsError
from regworker.domain.job import Job, Name
from regworker.domain.receipt import Receipt, Refused
from regworker.ledger.steps import Steps, carry, carry_async
from regworker.settings import Settings, variable
from regworker.settings.account_ledgers import MAIN, AccountLedgers
from regworker.tracing import span

T = TypeVar("T")

Batch = list[tuple[int, Given]]

#: What a ledger does if it is away, has no worker, refuses the password, ...: of one of several
#: ledgers it is a value, so that the others go on.
FAULTS = (RegistrationWorkerError, RedisError)
Fault = RegistrationWorkerError | RedisError

Away = dict[str, Fault]
"""Ledgers that are not asked again in the same call, and why."""

Result = Receipt | Refused | Fault

#: A name as the job will have it: pydantic takes an enum's member or bytes for text, too.
_NAME: TypeAdapter[str] = TypeAdapter(Name)

#: Jobs of which a producer remembers the ledger. A record of this takes 150 bytes.
REMEMBERED = 10_000

#: Seconds for which each ledger is asked about a job at first, so that one that is away does not
#: use up the time in which another would answer.
FIRST_LOOK = 0.5


class Routes:
    """Where jobs belong, and where they were: the rules, without input or output."""

    def __init__(self, settings: Settings) -> None:
        self._of = AccountLedgers(settings.account_ledgers).of
        self._names = (settings.ledger, *settings.ledgers)
        self._young: dict[str, str] = {}
        self._old: dict[str, str] = {}

    def split(self, batch: Batch) -> dict[str, Batch]:
        """A batch's jobs by their ledgers."""
        found: dict[str, Batch] = {}
        for one in batch:
            found.setdefault(self._ledger(one[1]), []).append(one)
        return found

    def merge(
        self, parts: Mapping[str, Batch], answers: Sequence[list[Receipt | Refused] | Fault]
    ) -> list[Result]:
        """The results of all parts in the order of the batch."""
        results: dict[int, Result] = {}
        for (name, part), answer in zip(parts.items(), answers, strict=True):
            if isinstance(answer, FAULTS):
                results.update((number, answer) for number, _ in part)
                continue
            for (number, _), result in zip(part, answer, strict=True):
                results[number] = result
                if isinstance(result, Receipt):
                    self.remember(result.job_id, name)
        return [results[number] for number in sorted(results)]

    def remember(self, id_: str, name: str) -> None:
        """Keep the ledger of a job; the oldest are forgotten."""
        if len(self._young) >= REMEMBERED // 2:
            self._old, self._young = self._young, {}
        self._young[id_] = name

    def find(self, id_: str, timeout: float) -> Generator[Any, Any, str]:
        """Find a job's ledger. Yields a ledger and the seconds in which to ask it for the job.

        Expects whether the job is there, or the ledger's error, which is raised if the job is in
        none of the others. If it is in none, this returns
        `main`, whose answer is then that of any ledger without it.
        """
        if (known := self._young.get(id_) or self._old.get(id_)) is not None:
            return known
        end, patience = time.monotonic() + timeout, FIRST_LOOK
        left, faults = list(self._names), dict[str, Fault]()
        while True:
            for name in left:
                answer = yield name, max(0.0, min(patience, end - time.monotonic()))
                if isinstance(answer, FAULTS):
                    faults[name] = answer
                elif answer:
                    self.remember(id_, name)
                    return name
                else:
                    faults.pop(name, None)
            if not faults:
                return MAIN
            # Only a ledger that is away may answer otherwise if it is asked for longer.
            left = [name for name, one in faults.items() if isinstance(one, LedgerUnavailable)]
            if not left or patience >= timeout:
                raise next(iter(faults.values()))
            patience = 2 * patience

    def _ledger(self, given: Given) -> str:
        if isinstance(given, Job):
            return self._of(given.provider, given.account)
        if not isinstance(given, Mapping):
            return MAIN  # is refused there, as anywhere
        try:
            provider, account = given.get("provider"), given.get("account", "default")
            return self._of(_NAME.validate_python(provider), _NAME.validate_python(account))
        except Exception:  # noqa: BLE001 -- a mapping of the host's own raises anything
            return MAIN


class SyncShells:
    """The shells of all ledgers, as one `SyncShell`."""

    def __init__(self, settings: Settings, timeout: float) -> None:
        self.core = ProducerCore(settings)
        self._timeout = timeout
        self._routes = Routes(settings)
        self._shells = {
            name: SyncShell(one, timeout) for name, one in settings.each_ledger().items()
        }

    def enqueue_many(
        self, jobs: Iterable[Given], timeout: float | None
    ) -> Iterator[Receipt | Refused]:
        """As `SyncShell.enqueue_many`. While a ledger is away, the others accept their jobs.

        After the first job without a result there are no others: they would be in its place. The
        other ledgers get their jobs nevertheless; in the end the error is raised.
        """
        fault: Fault | None = None
        for result in self.enqueue_each(jobs, timeout, {}):
            if isinstance(result, FAULTS):
                fault = fault or result
            elif fault is None:
                yield result
        if fault is not None:
            raise fault

    def enqueue_each(
        self, jobs: Iterable[Given], timeout: float | None, away: Away
    ) -> Iterator[Result]:
        """A result for each job, or the error of its ledger. Raises if no ledger is left to ask.

        `away`: ledgers that are not asked; each that does not accept its jobs is added.
        """
        for batch in batches(jobs):
            parts = self._routes.split(batch)
            with span("queue.publish", "registrations.enqueue"):
                answers = [self._accept(*part, timeout, away) for part in parts.items()]
            yield from self._routes.merge(parts, answers)
            if len(away) == len(self._shells):
                raise next(iter(away.values()))

    def wait(self, id_: str, timeout: float) -> dict[str, Any]:
        """As `SyncShell.wait`."""
        end = time.monotonic() + timeout
        name = self._find(id_, max(LOOK_AGAIN, timeout))
        with _named(name):
            return self._shells[name].wait(id_, max(0.0, end - time.monotonic()))

    def about(self, id_: str, steps: Steps[T], timeout: float | None = None) -> T:
        """As `SyncShell.about`."""
        limit = self._timeout if timeout is None else timeout
        end = time.monotonic() + limit
        name = self._find(id_, limit)
        with _named(name):
            return self._shells[name].carry(steps, max(0.0, end - time.monotonic()))

    def close(self) -> None:
        """Close all connections."""
        for shell in self._shells.values():
            shell.close()

    def _accept(
        self, name: str, part: Batch, timeout: float | None, away: Away
    ) -> list[Receipt | Refused] | Fault:
        if name not in away:
            try:
                with _named(name):
                    return self._shells[name].carry(self.core.accept(part), timeout)
            except FAULTS as error:
                away[name] = error
        return away[name]

    def _find(self, id_: str, timeout: float) -> str:
        def ask(question: Any) -> bool | Fault:
            name, patience = question
            try:
                with _named(name):
                    return self._shells[name].carry(_has(id_), patience)
            except FAULTS as error:
                return error

        return carry(self._routes.find(id_, timeout), ask)


class AsyncShells:
    """The shells of all ledgers, as one `AsyncShell`."""

    def __init__(self, settings: Settings, timeout: float) -> None:
        self.core = ProducerCore(settings)
        self._timeout = timeout
        self._routes = Routes(settings)
        self._shells = {
            name: AsyncShell(one, timeout) for name, one in settings.each_ledger().items()
        }

    async def enqueue_many(
        self,
        jobs: Iterable[Given],
        timeout: float | None,  # noqa: ASYNC109 -- a host's word
    ) -> AsyncIterator[Receipt | Refused]:
        """As `SyncShells.enqueue_many`, with all ledgers at a time."""
        away: Away = {}
        fault: Fault | None = None
        for batch in batches(jobs):
            parts = self._routes.split(batch)
            with span("queue.publish", "registrations.enqueue"):
                answers = await asyncio.gather(
                    *(self._accept(*part, timeout, away) for part in parts.items())
                )
            for result in self._routes.merge(parts, answers):
                if isinstance(result, FAULTS):
                    fault = fault or result
                elif fault is None:
                    yield result
            if len(away) == len(self._shells):
                break
        if fault is not None:
            raise fault

    async def wait(self, id_: str, timeout: float) -> dict[str, Any]:  # noqa: ASYNC109
        """As `AsyncShell.wait`."""
        end = time.monotonic() + timeout
        name = await self._find(id_, max(LOOK_AGAIN, timeout))
        with _named(name):
            return await self._shells[name].wait(id_, max(0.0, end - time.monotonic()))

    async def about(self, id_: str, steps: Steps[T], timeout: float | None = None) -> T:  # noqa: ASYNC109
        """As `AsyncShell.about`."""
        limit = self._timeout if timeout is None else timeout
        end = time.monotonic() + limit
        name = await self._find(id_, limit)
        with _named(name):
            return await self._shells[name].carry(steps, max(0.0, end - time.monotonic()))

    async def aclose(self) -> None:
        """Close all connections for good: calls under way end with `LedgerUnavailable`."""
        await asyncio.gather(*(shell.aclose() for shell in self._shells.values()))

    async def _accept(
        self,
        name: str,
        part: Batch,
        timeout: float | None,  # noqa: ASYNC109
        away: Away,
    ) -> list[Receipt | Refused] | Fault:
        if name not in away:
            try:
                with _named(name):
                    return await self._shells[name].carry(self.core.accept(part), timeout)
            except FAULTS as error:
                away[name] = error
        return away[name]

    async def _find(self, id_: str, timeout: float) -> str:  # noqa: ASYNC109
        async def ask(question: Any) -> bool | Fault:
            name, patience = question
            try:
                with _named(name):
                    return await self._shells[name].carry(_has(id_), patience)
            except FAULTS as error:
                return error

        return await carry_async(self._routes.find(id_, timeout), ask)


def sync_shell(settings: Settings, timeout: float) -> SyncShell | SyncShells:
    """Carries out a producer's steps, in the ledgers of the settings."""
    return (SyncShells if settings.ledgers else SyncShell)(settings, timeout)


def async_shell(settings: Settings, timeout: float) -> AsyncShell | AsyncShells:
    """The same for asyncio."""
    return (AsyncShells if settings.ledgers else AsyncShell)(settings, timeout)


def _has(id_: str) -> Steps[bool]:
    return (yield from record_of(id_)) is not None


@contextmanager
def _named(ledger: str) -> Iterator[None]:
    """Errors name the ledger, and its setting instead of that of `main`."""
    own = variable("redis_url") if ledger == MAIN else variable("ledgers", ledger, "redis_url")
    try:
        yield
    except LedgerUnavailable as error:
        error.args = (f"{ledger}: {str(error).replace(variable('redis_url'), own)}",)
        raise
    except RedisError as error:
        error.args = (f"{ledger}: {error}",)
        raise
    except SettingsError as error:
        renamed = {variable("redis_url"): own}
        raise SettingsError(
            (renamed.get(name, name), what) for name, what in error.problems
        ) from None

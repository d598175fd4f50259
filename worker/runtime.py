"""The composition root: settings become objects here, and concrete classes are named only here.

A process has one runtime, and a runtime one asyncio loop in a thread of its own for all I/O:
calls to providers, the ledger, webhooks. Task bodies run in Celery's threads, hand the loop a
coroutine and wait. Made lazily, so that a pool's child makes its own after the fork.
"""

import asyncio
import os
import socket
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import structlog
from celery import Celery
from redis.exceptions import BusyLoadingError

from worker import doctor
from worker.alarms import AlarmClock
from worker.announcer import Announcer
from worker.attempt import Attempts, Report, Rules
from worker.delivery import Deliveries
from worker.errors import SettingsError
from worker.leases import Leases
from worker.ledger import AsyncLedger
from worker.ledger.commands import ClaimRules, SettleRules
from worker.ledger.operations import Limits, announce
from worker.providers.registry import Accounts, Registry
from worker.providers.transport import Transport
from worker.publishers.base import Publisher
from worker.publishers.webhook import WebhookPublisher
from worker.retry import Backoff
from worker.sealing import Keyring
from worker.settings import Settings, WebhookEndpoint, variable
from worker.telemetry import configure_sentry
from worker.wakeups import Wakeups

T = TypeVar("T")

log = structlog.get_logger(__name__)

#: Seconds between looks after a look failed: the ledger is away, and has been waited for already.
AFTER_FAULT = 1.0


class Runtime:
    """All of a worker process but Celery. Raises `SettingsError` where it cannot be built."""

    def __init__(self, settings: Settings, app: Celery) -> None:
        self.settings = settings
        self._registry = Registry(settings.providers)
        self._accounts = Accounts(self._registry, settings.accounts)
        self._keyring = Keyring.parse(settings.sealing_keys.get_secret_value())
        self._publishers: dict[str, Publisher] = {
            name: WebhookPublisher(endpoint)
            for name, endpoint in settings.endpoints.items()
            if isinstance(endpoint, WebhookEndpoint)
        }
        self.ledger = AsyncLedger(settings.redis_url)
        self.wake = Wakeups(app)
        self._transport = Transport(user_timeout=settings.call_budget)
        self._leases = Leases(self.ledger, settings.lease)
        self._attempts = Attempts(
            self.ledger,
            self._leases,
            self._registry,
            self._accounts,
            self._keyring,
            Announcer(settings, self._keyring),
            self._transport,
            _rules(settings),
        )
        self._deliveries = Deliveries(self.ledger, self._keyring, self._publishers)
        self._clock = AlarmClock(self.ledger, self.wake, settings.clock_period)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="io", daemon=True)
        self._beats: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start the loop, announce what this worker serves, renew leases, ring alarms."""
        self._thread.start()
        self._run(self._start())

    def attempt(self, job_id: str) -> Report:
        """Attempt a job; blocks the calling thread, not the loop."""
        report = self._run(self._attempts(job_id))
        self.wake(report.wakes)
        return report

    def deliver(self, member: str) -> str:
        """Try a delivery; blocks the calling thread, not the loop."""
        return self._run(self._deliveries(member))

    def stop(self) -> None:
        """End the loops and close all connections."""
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _examine(self) -> None:
        """Refuse a server that would lose jobs, saying what to change."""
        info = await self.ledger.patiently(self._loaded)
        for finding in doctor.server(info):
            if finding.level == "unsafe" and not self.settings.allow_unsafe:
                what = f"{finding.subject}: {finding.found}; {finding.advice}"
                raise SettingsError([(variable("redis_url"), what)])

    async def _loaded(self) -> dict[str, Any]:
        info: dict[str, Any] = await self.ledger.redis.info()
        if int(info.get("loading", 0)):
            # While it reads its append-only file, a server says that it has none.
            raise BusyLoadingError("the server is loading its data")
        return info

    async def _start(self) -> None:
        await self._examine()
        endpoints = {"results", *self.settings.endpoints}
        await self.ledger(announce([_limits(*one) for one in self._accounts], sorted(endpoints)))
        renewal = self.settings.lease_renewal

        async def renew() -> float:
            if lost := await self._leases.renew_once():
                log.warning("leases lost", count=lost)
            return renewal

        self._beats = [
            asyncio.ensure_future(_forever(turn)) for turn in (renew, self._clock.ring_once)
        ]

    async def _stop(self) -> None:
        for beat in self._beats:
            beat.cancel()
        await asyncio.gather(*self._beats, return_exceptions=True)
        await self._transport.aclose()
        for publisher in self._publishers.values():
            await publisher.aclose()
        await self.ledger.aclose()


async def _forever(turn: Callable[[], Awaitable[float]]) -> None:
    """Turn after turn; each says how long to wait for the next. No fault ends it."""
    while True:
        try:
            pause = await turn()
        except Exception as error:
            log.exception("a loop's turn failed", error=type(error).__name__)
            pause = AFTER_FAULT
        await asyncio.sleep(pause)


def _rules(settings: Settings) -> Rules:
    return Rules(
        claim=ClaimRules(
            worker=f"{socket.gethostname()}:{os.getpid()}",
            lease=settings.lease,
            settle_delay=settings.settle_delay,
            max_attempts=settings.max_attempts,
            probe=settings.call_budget,
        ),
        settle=SettleRules(
            settle_delay=settings.settle_delay,
            breaker_threshold=settings.breaker_threshold,
            breaker_pause=settings.breaker_pause,
            retention=settings.retention,
        ),
        backoff=Backoff(settings.retry_base, settings.retry_cap),
        budget=settings.call_budget,
    )


def _limits(provider: str, account: str, values: Any) -> Limits:
    # GCRA: a call costs an interval, and a tenth of the period may be used up at once.
    interval = values.rate_period / values.rate * 1000 if values.rate else 0.0
    burst = values.rate_period * 100 if values.rate else 0.0
    return Limits(provider, account, interval, burst, values.max_in_flight)


_runtime: Runtime | None = None
_lock = threading.Lock()


def runtime(app: Celery) -> Runtime:
    """This process's runtime, made and started when first asked for."""
    global _runtime
    with _lock:
        if _runtime is None:
            settings = Settings.load()
            configure_sentry(settings)
            made = Runtime(settings, app)
            made.start()
            _runtime = made
        return _runtime


def shut_down() -> None:
    """Stop this process's runtime, if there is one."""
    global _runtime
    with _lock:
        if _runtime is not None:
            _runtime.stop()
            _runtime = None


def _forget() -> None:
    # A child has none of its parent's threads: its loop is a new one.
    global _runtime, _lock
    _runtime, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget)

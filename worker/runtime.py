"""The composition root: settings become objects here, and concrete classes are named only here.

A process has one runtime, and a runtime one asyncio loop in a thread of its own for all I/O:
calls to providers, the ledger, webhooks. Task bodies run in that loop, in greenlets (`bridge.py`,
`pool.py`), or in a thread of another pool of Celery's, which hands the loop a coroutine and waits.
Made lazily, so that a pool's child makes its own after the fork.
"""

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar, assert_never

import structlog
from celery import Celery
from redis.exceptions import BusyLoadingError

from worker import bridge, doctor
from worker.alarms import AlarmClock
from worker.announcer import Announcer
from worker.attempt import Attempts, Report, Rules
from worker.delivery import Deliveries
from worker.delivery import Rules as DeliveryRules
from worker.doors import Doors, Taken
from worker.entry import Origin, Request, read
from worker.errors import LedgerUnavailable, SettingsError
from worker.inbox import Inbox
from worker.intake import Intake
from worker.lanes import Turnstile
from worker.leases import Leases
from worker.ledger import AsyncLedger
from worker.ledger.commands import ClaimRules, SettleRules
from worker.ledger.endpoints import serve
from worker.ledger.operations import FORMAT, Limits, announce, format_
from worker.ledger.records import Wake
from worker.metrics import Meter
from worker.presence import Presence, own_name
from worker.providers.registry import Accounts, Registry
from worker.providers.transport import Transport
from worker.publishers.base import Publisher
from worker.publishers.queue import QueuePublisher
from worker.publishers.webhook import WebhookPublisher
from worker.quarantine import Parcel, Quarantine
from worker.retry import Backoff
from worker.sealing import Keyring
from worker.settings import QueueEndpoint, Settings, StreamEndpoint, WebhookEndpoint, variable
from worker.telemetry import configure_sentry, flush_sentry
from worker.trimming import StreamTrimmer
from worker.vitals import Vitals, consumer
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
        self._publishers = _publishers(settings, app)
        self._meter = Meter()
        self._vitals = Vitals(settings.health_patience, settings.call_budget, consumer())
        self.ledger = AsyncLedger(settings.redis_url, self._meter.ledger_seconds.add)
        self.wake = Wakeups(app, told=self._meter.woke)
        self._transport = Transport(user_timeout=settings.call_budget)
        self._leases = Leases(self.ledger, settings.lease)
        announcer = Announcer(settings, self._keyring)
        rules = _rules(settings)
        self.turnstile = Turnstile()
        self._attempts = Attempts(
            self.ledger,
            self._leases,
            self._registry,
            self._accounts,
            self._keyring,
            announcer,
            self._transport,
            rules,
            meter=self._meter,
            claimed=self.turnstile.passed,
        )
        self._doors = Doors(
            self.ledger,
            Intake(self._registry, self._keyring, settings.deadline),
            announcer,
            self._keyring,
            settings.retention,
            settings.require_sealed,
        )
        self._quarantine = Quarantine(settings)
        # A reader that is not heard of for as long as a lease lasts is as dead as its holder.
        self._inbox = Inbox(
            self.ledger,
            self._doors,
            self.wake,
            self._quarantine.keep,
            settings.redis_url,
            rules.claim.worker,
            settings.lease,
        )
        patience = {name: one.disable_after for name, one in settings.delivered().items()}
        self._deliveries = Deliveries(
            self.ledger,
            self._keyring,
            self._publishers,
            DeliveryRules(settings.source, patience),
            meter=self._meter,
        )
        self._clock = AlarmClock(self.ledger, self.wake, settings.clock_period)
        self._trimmer = StreamTrimmer(self.ledger, settings.streams().values())
        self._presence = Presence(self.ledger, self._leases, settings, self._meter, self._vitals)
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="io", daemon=True)
        self._beats: list[asyncio.Task[None]] = []
        self._to_wake: list[Wake] = []
        self._waking: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the loop, announce what this worker serves, renew leases, ring alarms."""
        self._thread.start()
        self._run(self._start())

    def attempt(self, job_id: str) -> Report:
        """Attempt a job; blocks the calling task, not the loop."""
        report = self._run(self._attempts(job_id))
        self._wake_soon(report.wakes)
        return report

    def deliver(self, member: str) -> str:
        """Try a delivery; blocks the calling task, not the loop."""
        report = self._run(self._deliveries(member))
        self._wake_soon(report.wakes)
        return report.text

    def take(self, request: Request, id_: str, argument: Any) -> str:
        """Take a request that came by a task; blocks the calling task, not the loop."""
        entry = read(request, argument, Origin("task", id_))
        taken = self._run(self._doors.take(entry, self._doors.check(entry)))
        assert isinstance(taken, Taken)  # noqa: S101 -- only one of the job stream can be early
        self._wake_soon(taken.wakes)
        return taken.what

    def set_aside(self, request: Request, id_: str, argument: Any, reason: str) -> None:
        """Put a request that came by a task into quarantine."""
        parcel = Parcel.of_task(f"registrations.{request}", id_, argument, reason)
        self._run(asyncio.to_thread(self._quarantine.keep, parcel))

    def stop(self) -> None:
        """End the loops and close all connections."""
        self._run(self._stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def pause(self, seconds: float) -> None:
        """Wait; blocks the calling task, not the loop."""
        self._run(asyncio.sleep(seconds))

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        with self._vitals.task():
            if bridge.carried():
                return bridge.wait(work)
            return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def _wake_soon(self, wakes: Iterable[Wake]) -> None:
        if not bridge.carried():
            self.wake(wakes)
            return
        self._to_wake.extend(wakes)
        if self._to_wake and (self._waking is None or self._waking.done()):
            self._waking = self.loop.create_task(self._publish())

    async def _publish(self) -> None:
        # kombu publishes synchronously. What is to be woken meanwhile is woken together.
        while wakes := self._to_wake:
            self._to_wake = []
            await asyncio.to_thread(self.wake, wakes)

    async def _examine(self) -> None:
        """Refuse a server that would lose jobs, saying what to change."""
        info = await self.ledger.patiently(self._loaded)
        for finding in doctor.server(info):
            if finding.level == "unsafe" and not self.settings.allow_unsafe:
                what = f"{finding.subject}: {finding.found}; {finding.advice}"
                raise SettingsError([(variable("redis_url"), what)])
        if (found := await self.ledger(format_())) > FORMAT:
            what = (
                f"the ledger's records are of form {found}, and this worker knows {FORMAT}: "
                "a newer version wrote them; install that here"
            )
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
        limits = [_limits(*one) for one in self._accounts]
        await self.ledger(announce(limits, sorted(endpoints), self.settings.streams()))
        # An endpoint that hangs must leave slots even to the only worker there is.
        most = max(1, self.settings.concurrency // 2)
        ends = self.settings.delivered().items()
        places = {name: min(one.max_in_flight, most) for name, one in ends}
        await self.ledger(serve(places, self.settings.dead_retention))
        renewal = self.settings.lease_renewal

        async def renew() -> float:
            if lost := await self._leases.renew_once():
                self._meter.leases_lost.add(n=lost)
                log.warning("leases lost", alert="leases", count=lost)
            self._vitals.mark("leases")
            return renewal

        async def ring() -> float:
            pause = await self._clock.ring_once()
            if self._clock.heard:
                self._vitals.mark("clock")
            return pause

        self._presence.serve()
        turns = (
            renew,
            ring,
            self._presence.beat_once,
            self._trimmer.trim_once,
            self._inbox.read_once,
        )
        self._beats = [asyncio.ensure_future(_forever(turn)) for turn in turns]

    async def _stop(self) -> None:
        await self._inbox.aclose()
        if self._waking is not None:
            await self._waking
        for beat in self._beats:
            beat.cancel()
        await asyncio.gather(*self._beats, return_exceptions=True)
        await self._presence.leave()
        await self._transport.aclose()
        for publisher in self._publishers.values():
            await publisher.aclose()
        self._quarantine.close()
        self.wake.close()
        await self.ledger.aclose()


async def _forever(turn: Callable[[], Awaitable[float]]) -> None:
    """Turn after turn; each says how long to wait for the next. No fault ends it."""
    while True:
        try:
            pause = await turn()
        except LedgerUnavailable as error:
            # Not ours to mend, and told once for each time it was waited for in vain.
            log.warning("a loop waits for the ledger", loop=turn.__qualname__, reason=str(error))
            pause = AFTER_FAULT
        except Exception:
            log.exception("a loop's turn failed", loop=turn.__qualname__)
            pause = AFTER_FAULT
        await asyncio.sleep(pause)


def _publishers(settings: Settings, app: Celery) -> dict[str, Publisher]:
    """What brings events to an endpoint, by its kind."""
    found: dict[str, Publisher] = {}
    for name, endpoint in settings.endpoints.items():
        match endpoint:
            case WebhookEndpoint():
                found[name] = WebhookPublisher(endpoint)
            case QueueEndpoint():
                found[name] = QueuePublisher(endpoint.queue, app.connection_for_write)
            case StreamEndpoint():
                pass  # written in the ledger's own scripts
            case _:
                assert_never(endpoint)
    return found


def _rules(settings: Settings) -> Rules:
    return Rules(
        claim=ClaimRules(
            worker=own_name(),
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
    if (made := _runtime) is not None:
        return made
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
            flush_sentry()


def _forget() -> None:
    # A child has none of its parent's threads: its loop is a new one.
    global _runtime, _lock
    _runtime, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget)

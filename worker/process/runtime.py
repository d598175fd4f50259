"""The composition root: settings become objects here, and concrete classes are named only here.

A process has one runtime, and a runtime one asyncio loop in a thread of its own for all I/O:
calls to providers, the ledger, webhooks. Task bodies run in that loop, in greenlets
(`greenlets.py`, `pool.py`).
"""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import redis.asyncio
import structlog
from celery import Celery
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    RedisError,
    ResponseError,
)

from regworker import addresses
from regworker.acceptance import Intake
from regworker.domain.errors import LedgerUnavailable, NotReplicated, SettingsError
from regworker.domain.pace import Pace
from regworker.domain.request import Origin, Request, read
from regworker.domain.retry import Backoff
from regworker.event_builder import EventBuilder
from regworker.ledger import AsyncLedger
from regworker.ledger.admin import FORMAT, Limits, format_, lacking, seals
from regworker.ledger.calls import scripts
from regworker.ledger.identity import IDENTITY, Memory, hidden
from regworker.ledger.replication import Wanted
from regworker.ledger.servers import WrongServer, async_client, close_idle
from regworker.ledger.snapshot import BrokerOf, repair
from regworker.ledger.transitions import ClaimRules, SettleRules
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings, variable
from worker.broker.broker_owner import KEPT, LOOK, BrokerOwner
from worker.broker.broker_url import same_place
from worker.broker.wake_relay import WakeRelay
from worker.broker.wakeups import Wakeups
from worker.execution.alarms import AlarmClock
from worker.execution.attempt import AttemptReport, AttemptRules, Attempts
from worker.execution.delivery import Deliveries, DeliveryRules
from worker.execution.distrusted_hosts import AttemptSender, StrayAnswers
from worker.execution.file_erasure import Eraser
from worker.execution.leases import Leases
from worker.execution.provider_access import ProviderAccess
from worker.execution.stream_retention import StreamTrimmer
from worker.intake.async_requests import AsyncRequests, RequestRules, Taken
from worker.intake.job_stream import JobStream, Reader
from worker.intake.quarantine import Quarantine, QuarantineEntry
from worker.monitoring import doctor, otlp_export
from worker.monitoring.heartbeat import Heartbeat, Service, own_name
from worker.monitoring.liveness import Liveness, consumer
from worker.monitoring.loop_watch import LoopWatch
from worker.monitoring.metrics import Meter
from worker.monitoring.server_info import look_async
from worker.monitoring.stop_watch import LATE, StopWatch
from worker.process import greenlets
from worker.process.endpoints import Endpoints
from worker.process.priorities import Turnstile
from worker.process.settings_reload import SettingsReload
from worker.providers.check import Checked, check
from worker.providers.http import HttpTransport
from worker.providers.registry import NO_JOB, Accounts, Registry
from worker.telemetry import configure_sentry, flush_sentry

T = TypeVar("T")

log = structlog.get_logger(__name__)

#: Seconds between turns after a failure: the ledger is away, and the turn has already waited for
#: it.
AFTER_FAULT = 1.0

#: Seconds for which a starting worker waits for the end of a failover: the old primary is a replica
#: by then, and the new primary's replicas follow it only after a while.
FOLLOWED = 10.0

#: Seconds between two corrections of the index of jobs: no worker spoils it.
CORRECTED = 60.0

#: Seconds to close everything. A queue's publisher takes up to 15 while its broker hangs.
CLOSED = 20.0

#: What to do about a broker that is another installation's.
ONE_BROKER = (
    "the broker belongs to workers with another ledger: each would take the other's messages. Give "
    f"it another broker (or database), or correct {variable('redis_url')}; the broker is free "
    f"{KEPT:g} s after the last of those workers has ended"
)

#: Seconds that the last steps have in any case.
AT_LEAST = 0.2

#: Seconds until a task that goes on is cancelled again.
AGAIN = 0.5


class Runtime:
    """A worker process except Celery. Raises `SettingsError` if it cannot be built."""

    def __init__(self, settings: Settings, app: Celery) -> None:
        self.settings = settings
        self._registry = Registry(settings.providers)
        self._accounts = Accounts(self._registry, settings.accounts, settings.way_out)
        self.keyring = Keyring.parse(settings.sealing_keys.get_secret_value())
        self._meter = Meter()
        self._liveness = Liveness(settings.health_patience, settings.call_budget, consumer())
        wanted = _wanted(settings)
        self._memory = Memory(own_name(), wanted, lambda: self._leases.last)
        self.ledger = AsyncLedger(
            settings.redis_url, self._meter.ledger_seconds.add, wanted, self._greet
        )
        self._strays = StrayAnswers(self.ledger, self._meter)
        self._endpoints = Endpoints(settings, app, self._strays)
        self.wake = Wakeups(app, on_published=self._meter.woke)
        self._transport = HttpTransport(settings.call_budget)
        self._leases = Leases(self.ledger, settings.lease)
        event_builder = self._event_builder = EventBuilder(settings, self.keyring)
        rules = _rules(settings)
        self.turnstile = Turnstile()
        self._attempts = Attempts(
            self.ledger,
            self._leases,
            ProviderAccess(
                self._registry,
                self._accounts,
                self.keyring,
                AttemptSender(self._transport, self._strays, self._accounts.way),
            ),
            event_builder,
            rules,
            self._meter,
        )
        self._attempts.on_claimed = self.turnstile.passed
        self._eraser = Eraser(self.ledger, settings.rewrite_period, _broker(settings))
        self._async_requests = AsyncRequests(
            self.ledger,
            Intake(self._registry, self.keyring, settings.deadline),
            event_builder,
            RequestRules(settings.retention, settings.require_sealed),
            self._announce,
            self._eraser.note,
        )
        self._quarantine = Quarantine(settings, self.keyring)
        # A reader without activity for the length of a lease counts as dead, like a lease's holder.
        self._job_stream = JobStream(
            self.ledger,
            self._async_requests,
            self._quarantine.keep,
            settings.redis_url,
            Reader(rules.claim.worker, settings.lease),
        )
        url = settings.redis_url
        self._relay = WakeRelay(self.ledger, self.wake, url, lambda: self.wake.envelopes(url))
        self._deliveries = Deliveries(
            self.ledger,
            self.keyring,
            self._endpoints.publishers,
            DeliveryRules(settings.source, self._endpoints.disable_after),
            meter=self._meter,
            unwritten=self._strays.unwritten,
        )
        self._clock = AlarmClock(self.ledger, self.wake, settings.clock_period)
        self._trimmer = StreamTrimmer(
            self.ledger, settings.streams().values(), settings.audit_retention
        )
        service = _service(settings, self._accounts, self.keyring)
        self._heartbeat = Heartbeat(
            self.ledger, self._leases.calls, settings, self._meter, self._liveness, service
        )
        self._reload = SettingsReload(
            settings, self._registry, self._accounts, self._check, self._apply
        )
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="io", daemon=True)
        self._watch = LoopWatch(self.loop, self._thread)
        late = 2 * settings.call_budget + LATE
        self._stop_watch = StopWatch(self.loop, self._liveness, late)
        self.owner = BrokerOwner()
        self._beats: list[asyncio.Task[None]] = []
        self._end_export: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Start the loop, announce what this worker serves, renew leases, ring alarms."""
        self._end_export = otlp_export.send(
            self.settings, "registration-worker", self._heartbeat.counted
        )
        self._thread.start()
        self._watch.start()
        self._run(self._start())

    def attempt(self, job_id: str) -> AttemptReport:
        """Attempt a job; blocks the calling task, not the loop."""
        return self._run(self._attempts(job_id))

    def deliver(self, member: str) -> str:
        """Try a delivery; blocks the calling task, not the loop."""
        return self._run(self._deliveries(member))

    def take(self, request: Request, origin: Origin, argument: Any) -> str:
        """Process a request from a task; blocks the calling task, not the loop."""
        entry = read(request, argument, origin)
        taken = self._run(self._async_requests.take(entry, self._async_requests.check(entry)))
        assert isinstance(taken, Taken)  # noqa: S101 -- only one of the job stream can be early
        return taken.what

    def set_aside(self, request: Request, id_: str, argument: Any, reason: str) -> None:
        """Put a request from a task into quarantine."""
        quarantined = QuarantineEntry.of_task(f"registrations.{request}", id_, argument, reason)
        self._run(asyncio.to_thread(self._quarantine.keep, quarantined))

    def watch_stop(self) -> None:
        """From now on, do not let the process hang. For any thread."""
        self._stop_watch.begin()

    def stop(self) -> None:
        """End the loops and close all connections."""
        self.watch_stop()
        # Not with `_run`: it is no task.
        asyncio.run_coroutine_threadsafe(self._stop(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self._watch.stop()
        self.loop.close()
        self._end_export()

    def note_owner(self, found: BrokerOf) -> None:
        """Report an installation that came to use the broker, too, or that this cannot be seen. For
        any thread."""
        if found != self._heartbeat.broker:
            if found == "other":
                log.error(
                    "the broker belongs to another installation", alert="broker", advice=ONE_BROKER
                )
            elif found == "unknown":
                log.warning("it is not known whose broker this is", advice=doctor.LET_IT_LOOK)
        self._heartbeat.broker = found

    def pause(self, seconds: float) -> None:
        """Wait; blocks the calling task, not the loop."""
        self._run(asyncio.sleep(seconds))

    def in_loop(self) -> bool:
        """Whether this is the loop's thread."""
        return threading.get_ident() == self._thread.ident

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        with self._liveness.task():
            if greenlets.carried():
                return greenlets.wait(work)
            return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    async def _examine(self) -> None:
        """Refuse a server that would lose jobs, and say what to change."""
        try:
            info = await self.ledger.patiently(self._loaded)
            info = await self._followed(info)
            refused = await self.ledger(lacking())
        except (AuthenticationError, ResponseError) as error:
            if isinstance(error, ResponseError) and not hidden(error):
                raise
            what = f"{doctor.answer_of(error)}: {doctor.advice_for(error)}"
            raise SettingsError([(variable("redis_url"), what)]) from None
        if refused:
            lack = doctor.rights(refused)
            what = f"{lack.subject}: {lack.found}; {lack.advice}"
            raise SettingsError([(variable("redis_url"), what)])
        for finding in doctor.server(info, self.settings.replicas, self.settings.durability):
            if finding.level == "unsafe" and not self.settings.allow_unsafe:
                if finding.setting == "replicas" and await self._had_replicas():
                    log.warning("too few replicas follow", alert="replicas", found=finding.found)
                    continue
                what = f"{finding.subject}: {finding.found}; {finding.advice}"
                raise SettingsError([(variable(finding.setting), what)])
        if (found := await self.ledger(format_())) > FORMAT:
            what = (
                f"the ledger's records are of form {found}, and this worker knows {FORMAT}: "
                "a newer version wrote them; install that version here"
            )
            raise SettingsError([(variable("redis_url"), what)])
        owner = await self._whose_broker()
        if owner == "other":
            raise SettingsError([(variable("broker_url"), ONE_BROKER)])
        self.note_owner(owner or "this")

    async def _own_broker(self) -> float:
        with suppress(SettingsError):  # another kind of server, for the moment
            found = await self._whose_broker()
            if found is not None:
                self.note_owner(found)
        with suppress(RedisError, LedgerUnavailable):
            await self.ledger.ask(self.owner.keep)
        return LOOK

    async def _learn_name(self) -> None:
        await self.ledger.patiently(lambda: self.ledger.ask(self.owner.learn))

    async def _whose_broker(self) -> BrokerOf | None:
        """Whose broker it is; None: it is away, or a RabbitMQ, which the consumer's connection
        claims."""
        try:
            await self._learn_name()
        except (RedisError, LedgerUnavailable):
            return None  # without the right, or without a ledger: others report that
        for one in self.settings.broker.split(";"):
            if addresses.read(one).kind != "redis":
                continue
            # Also if it is the ledger's server, which may be a node of a cluster.
            client = async_client(one, follow=False, socket_timeout=10)
            try:
                await client.ping()
                return await self.owner.claim(client, self._learn_name)
            except WrongServer as error:
                raise SettingsError([(variable("broker_url"), str(error))]) from None
            except (RedisError, OSError, LedgerUnavailable):
                pass  # away: the broker's own loop waits for it
            finally:
                await client.aclose()
        return None

    async def _greet(self, connection: Any) -> None:
        """Check which server a new connection has reached, before a claim is sent there."""
        _warn_of_forgetting(doubted=await self._memory.greet(connection, scripts()["identity"]))

    async def _remember(self) -> float:
        await self.ledger.patiently(lambda: self._memory.look(self.ledger.redis))
        with suppress(NotReplicated):
            _warn_of_forgetting(doubted=await self.ledger(self._memory.mark(), insist=False))
        return self._liveness.period

    async def _loaded(self) -> dict[str, Any]:
        info = await look_async(self.ledger.redis, self.settings.replicas)
        if int(info.get("loading", 0)):
            # While a server loads its append-only file, it reports that it has none.
            raise BusyLoadingError("the server is loading its data")
        return info

    async def _followed(self, info: dict[str, Any]) -> dict[str, Any]:
        """The primary's `INFO` once enough replicas follow it, or when the wait is over."""
        end = time.monotonic() + FOLLOWED
        while time.monotonic() < end:
            if not doctor.is_primary(info):
                # A new connection finds the new primary.
                await close_idle(self.ledger.redis.connection_pool)
            elif doctor.replicated(info, self.settings.replicas):
                break
            await asyncio.sleep(AFTER_FAULT / 2)
            info = await self.ledger.patiently(self._loaded)
        return info

    async def _had_replicas(self) -> bool:
        """Whether workers have seen that many replicas here: then one is away, and nothing is sent
        before it is back."""
        seen: Any = await self.ledger.ask(lambda redis: redis.hget(IDENTITY, "replicas"))
        return int(seen or 0) >= self.settings.replicas

    async def _announce(self) -> None:
        await self._heartbeat.announce()

    async def _start(self) -> None:
        await self._examine()
        await self._heartbeat.announce(starts=True)
        await self.ledger(seals(self.keyring.kids[0], note=True))
        renewal = self.settings.lease_renewal

        async def renew() -> float:
            if lost := await self._leases.renew_once():
                self._meter.leases_lost.add(n=lost)
                log.warning("leases lost", alert="leases", count=lost)
            self._liveness.mark("leases")
            return renewal

        async def ring() -> float:
            pause = await self._clock.ring_once()
            if self._clock.heard:
                self._liveness.mark("clock")
            return pause

        async def correct() -> float:
            # An index of a wrong type cannot be corrected; monitoring reports it.
            with suppress(ResponseError):
                await self.ledger(repair())
            return CORRECTED

        self._heartbeat.serve()
        turns = (
            renew,
            ring,
            correct,
            self._heartbeat.beat_once,
            self._remember,
            self._trimmer.trim_once,
            self._job_stream.read_once,
            self._strays.write_once,
            self._eraser.erase_once,
            self._relay.relay_once,
            self._own_broker,
            *([self._reload.reload_once] if self._reload.has_files else []),
        )
        self._beats = [asyncio.ensure_future(_forever(turn)) for turn in turns]

    async def _check(self, accounts: Accounts, name: tuple[str, str]) -> Checked:
        budget, way = self.settings.call_budget, accounts.way(name)
        send = self._transport.sender(lambda: True, budget, way=way)
        return await check(accounts.open(*name, send, NO_JOB))

    async def _apply(self, settings: Settings, accounts: Accounts, keyring: Keyring) -> None:
        """From now on, use the accounts, endpoints and keys of other settings.

        All of it may be repeated: the announcement fails while the ledger is away.
        """
        self.keyring.use(keyring)
        self._accounts.use(accounts)
        self._endpoints.use(settings)
        self._endpoints.close_later(self._transport.keep(self._accounts.ways))
        self._event_builder.use(settings)
        self._trimmer.use(settings.streams().values())
        self._heartbeat.use(_service(settings, self._accounts, self.keyring))
        await self._heartbeat.announce(starts=True)

    async def _stop(self) -> None:
        in_time = partial(_in_time, self.loop.time() + CLOSED)
        await in_time("job stream", self._job_stream.aclose())
        await in_time("loops", _end(self._beats))
        await in_time("relay", self._relay.aclose())
        await in_time("eraser", self._eraser.aclose())
        await in_time("heartbeat", self._heartbeat.leave())
        await in_time("providers", self._transport.aclose())
        await in_time("endpoints", self._endpoints.aclose())
        self._quarantine.close()
        self.wake.close()
        await in_time("ledger", self.ledger.aclose())


async def _in_time(end: float, what: str, close: Awaitable[object]) -> None:
    """Take one step of the end, until this time of the loop.

    Whatever becomes of it, the others follow: all jobs are done, so nothing is lost.
    """
    step = asyncio.ensure_future(close)
    await asyncio.wait([step], timeout=max(AT_LEAST, end - asyncio.get_running_loop().time()))
    if not step.done():
        fault = "TimeoutError"
        step.cancel()
        await asyncio.wait([step], timeout=AT_LEAST)
    elif step.cancelled():
        fault = "CancelledError"
    elif (error := step.exception()) is not None:
        fault = type(error).__name__
    else:
        return
    log.warning("not closed in order", what=what, error=fault)


async def _end(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel tasks, and wait for them.

    More than once: libraries may lose a cancellation, as `asyncio.wait_for` does before Python 3.12
    if what it waits for has just ended.
    """
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=AGAIN)


async def _forever(turn: Callable[[], Awaitable[float]]) -> None:
    """Turn after turn; each returns the seconds until the next. No error ends it."""
    while True:
        try:
            pause = await turn()
        except LedgerUnavailable as error:
            # Not the worker's fault; logged once for each unsuccessful wait.
            log.warning("a loop waits for the ledger", loop=turn.__qualname__, reason=str(error))
            pause = AFTER_FAULT
        except Exception:
            log.exception("a loop's turn failed", loop=turn.__qualname__)
            pause = AFTER_FAULT
        await asyncio.sleep(pause)


def _broker(settings: Settings) -> redis.asyncio.Redis | None:
    """The broker's server, if it is a Redis other than the ledger's."""
    broker = settings.broker.partition(";")[0]
    if same_place(settings.broker, settings.redis_url) or addresses.read(broker).kind != "redis":
        return None
    return async_client(broker, socket_timeout=10, max_connections=2)


def _rules(settings: Settings) -> AttemptRules:
    return AttemptRules(
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


def _service(settings: Settings, accounts: Accounts, keyring: Keyring) -> Service:
    # A hanging endpoint must leave slots free, even in the only worker.
    most = max(1, settings.concurrency // 2)
    ends = settings.delivered().items()
    return Service(
        accounts=[_limits(*one) for one in accounts],
        endpoints=sorted({"results", *settings.endpoints}),
        streams=settings.streams(),
        keys=keyring.marks,
        places={name: min(one.max_in_flight, most) for name, one in ends},
        retention=settings.retention,
        dead_retention=settings.dead_retention,
        wanted=_wanted(settings),
    )


def _warn_of_forgetting(*, doubted: bool) -> None:
    if doubted:
        log.error("the ledger may have forgotten calls", alert="forgotten")


def _wanted(settings: Settings) -> Wanted:
    return Wanted(settings.replicas, settings.replicas_timeout)


def _limits(provider: str, account: str, values: Any) -> Limits:
    pace = Pace(values.rate, values.rate_period)
    return Limits(provider, account, pace.interval, pace.burst, values.max_in_flight)


_runtime: Runtime | None = None
_lock = threading.Lock()


def runtime(app: Celery) -> Runtime:
    """This process's runtime, created and started at first use."""
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


def watch_stop() -> None:
    """This process was asked to stop. For any thread."""
    if (made := _runtime) is not None:
        made.watch_stop()


def shut_down() -> None:
    """Stop this process's runtime, if there is one."""
    global _runtime
    with _lock:
        if _runtime is not None:
            _runtime.stop()
            _runtime = None
            flush_sentry()

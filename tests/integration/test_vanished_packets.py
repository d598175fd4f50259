"""Networks that lose packets without a word: nothing of a client waits for longer than it says."""

import asyncio
import errno
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis
from kombu.transport.redis import Channel as StockChannel

from regworker import look_ups
from regworker.carriers import AsyncShell
from regworker.domain.errors import LedgerUnavailable, UnknownJob
from regworker.ledger import AsyncLedger, SyncLedger, client
from regworker.ledger.servers import async_client, looking
from regworker.ledger.transitions import look
from regworker.producer import AsyncProducer, Producer
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from tests.chaos.proxy import Proxy
from tests.doubles import differing
from tests.integration.installation import ROOT, ended
from tests.tls import Authority, Front, fronts

KEYS = Keyring.new("test")
NOBODY = "00000000-0000-8000-8000-000000000000"

#: Seconds. Far more than anything here takes.
PATIENCE = 60.0

#: Seconds that a call may take here whose time is to be over.
SHORT = 0.3


def port_of(url: str) -> int:
    """The port of a URL."""
    return int(url.rpartition(":")[2].partition("/")[0])


@pytest.fixture
def swallowed(redis_url: str) -> Iterator[str]:
    """An address with the ledger's port where connecting never ends: its queue is full, and the
    kernel drops what comes."""
    with ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.2", port_of(redis_url)))
        full.listen(0)
        for _ in range(3):
            one = stack.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        yield "127.0.0.2"


class Names:
    """Replaces the DNS: `ledger.test` has these addresses, `ledger.slow` hangs until the end."""

    def __init__(self, *addresses: str) -> None:
        self._addresses = addresses
        self.hanging: list[str] = []
        self.over = threading.Event()

    def __call__(self, host: str, port: int, *more: Any, **named: Any) -> Any:
        """Look a name up."""
        if host.endswith(".slow"):
            self.hanging.append(host)
            self.over.wait(PATIENCE)
            raise socket.gaierror
        assert host == "ledger.test"
        return [
            found
            for address in self._addresses
            for found in socket.getaddrinfo(address, port, *more, **named)
        ]


def use(names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let these names be looked up."""
    monkeypatch.setattr(look_ups, "socket", differing(socket, getaddrinfo=names))


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    """A DNS that does not answer."""
    names = Names()
    use(names, monkeypatch)
    yield names
    names.over.set()


def by_name(redis_url: str, name: str) -> Settings:
    """The settings of a host that knows the ledger by a name."""
    return Settings.load(redis_url=redis_url.replace("127.0.0.1", name), sealing_keys=KEYS)


def test_one_of_several_addresses_may_be_dead(
    redis_url: str, swallowed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one, even: for a worker, for a producer in a thread, and in a loop."""
    use(Names(swallowed, "127.0.0.1"), monkeypatch)
    settings = by_name(redis_url, "ledger.test")

    async def in_a_loop() -> None:
        async with AsyncProducer(settings) as producer:
            with pytest.raises(UnknownJob):
                await producer.status(NOBODY)
        ledger = AsyncLedger(settings.redis_url)
        assert await ledger.redis.ping()
        await ledger.aclose()

    asyncio.run(in_a_loop())
    with Producer(settings) as producer, pytest.raises(UnknownJob):
        producer.status(NOBODY)


def test_if_no_address_answers_a_call_ends_in_its_time(
    redis_url: str, swallowed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many addresses there are."""
    use(Names(*[swallowed] * 8), monkeypatch)
    settings = by_name(redis_url, "ledger.test")

    async def in_a_loop() -> None:
        async with AsyncProducer(settings) as producer:
            with pytest.raises(LedgerUnavailable):
                await producer.status(NOBODY, timeout=SHORT)

    asyncio.run(in_a_loop())
    with Producer(settings) as producer, pytest.raises(LedgerUnavailable):
        producer.status(NOBODY, timeout=SHORT)


def test_a_dns_that_hangs_takes_none_of_a_hosts_threads(hanging: Names, redis_url: str) -> None:
    """However often a host tries: its own threads and look-ups go on."""

    async def host() -> None:
        async with AsyncProducer(by_name(redis_url, "ledger.slow")) as producer:
            for _ in range((os.cpu_count() or 1) + 10):
                with pytest.raises(LedgerUnavailable):
                    await producer.status(NOBODY, timeout=0.05)
            assert await asyncio.to_thread(lambda: "done") == "done"

    asyncio.run(host())
    assert hanging.hanging == ["ledger.slow"]


def test_a_dns_that_hangs_takes_no_longer_than_the_call_may(hanging: Names, redis_url: str) -> None:
    """The error says what does not answer."""
    with (
        Producer(by_name(redis_url, "ledger.slow")) as producer,
        pytest.raises(LedgerUnavailable, match="The DNS did not answer within"),
    ):
        producer.status(NOBODY, timeout=SHORT)
    assert not hanging.over.is_set()


def test_a_look_up_that_was_interrupted_leaves_the_name_to_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An exception of the host's may come before its thread has started."""

    class Interrupted(BaseException):
        pass

    def interrupt(*_: Any, **__: Any) -> None:
        raise Interrupted

    use(Names("127.0.0.1"), monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(look_ups, "threading", differing(threading, Thread=interrupt))
        with pytest.raises(Interrupted):
            look_ups.looked_up("ledger.test", 1)
    [found] = look_ups.looked_up("ledger.test", 1).result(PATIENCE)
    assert found[4] == ("127.0.0.1", 1)


@pytest.mark.parametrize("name", ["a" * 64, "ledger..test", ".ledger"])
def test_what_is_no_name_of_a_host_is_an_address_without_a_server(name: str) -> None:
    """Python refuses it with an error about its characters, which a producer took for a record that
    cannot be read."""
    given: dict[str, Any] = {"redis_url": f"redis://{name}", "sealing_keys": KEYS, "timeout": 1}

    async def status() -> None:
        async with AsyncProducer(**given) as producer:
            await producer.status(NOBODY)

    with pytest.raises(LedgerUnavailable, match="no name of a host"), Producer(**given) as producer:
        producer.status(NOBODY)
    with pytest.raises(LedgerUnavailable, match="no name of a host"):
        asyncio.run(status())


HANGS = """
import socket, sys, threading
from regworker import look_ups
socket.getaddrinfo = lambda *_, **__: threading.Event().wait()
try:
    look_ups.connect("ledger.slow", 1, 0.1)
except OSError as error:
    sys.exit(f"ended: {error}")
"""


def test_a_look_up_that_hangs_keeps_no_process_from_its_end() -> None:
    """A worker that stops waits for no DNS."""
    done = ended([sys.executable, "-c", HANGS], {}, ROOT)
    assert done.stderr.startswith("ended:"), done.stderr


NO_THREADS = """
import asyncio, socket, threading
from regworker import look_ups
threading.stack_size(2**46)  # more than there is: no thread can be started
with socket.create_server(("localhost", 0)) as server:
    port = server.getsockname()[1]
    look_ups.connect("localhost", port, 10).close()
    asyncio.run(look_ups.connect_async("localhost", port, 10)).close()
"""


def test_a_name_is_looked_up_where_no_thread_can_be_started() -> None:
    """At the end of a process, for example, when a host's last handlers run."""
    done = ended([sys.executable, "-c", NO_THREADS], {}, ROOT)
    assert done.returncode == 0, done.stderr


def options_of(made: socket.socket) -> tuple[int, int, int]:
    """Whether the kernel asks if the other side is there, after which silence (s), and how long it
    waits for it (ms)."""
    return (
        made.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        made.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
        made.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
    )


def test_the_kernel_ends_each_connection_whose_other_side_is_gone(redis_url: str) -> None:
    """A connection on which a program only listens notices nothing by itself."""
    watched = (1, look_ups.IDLE, 10_000)
    ledger = SyncLedger(redis_url)
    assert ledger.redis.ping()
    [kept] = ledger.redis.connection_pool._available_connections
    assert options_of(kept._sock) == watched
    ledger.close()

    async def in_a_loop() -> None:
        made = async_client(redis_url)
        await made.ping()
        [one] = made.connection_pool._available_connections  # type: ignore[attr-defined]
        assert options_of(one._writer.get_extra_info("socket")) == watched
        await made.aclose()

    asyncio.run(in_a_loop())
    # The broker's, as kombu makes it.
    assert issubclass(StockChannel.connection_class, redis.Connection)
    broker: Any = looking(StockChannel.connection_class)(port=port_of(redis_url))
    broker.connect()
    assert options_of(broker._sock) == watched
    broker.disconnect()


@pytest.mark.timeout(120, method="thread")  # a busy loop swallows any exception
def test_who_waits_for_a_job_survives_the_kernels_word_that_a_connection_is_dead(
    redis_url: str, ledger: SyncLedger
) -> None:
    """The loop goes on, and the next end is heard over a new connection."""
    settings = Settings.load(redis_url=redis_url, sealing_keys=KEYS)

    async def host() -> None:
        shell = AsyncShell(settings, PATIENCE)
        async with shell._endings.of("a job") as heard:
            await heard(PATIENCE)  # subscribed
            [one] = shell.ledger.redis.connection_pool._in_use_connections  # type: ignore[attr-defined]
            # What asyncio does when the kernel reports that.
            one._writer.transport._fatal_error(TimeoutError(errno.ETIMEDOUT, "timed out"))
            await heard(PATIENCE)  # there may be news: the connection was lost
            while not ledger.redis.publish("a job", "ended"):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            async with asyncio.timeout(PATIENCE):
                await heard(PATIENCE)
        await shell.aclose()

    asyncio.run(host())


@pytest.fixture
def network() -> Iterator[Proxy]:
    """A network that can forget connections."""
    with Proxy() as proxy:
        yield proxy


def together(call: Callable[[], Any], count: int) -> None:
    """Call in so many threads at the same time."""
    barrier = threading.Barrier(count)

    def one(_: int) -> None:
        barrier.wait(PATIENCE)
        call()

    with ThreadPoolExecutor(count) as threads:
        list(threads.map(one, range(count)))


def test_after_one_silent_connection_the_other_idle_ones_are_not_tried(
    network: Proxy, redis_url: str
) -> None:
    """A firewall forgets all connections at once: one call notices it for all."""
    link = network.add("ledger", port_of(redis_url))
    ledger = SyncLedger(f"redis://127.0.0.1:{link.port}/0")
    pool: Any = ledger.redis.connection_pool
    borrowed = [pool.get_connection() for _ in range(3)]
    for one in borrowed:
        pool.release(one)
    network.do("forget", "ledger")
    limit = client.SILENT * 1.5
    with pytest.raises(LedgerUnavailable):
        ledger(look(NOBODY), patience=limit)
    together(lambda: ledger(look(NOBODY), patience=limit), 3)
    ledger.close()


@pytest.fixture(params=["redis", "rediss"])
def forgetful(
    request: pytest.FixtureRequest, network: Proxy, redis_url: str, tmp_path: Path
) -> Iterator[str]:
    """The ledger behind that network, also by TLS, whose end both sides have to confirm."""
    port = port_of(redis_url)
    if request.param == "redis":
        yield f"redis://127.0.0.1:{network.add('ledger', port).port}/0"
        return
    authority = Authority(tmp_path)
    front = Front(authority.certificate("good"), port)
    with fronts(front):
        link = network.add("ledger", front.port)
        yield f"rediss://127.0.0.1:{link.port}/0?ssl_ca_certs={authority.file}"


@pytest.mark.parametrize("first", ["a question", "a command"])
def test_in_a_loop_too(
    first: str, network: Proxy, forgetful: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of its connections is used first."""
    monkeypatch.setattr(client, "SOCKET_TIMEOUT", SHORT)

    async def host() -> None:
        ledger = AsyncLedger(forgetful)
        await asyncio.gather(*(ledger.ask(lambda one: one.ping()) for _ in range(3)))
        await ledger(look(NOBODY))
        await asyncio.to_thread(network.do, "forget", "ledger")
        if first == "a question":
            await ledger.now()
        else:
            await ledger.many([look(NOBODY)])
        # Without patience: they would fail on one of the other connections.
        await ledger(look(NOBODY), patience=0)
        await asyncio.gather(*(ledger.ask(lambda one: one.ping()) for _ in range(3)))
        await ledger.aclose()

    asyncio.run(host())


def test_an_idle_connection_that_is_being_closed_is_lent_to_nobody(redis_url: str) -> None:
    """Whenever another task wants one."""

    async def host() -> None:
        ledger = AsyncLedger(redis_url)
        pool: Any = ledger.redis.connection_pool
        for turns in range(5):
            await ledger.now()
            closing = asyncio.create_task(ledger._abandon(redis.TimeoutError()))
            for _ in range(turns):
                await asyncio.sleep(0)
            await ledger.ask(lambda one: one.ping())
            await closing
            assert len(pool._available_connections) == 1
        await ledger.aclose()

    asyncio.run(host())

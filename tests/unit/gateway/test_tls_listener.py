"""Connections on which TLS has still to begin: they keep nobody out, and wait for each other."""

import asyncio
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress

import pytest

from tests.tls import Authority
from worker.gateway import tls_listener
from worker.gateway.tls_listener import TlsListener

MOST = 3

#: The beginning of a first message of TLS, whose rest does not come.
HALF = bytes.fromhex("160301020001")


class Greeting(asyncio.Protocol):
    """Sends a letter, and closes the connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """TLS has begun."""
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"a")
        transport.close()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The authority that issues the certificate."""
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def port(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of a listener with small limits."""
    monkeypatch.setattr(tls_listener, "MOST_SILENT", MOST)
    monkeypatch.setattr(tls_listener, "MOST_BEGINNING", MOST)
    monkeypatch.setattr(tls_listener, "SLOW", 0.1)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.certificate("good"))
    begun, stop = threading.Event(), asyncio.Event()

    async def serve() -> None:
        tls = TlsListener(listener, context, Greeting)
        begun.set()
        await stop.wait()
        tls.close()
        await asyncio.wait_for(tls.wait_closed(), 30)

    with (
        closing(socket.create_server(("127.0.0.1", 0), backlog=100)) as listener,
        asyncio.Runner() as runner,
    ):
        loop = runner.get_loop()
        thread = threading.Thread(target=runner.run, args=(serve(),))
        thread.start()
        assert begun.wait(30)
        yield listener.getsockname()[1]
        loop.call_soon_threadsafe(stop.set)
        thread.join(60)
        assert not thread.is_alive()


@pytest.fixture
def running() -> Iterator[ExitStack]:
    """Connections that stay open until the end of the test."""
    with ExitStack() as stack:
        yield stack


def connected(running: ExitStack, port: int, sent: bytes = b"") -> socket.socket:
    """A connection with these bytes."""
    made = running.enter_context(socket.create_connection(("127.0.0.1", port), 30))
    made.sendall(sent)
    return made


def greeted(authority: Authority, made: socket.socket) -> bool:
    """Whether TLS begins on a connection."""
    context = ssl.create_default_context(cafile=authority.file)
    with context.wrap_socket(made, server_hostname="localhost") as tls:
        return tls.recv(1) == b"a"


def ended(made: socket.socket) -> bool:
    """Whether a connection is closed, before anything came."""
    with suppress(ConnectionError):
        return made.recv(1) == b""
    return True


def test_the_oldest_silent_one_gives_way(
    authority: Authority, running: ExitStack, port: int
) -> None:
    """However many there are, others are served."""
    silent = [connected(running, port) for _ in range(4 * MOST)]
    assert ended(silent[0])
    assert greeted(authority, connected(running, port))


def test_half_a_message_keeps_nobody_out(
    authority: Authority, running: ExitStack, port: int
) -> None:
    """Nor do many that begin TLS and do not go on."""
    half = [connected(running, port, HALF) for _ in range(4 * MOST)]
    assert greeted(authority, connected(running, port))
    assert ended(half[0])


def test_many_at_once_wait_for_each_other(
    authority: Authority, running: ExitStack, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of them is ended for the others."""
    monkeypatch.setattr(tls_listener, "MOST_SILENT", 100)
    monkeypatch.setattr(tls_listener, "SLOW", 60.0)
    results = []

    def begin() -> None:
        results.append(greeted(authority, connected(running, port)))

    threads = [threading.Thread(target=begin) for _ in range(10 * MOST)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(60)
    assert results == [True] * len(threads)


@pytest.mark.parametrize("sent", [b"", HALF])
def test_a_client_that_does_not_begin_is_ended(
    running: ExitStack, port: int, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    """Also if there are few connections."""
    monkeypatch.setattr(tls_listener, "PATIENCE", 0.1)
    assert ended(connected(running, port, sent))


def test_what_is_no_tls_is_ended(authority: Authority, running: ExitStack, port: int) -> None:
    """So are clients that go away, as probes of a port do."""
    for _ in range(4 * MOST):
        connected(running, port).close()
    connected(running, port, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    assert greeted(authority, connected(running, port))

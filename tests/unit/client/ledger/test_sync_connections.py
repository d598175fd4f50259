"""No call gets an answer that was not meant for it, whatever arrives on a connection."""

import asyncio
import contextlib
import gzip
import inspect
import queue
import socket
import ssl
import subprocess
import sys
import threading
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import TCPConnector
from aiohttp.client_proto import ResponseHandler
from pydantic import SecretStr

from regworker.settings import WebhookEndpoint
from tests.loops import end_all
from worker.http.client import _PARSING
from worker.http.connections import Connector, Watched
from worker.providers.base import Answer, Lost, NotSent, Request
from worker.providers.http import HttpTransport
from worker.publishers.base import Arrived
from worker.publishers.webhook import WebhookPublisher

SECRET = SecretStr("whsec_dGhlIHNlY3JldCBvZiB0aGUgdGVzdHMgb25seQ==")

Call = Callable[[], Awaitable[str]]
"""Makes a call; the answer's status in words, or `doubt`, or `not sent`."""


@contextlib.asynccontextmanager
async def provider(url: str, stray: Callable[[], None], fresh: bool) -> AsyncIterator[Call]:
    """Calls to a provider."""
    carrier = HttpTransport()

    async def call() -> str:
        send = carrier.sender(lambda: True, 20.0, stray, fresh=fresh)
        match await send(Request(url, {"name": "Zoë"})):
            case Answer(status):
                return str(status)
            case Lost():
                return "doubt"
            case NotSent():
                return "not sent"

    try:
        yield call
    finally:
        await carrier.aclose()


@contextlib.asynccontextmanager
async def webhook(url: str, stray: Callable[[], None], fresh: bool) -> AsyncIterator[Call]:
    """Calls to a webhook."""
    to = WebhookEndpoint(
        kind="webhook", url=url, secrets=[SECRET], allow_http=True, allow_private=True
    )
    publisher = WebhookPublisher(to, stray)

    async def call() -> str:
        came = await publisher.publish("e1", b'{"name":"Zo\xc3\xab"}', fresh=fresh)
        return came.reason.removeprefix("HTTP ") if isinstance(came, Arrived) else "doubt"

    try:
        yield call
    finally:
        await publisher.aclose()


def answer(number: int) -> bytes:
    """The answer to the request of this number, counted over all connections: 201, 202, ..."""
    return f"HTTP/1.1 {200 + number} Fine\r\ncontent-length: 2\r\n\r\n{{}}".encode()


HEAD, BODY = answer(1)[:-2], answer(1)[-2:]

#: Bytes that come with the first answer, in one write; bytes that come later, on the idle
#: connection; bytes that come after the next request on the same connection.
KINDS: dict[str, tuple[bytes, bytes, bytes]] = {
    "the same once more, later": (b"", answer(1), b""),
    "the same once more, at once": (answer(1), b"", b""),
    "the same many times, at once": (answer(1) * 50, b"", b""),
    "half of it later, the rest after the next request": (b"", HEAD[:20], HEAD[20:] + BODY),
    "half of it at once, the rest after the next request": (HEAD[:20], b"", HEAD[20:] + BODY),
    "its head at once, its body after the next request": (HEAD, b"", BODY),
    "one byte later": (b"", b"H", answer(1)[1:]),
    "an empty line later": (b"", b"\r\n", answer(1)),
    "an interim answer later": (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n", answer(1)),
    "an interim answer at once": (b"HTTP/1.1 103 Early Hints\r\n\r\n", b"", answer(1)),
    "a refusal later": (b"", b"HTTP/1.1 408 Too Late\r\ncontent-length: 0\r\n\r\n", b""),
    "an answer without end later": (b"", b"HTTP/1.1 201 Fine\r\n\r\n", b"x"),
    "no HTTP later": (b"", b"hello?\r\n\r\n", b""),
}


class Server:
    """Answers requests by their number, and sends more bytes after the first answer."""

    def __init__(self, kind: tuple[bytes, bytes, bytes], *, in_two: bool = False) -> None:
        self.now, self.later, self.next = kind
        self.in_two = in_two
        self.requests = 0
        self.connections = 0
        self.go = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection."""
        self.connections += 1
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await self._serve(reader, writer)
        writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = False
        while True:
            await reader.readuntil(b'\xc3\xab"}')
            self.requests += 1
            if first:
                writer.write(self.next)
            reply = answer(self.requests)
            first = self.requests == 1
            if first and self.in_two:
                writer.write(reply[:-1])
                await writer.drain()
                await asyncio.sleep(0.05)
                reply = reply[-1:]
            writer.write(reply + (self.now if first else b""))
            if first and self.later:
                await self.go.wait()
                writer.write(self.later)


@contextlib.asynccontextmanager
async def serving(server: Server, certificate: Path | None) -> AsyncIterator[str]:
    """Run a server, and yield its URL."""
    context = None
    if certificate is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate)
    listener = await asyncio.start_server(server, "127.0.0.1", 0, ssl=context)
    port = listener.sockets[0].getsockname()[1]
    try:
        yield f"https://localhost:{port}/" if context else f"http://127.0.0.1:{port}/"
    finally:
        await end_all(listener)
        await listener.wait_closed()


@pytest.mark.parametrize("in_two", [False, True], ids=["one read", "two reads"])
@pytest.mark.parametrize("caller", [provider, webhook])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_what_nobody_asked_for_is_nobodys_answer(
    kind: tuple[bytes, bytes, bytes], caller: Any, tls: Path | None, in_two: bool
) -> None:
    """The client notices it at once and closes the connection; the next call gets its own
    answer."""

    async def main() -> None:
        server = Server(kind, in_two=in_two)
        noticed = asyncio.Event()
        async with serving(server, tls) as url, caller(url, noticed.set, False) as call:
            assert await call() == "201"
            server.go.set()
            await asyncio.wait_for(noticed.wait(), 20)
            assert await call() == "202"
            assert await call() == "203"
            assert server.connections == 2

    asyncio.run(main())


@pytest.mark.parametrize("caller", [provider, webhook])
def test_of_two_answers_at_once_neither_is_believed(caller: Any, tls: Path | None) -> None:
    """On a used connection, each of the two may belong to the earlier request."""

    async def main() -> None:
        strays = []
        server = Server((b"", b"", answer(1)))
        async with (
            serving(server, tls) as url,
            caller(url, lambda: strays.append(1), False) as call,
        ):
            assert await call() == "201"
            assert await call() == "doubt"
            assert await call() == "203"
        assert strays

    asyncio.run(main())


@pytest.mark.parametrize("caller", [provider, webhook])
def test_with_a_connection_for_each_call_a_late_answer_meets_nobody(
    caller: Any, tls: Path | None
) -> None:
    """HTTP/1.1 cannot detect an answer that comes after the next request; a new connection
    avoids it."""

    async def main() -> None:
        server = Server((b"", b"", answer(1)))
        async with serving(server, tls) as url, caller(url, lambda: None, True) as call:
            assert [await call() for _ in range(3)] == ["201", "202", "203"]
            assert server.connections == 3

    asyncio.run(main())


def test_a_server_that_speaks_first_gets_no_request(
    tls: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client writes nothing, so the call can be repeated."""
    greeted = asyncio.Event()
    requests: list[bytes] = []

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(1))
        await writer.drain()
        greeted.set()
        requests.append(await reader.read(1))

    settled = Watched.settled

    async def late(self: Watched) -> bool:
        # The greeting arrives before the client writes anything, in any order of the loop's turns.
        await greeted.wait()
        return await settled(self)

    monkeypatch.setattr(Watched, "settled", late)

    async def main() -> None:
        server = Server(KINDS["one byte later"])
        server._serve = greet  # type: ignore[method-assign]
        strays: list[int] = []
        async with (
            serving(server, tls) as url,
            provider(url, lambda: strays.append(1), False) as call,
        ):
            assert await call() in {"not sent", "doubt"}
            assert strays

    asyncio.run(main())
    assert not any(requests)


class Blocking:
    """A server in a thread; when `say` returns, its bytes are in the client's kernel."""

    def __init__(self, certificate: Path | None) -> None:
        self._context = None
        if certificate is not None:
            self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            self._context.load_cert_chain(certificate)
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        self.url = f"https://localhost:{port}/" if certificate else f"http://127.0.0.1:{port}/"
        self._say: queue.Queue[bytes] = queue.Queue()
        self._said = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    @contextlib.contextmanager
    def running(self) -> Iterator["Blocking"]:
        """Serve in a thread."""
        self._thread.start()
        try:
            yield self
        finally:
            self._say.put(b"")
            self._thread.join()
            self._listener.close()

    def say(self, text: bytes) -> None:
        """Send these bytes on the first connection."""
        self._say.put(text)
        self._said.wait()

    def _serve(self) -> None:
        with contextlib.ExitStack() as open_, contextlib.suppress(OSError):
            for number in (1, 2):
                accepted, _ = self._listener.accept()
                peer = self._context.wrap_socket(accepted, True) if self._context else accepted
                open_.enter_context(peer)
                received = b""
                while not received.endswith(b'\xc3\xab"}'):
                    received += peer.recv(65536)
                peer.sendall(answer(number))
                if text := self._say.get():
                    peer.sendall(text)
                    self._said.set()


@pytest.mark.parametrize("caller", [provider, webhook])
@pytest.mark.parametrize("text", [answer(1), HEAD, b"\r\n", b"HTTP/1.1 100 Go on\r\n\r\n"])
def test_what_only_the_kernel_has_read_is_seen_too(
    text: bytes, caller: Any, tls: Path | None
) -> None:
    """The bytes are noticed although the event loop had no turn since they came."""

    async def main(server: Blocking) -> None:
        strays: list[int] = []
        async with caller(server.url, lambda: strays.append(1), False) as call:
            assert await call() == "201"
            server.say(text)
            assert await call() == "202"
        assert strays

    with Blocking(tls).running() as server:
        asyncio.run(main(server))


@pytest.mark.parametrize("caller", [provider, webhook])
def test_good_connections_are_kept_with_and_without_tls(caller: Any, tls: Path | None) -> None:
    """Session tickets of TLS 1.3 do not count as unexpected bytes."""

    async def main() -> None:
        strays: list[int] = []
        server = Server((b"", b"", b""))
        async with (
            serving(server, tls) as url,
            caller(url, lambda: strays.append(1), False) as call,
        ):
            assert [await call() for _ in range(3)] == ["201", "202", "203"]
            assert server.connections == 1
        assert not strays

    asyncio.run(main())


def test_an_interim_answer_to_a_request_is_passed_over(tls: Path | None) -> None:
    """Informational answers (1xx) may come between a request and its answer."""

    async def main() -> None:
        server = Server((b"", b"", b"HTTP/1.1 103 Early Hints\r\nlink: <a>\r\n\r\n"))
        async with serving(server, tls) as url, provider(url, lambda: None, False) as call:
            assert [await call() for _ in range(3)] == ["201", "202", "203"]
            assert server.connections == 1

    asyncio.run(main())


# -- bombs -----------------------------------------------------------------------------------


def reply(body: bytes, *lines: str) -> bytes:
    """A complete answer."""
    head = ["HTTP/1.1 200 OK", f"content-length: {len(body)}", *lines, "", ""]
    return "\r\n".join(head).encode() + body


def packed() -> bytes:
    """900 MB of zeros, compressed, without the checksum, because no client should read that far."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    first, more = (
        packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2)
    )
    return first + 899 * more


ONCE = packed()
TWICE = gzip.compress(ONCE)
NOT_ASKED = "answer with a content-encoding that we did not request"
TOO_LARGE = "answer too large"
INTERIM = b"HTTP/1.1 103 Early Hints\r\nlink: " + b"x" * 1000 + b"\r\n\r\n"
NO_HTTP = "answer is not HTTP, or has more than 1000 headers"

#: A complete answer, or its beginning and an endless rest; and the result of the call.
BOMBS: dict[str, tuple[bytes, bytes, str]] = {
    "gzip": (reply(ONCE, "content-encoding: gzip"), b"", TOO_LARGE),
    "deflate": (reply(zlib.compress(bytes(10**8)), "content-encoding: deflate"), b"", TOO_LARGE),
    "gzip, gzip": (reply(TWICE, "content-encoding: gzip, gzip"), b"", NOT_ASKED),
    "gzip twice": (reply(TWICE, *["content-encoding: gzip"] * 2), b"", NOT_ASKED),
    "gzip and br": (reply(TWICE, "content-encoding: gzip", "content-encoding: br"), b"", NOT_ASKED),
    "zstd": (reply(TWICE, "content-encoding: zstd"), b"", NOT_ASKED),
    "a head without end": (b"HTTP/1.1 200 OK\r\nx: ", b"x" * 65536, TOO_LARGE),
    "headers without end": (b"HTTP/1.1 200 OK\r\n", b"x: y\r\n" * 10000, NO_HTTP),
    "interim answers without end": (b"", INTERIM * 60, TOO_LARGE),
    "a body without end": (b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 65536, TOO_LARGE),
    "chunks without end": (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        b"1;" + b"x" * 8000 + b"\r\nx\r\n",
        TOO_LARGE,
    ),
    "a promise of a terabyte": (
        b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000000\r\n\r\n",
        b"x" * 65536,
        TOO_LARGE,
    ),
}

#: Makes twenty calls at a time with either caller; prints their results and the most memory used.
WORKER = r"""
import asyncio, resource, sys
from pydantic import SecretStr
from worker.providers.base import Answer, Request
from worker.providers.http import HttpTransport
from worker.publishers.webhook import WebhookPublisher
from regworker.settings import WebhookEndpoint

url, = sys.argv[1:]
options = {"allow_http": True, "allow_private": True}
secret = SecretStr("whsec_dGhlIHNlY3JldCBvZiB0aGUgdGVzdHMgb25seQ==")
endpoint = WebhookEndpoint(kind="webhook", url=url, secrets=[secret], **options)

async def main():
    carrier, publisher = HttpTransport(), WebhookPublisher(endpoint)
    send = carrier.sender(lambda: True, 60.0)
    calls = [send(Request(url, {"name": "Zo\u00eb"})) for _ in range(20)]
    events = [publisher.publish("e1", b'{"name":"Zo\xc3\xab"}') for _ in range(20)]
    came = await asyncio.gather(*calls)
    await asyncio.gather(*events)
    await carrier.aclose(), await publisher.aclose()
    print(*{one.status if isinstance(one, Answer) else one.reason for one in came}, sep="|")
    print(peak() // 2**20)

def peak():
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts into `ru_maxrss` what the process had before it became this program.
    [line] = [one for one in open("/proc/self/status") if one.startswith("VmHWM")]
    return int(line.split()[1]) * 1024

asyncio.run(main())
"""


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_no_answer_makes_a_worker_large(bomb: tuple[bytes, bytes, str]) -> None:
    """Twenty calls at a time get a bomb of 988 bytes, or an endless answer."""
    whole, more, reason = bomb

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b'\xc3\xab"}')
            writer.write(whole)
            while more:
                writer.write(more)
                await writer.drain()
            await reader.read()
        writer.close()

    async def main() -> list[str]:
        listener = await asyncio.start_server(serve, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/"
        done = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", WORKER, url], capture_output=True, text=True
        )
        await end_all(listener)
        assert done.returncode == 0, done.stderr
        return str(done.stdout).splitlines()

    came, megabytes = asyncio.run(main())
    assert came == reason
    assert int(megabytes) < 250


@pytest.mark.parametrize("name", ["connection_made", "connection_lost", "data_received"])
def test_each_overridden_callback_is_aiohttps(name: str) -> None:
    """If aiohttp renames one, this test fails, instead of production."""
    assert callable(getattr(ResponseHandler, name))


def test_what_is_overridden_exists_with_the_same_parameters() -> None:
    """The check depends on these internals of aiohttp."""
    ours, theirs = (
        list(inspect.signature(one._release).parameters) for one in (Connector, TCPConnector)
    )
    assert ours == theirs
    parameters = list(inspect.signature(TCPConnector.connect).parameters)
    assert parameters == ["self", "req", "traces", "timeout"]
    assert (
        _PARSING.keys() <= inspect.signature(ResponseHandler.set_response_params).parameters.keys()
    )

    async def main() -> None:
        connector = TCPConnector()
        assert isinstance(connector._factory(), ResponseHandler)
        protocol = connector._factory()
        for name in ("_payload", "_buffer", "_exception", "_parser", "should_close", "abort"):
            assert hasattr(protocol, name)
        await connector.close()

    asyncio.run(main())

"""What is certain of a call over real sockets: answered, not sent, or lost."""

import asyncio
import base64
import contextlib
import gzip
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import httpx
import pytest

from worker.providers.base import Answer, Lost, NotSent, Request
from worker.providers.transport import MAX_ANSWER, Transport, _Call, classify

Sent = Answer | NotSent | Lost
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

#: Seconds. Long enough never to end a call that will end by itself.
AMPLE = 20.0
#: Seconds. For calls that only the budget ends.
SHORT = 0.6

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


class Server:
    """A server of one handler; counts connections."""

    def __init__(self, handler: Handler) -> None:
        self.connections = 0
        self.port = 0
        self._handler = handler
        self._tasks: set[asyncio.Task[None]] = set()

    def url(self, scheme: str = "http", path: str = "/") -> str:
        """Where it listens."""
        return f"{scheme}://127.0.0.1:{self.port}{path}"

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        # A connection that breaks is what these tests are about; its handler just ends.
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await self._handler(reader, writer)
        writer.transport.abort()

    async def stop(self) -> None:
        """End what still runs."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks)


@contextlib.asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[Server]:
    """Run a server."""
    server = Server(handler)
    listener = await asyncio.start_server(server, "127.0.0.1", 0)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        await server.stop()
        await listener.wait_closed()


@contextlib.asynccontextmanager
async def transport() -> AsyncIterator[Transport]:
    """Make a transport, and close it."""
    made = Transport()
    try:
        yield made
    finally:
        await made.aclose()


async def call(
    url: str, *, budget: float = AMPLE, may_send: Callable[[], bool] = lambda: True
) -> Sent:
    """Make one call over a transport of its own."""
    async with transport() as carrier:
        return await carrier.sender(may_send, budget)(Request(url, {"password": "pass123"}))


def outcome(handler: Handler, *, budget: float = AMPLE, scheme: str = "http") -> Sent:
    """What one call to a server of this handler comes to."""

    async def main() -> Sent:
        async with serving(handler) as server:
            return await call(server.url(scheme), budget=budget)

    return asyncio.run(main())


async def read_request(reader: asyncio.StreamReader) -> bytes:
    """Read a whole request: its head and its body."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        int(line.partition(b":")[2])
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"content-length:")
    )
    return head + await reader.readexactly(length)


def answering(reply: bytes) -> Handler:
    """Answer every request of a connection with these bytes."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            writer.write(reply)
            await writer.drain()

    return handler


def answering_once(reply: bytes) -> Handler:
    """Answer the first request with these bytes, and close."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(reply)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    return handler


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Take a connection, and never say a word."""
    await asyncio.Event().wait()


# -- answers ---------------------------------------------------------------------------------


def test_a_whole_answer_comes_back_with_status_headers_and_body() -> None:
    """An answer has its status, its headers by names in lower case, and its body's bytes."""
    reply = b"HTTP/1.1 500 Oops\r\nX-Customer-Key: k\r\nContent-Length: 3\r\n\r\nabc"
    sent = outcome(answering(reply))
    assert isinstance(sent, Answer)
    assert (sent.status, sent.headers["x-customer-key"], sent.body) == (500, "k", b"abc")


def test_an_answer_is_read_in_pieces_for_which_no_memory_is_mapped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The C library maps what is larger than 128 KiB, and unmaps it, each time."""
    sizes: list[Any] = []
    hold = _Call.hold

    def noting(call: _Call, connection: Any, holders: Any) -> None:
        sizes.append(connection.max_size)
        hold(call, connection, holders)

    monkeypatch.setattr(_Call, "hold", noting)
    reply = b"HTTP/1.1 200 OK\r\nContent-Length: 500000\r\n\r\n" + b"x" * 500_000
    sent = outcome(answering(reply))
    assert isinstance(sent, Answer)
    assert len(sent.body) == 500_000
    assert sizes == [64 * 1024]


def test_the_body_is_sent_as_json_by_post_with_the_given_headers() -> None:
    """What the provider reads is what the request says."""
    seen: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await read_request(reader))
        writer.write(OK)
        await writer.drain()

    async def main() -> None:
        async with serving(handler) as server, transport() as carrier:
            request = Request(server.url(path="/a/b"), {"name": "Zoë"}, {"X-Public-Key": "pk"})
            await carrier.sender(lambda: True, AMPLE)(request)

    asyncio.run(main())
    head, _, body = seen[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /a/b HTTP/1.1\r\n")
    assert b"content-type: application/json" in head.lower()
    assert b"x-public-key: pk" in head.lower()
    assert body == '{"name":"Zoë"}'.encode()


def test_every_call_says_who_calls_and_what_is_accepted() -> None:
    """The head holds what it needs, each once, and nothing from a library or the environment."""
    seen: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await read_request(reader))
        writer.write(OK)

    outcome(handler)
    lines = seen[0].partition(b"\r\n\r\n")[0].lower().split(b"\r\n")[1:]
    head = dict(line.split(b": ", 1) for line in lines)
    assert len(head) == len(lines)
    assert head.pop(b"host").startswith(b"127.0.0.1:")
    assert head == {
        b"accept": b"application/json",
        b"accept-encoding": b"gzip, deflate",
        b"content-length": b"22",
        b"content-type": b"application/json",
        b"user-agent": b"registration-worker",
    }


def test_a_user_and_a_password_in_the_url_are_sent_as_such() -> None:
    """A test system behind a password: `https://user:password@host`."""
    seen: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await read_request(reader))
        writer.write(OK)

    async def main() -> Sent:
        async with serving(handler) as server:
            return await call(server.url().replace("//", "//us%20er:p%40ss@", 1))

    assert isinstance(asyncio.run(main()), Answer)
    given = base64.b64encode(b"us er:p@ss")
    assert b"\r\nAuthorization: Basic " + given + b"\r\n" in seen[0]
    assert seen[0].startswith(b"POST / HTTP/1.1\r\n")


@pytest.mark.parametrize(
    ("name", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)]
)
def test_a_compressed_answer_is_read(name: str, compress: Callable[[bytes], bytes]) -> None:
    """What is accepted is understood."""
    body = compress(b'{"name": "John"}')
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: {name}\r\nContent-Length: {len(body)}\r\n\r\n"
    sent = outcome(answering(head.encode() + body))
    assert isinstance(sent, Answer)
    assert sent.body == b'{"name": "John"}'


def test_a_small_answer_that_grows_past_the_limit_is_not_kept() -> None:
    """The limit is that of the body as it is read, not as it came."""
    body = gzip.compress(b"x" * 4 * MAX_ANSWER)
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n"
    assert outcome(answering(head.encode() + body)) == Lost("answer too large")


def test_an_answer_of_exactly_the_limit_is_taken() -> None:
    """A body of 1 MiB is read."""
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {MAX_ANSWER}\r\n\r\n".encode()
    sent = outcome(answering(head + b"x" * MAX_ANSWER))
    assert isinstance(sent, Answer)
    assert len(sent.body) == MAX_ANSWER


def test_a_longer_answer_is_not_read_to_its_end() -> None:
    """A body past 1 MiB is no answer that any provider gives."""
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {100 * MAX_ANSWER}\r\n\r\n".encode()
    assert outcome(answering(head + b"x" * 2 * MAX_ANSWER)) == Lost("answer too large")


def test_a_redirect_is_an_answer_and_is_not_followed() -> None:
    """A registration goes where the account's settings say, and nowhere else."""
    requests: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            requests.append(await read_request(reader))
            writer.write(b"HTTP/1.1 307 Moved\r\nLocation: /there\r\nContent-Length: 0\r\n\r\n")

    sent = outcome(handler)
    assert isinstance(sent, Answer)
    assert sent.status == 307
    assert len(requests) == 1


def test_cookies_are_not_kept_between_calls() -> None:
    """One customer's session never goes along with another customer's registration."""
    requests: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            requests.append(await read_request(reader))
            writer.write(b"HTTP/1.1 200 OK\r\nSet-Cookie: session=1\r\nContent-Length: 0\r\n\r\n")

    async def main() -> None:
        async with serving(handler) as server, transport() as carrier:
            for _ in range(2):
                await carrier.sender(lambda: True, AMPLE)(Request(server.url(), {}))

    asyncio.run(main())
    assert b"cookie" not in requests[1].lower()


def test_a_connection_is_used_again() -> None:
    """Two calls one after the other share a connection."""

    async def main() -> int:
        async with serving(answering(OK)) as server, transport() as carrier:
            for _ in range(2):
                sent = await carrier.sender(lambda: True, AMPLE)(Request(server.url(), {}))
                assert isinstance(sent, Answer)
            return server.connections

    assert asyncio.run(main()) == 1


def test_a_proxy_in_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registrations pass through nothing that wasn't configured for them."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert isinstance(outcome(answering(OK)), Answer)


# -- provably not sent -----------------------------------------------------------------------


def test_a_refused_connection_is_not_sent() -> None:
    """Nobody listens: nothing left."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    sent = asyncio.run(call(f"http://127.0.0.1:{port}/"))
    assert sent == NotSent("not connected: connection refused")


def test_a_host_that_does_not_exist_is_not_sent() -> None:
    """No address: nothing left."""
    assert isinstance(asyncio.run(call("http://nobody.invalid/")), NotSent)


@pytest.mark.parametrize("url", ["http://[", "ftp://127.0.0.1/", "nowhere"])
def test_an_url_that_is_none_is_not_sent(url: str) -> None:
    """A wrong base_url harms no customer."""
    assert isinstance(asyncio.run(call(url)), NotSent)


def test_failing_tls_is_not_sent() -> None:
    """A server that doesn't speak TLS gets nothing of the request."""

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()

    assert outcome(plain, scheme="https") == NotSent("not connected: TLS failed")


def test_a_budget_that_ends_while_connecting_is_not_sent() -> None:
    """A TLS handshake that never ends uses up the time for connecting: nothing left."""
    assert outcome(silent, scheme="https", budget=SHORT) == NotSent("not connected: timeout")


def test_without_a_lease_nothing_is_even_connected() -> None:
    """A worker that could not renew its lease sends nothing."""

    async def main() -> tuple[Sent, int]:
        async with serving(answering(OK)) as server:
            return await call(server.url(), may_send=lambda: False), server.connections

    assert asyncio.run(main()) == (NotSent("lease lost", ours=True), 0)


@pytest.mark.parametrize("calls_before", [0, 1], ids=["new connection", "used connection"])
def test_a_lease_lost_while_connecting_writes_nothing(calls_before: int) -> None:
    """The lease is looked at again with the connection at hand, before the first byte."""
    seen = bytearray()
    closed = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(calls_before):
            await read_request(reader)
            writer.write(OK)
        seen.extend(await reader.read(1))
        closed.set()

    async def main() -> Sent:
        async with serving(handler) as server:
            async with transport() as carrier:
                for _ in range(calls_before):
                    await carrier.sender(lambda: True, AMPLE)(Request(server.url(), {}))
                held = iter([True, False])
                sent = await carrier.sender(lambda: next(held), AMPLE)(Request(server.url(), {}))
            await closed.wait()
            assert server.connections == 1
            return sent

    assert asyncio.run(main()) == NotSent("lease lost", ours=True)
    assert seen == b""


# -- lost ------------------------------------------------------------------------------------


async def close_unread(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Close without having read anything."""
    writer.close()


async def close_after_reading(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read the request, and close."""
    await read_request(reader)
    writer.close()
    await writer.wait_closed()


async def reset_after_reading(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read the request, and reset the connection."""
    await read_request(reader)
    reset = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
    writer.transport.abort()


HALF = b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"status": '
HALF_A_CHUNK = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\nabc"
NOT_GZIP = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc"


@pytest.mark.parametrize(
    "handler",
    [
        pytest.param(close_unread, id="closes before reading"),
        pytest.param(close_after_reading, id="closes after reading"),
        pytest.param(reset_after_reading, id="resets after reading"),
        pytest.param(answering_once(HALF), id="half a body"),
        pytest.param(answering_once(HALF_A_CHUNK), id="half a chunk"),
        pytest.param(answering_once(b"HTTP/1.1 200 OK\r\nContent-Le"), id="half a head"),
        pytest.param(answering_once(b"220 smtp.example ESMTP\r\n\r\n"), id="garbage"),
        pytest.param(answering_once(NOT_GZIP), id="not what its head says"),
    ],
)
def test_once_connected_a_fault_is_a_lost_answer(handler: Handler) -> None:
    """A server that took the connection may have carried the request out."""
    assert isinstance(outcome(handler), Lost)


def test_a_reset_is_named() -> None:
    """The reason is short and says what happened, whatever httpx calls it."""
    assert outcome(reset_after_reading) == Lost("connection reset")


def test_a_server_that_never_answers_ends_with_the_budget() -> None:
    """A call takes no longer than its budget."""
    assert outcome(silent, budget=SHORT) == Lost("timeout")


def test_a_server_that_dribbles_ends_with_the_budget() -> None:
    """The budget is a total: a byte now and then doesn't extend it."""

    async def dribble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.01)

    assert outcome(dribble, budget=SHORT) == Lost("timeout")


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
def test_a_server_that_answers_without_reading_ends_with_the_budget() -> None:
    """A request that is still being written holds nobody past the budget."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HALF)
        await asyncio.Event().wait()

    async def main() -> Sent:
        async with serving(handler) as server, transport() as carrier:
            request = Request(server.url(), "x" * 2**24)
            return await carrier.sender(lambda: True, 4 * SHORT)(request)

    assert asyncio.run(main()) == Lost("timeout")


class Closing:
    """Answers one request; closes the connection when told, and has closed it by then."""

    def __init__(self) -> None:
        self.connections = 0
        self._close, self._closed = threading.Event(), threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/"
        self._thread = threading.Thread(target=self._serve)

    @contextlib.contextmanager
    def running(self) -> Iterator["Closing"]:
        """Serve in a thread."""
        self._thread.start()
        try:
            yield self
        finally:
            self._close.set()
            # Wakes `accept`, also where closing the listener alone would not.
            self._listener.shutdown(socket.SHUT_RDWR)
            self._thread.join()
            self._listener.close()

    def close(self) -> None:
        """Close the connection, and return when that has been done."""
        self._close.set()
        self._closed.wait()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                with connection:
                    connection.recv(65536)
                    connection.sendall(OK)
                    self._close.wait()
                self._closed.set()


def test_a_request_into_a_connection_just_closed_is_lost_and_not_sent_again() -> None:
    """Nothing below us repeats a registration by itself."""

    async def main(server: Closing) -> Sent:
        async with transport() as carrier:
            send = carrier.sender(lambda: True, AMPLE)
            assert isinstance(await send(Request(server.url, {})), Answer)
            server.close()
            # No turn of the loop in between: the pool cannot know of it yet.
            return await send(Request(server.url, {}))

    with Closing().running() as server:
        assert isinstance(asyncio.run(main(server)), Lost)
        assert server.connections == 1


# -- giving up -------------------------------------------------------------------------------


async def until_broken(reader: asyncio.StreamReader) -> str:
    """How the client ended the connection."""
    try:
        while await reader.read(65536):
            pass
    except ConnectionResetError:
        return "reset"
    return "closed"


def test_giving_up_resets_the_connection() -> None:
    """What had not left when we gave up is dropped, and never arrives."""
    ends: asyncio.Queue[str] = asyncio.Queue()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends.put_nowait(await until_broken(reader))

    async def main() -> str:
        async with serving(handler) as server:
            assert await call(server.url(), budget=SHORT) == Lost("timeout")
            return await ends.get()

    assert asyncio.run(main()) == "reset"


def test_a_cancelled_call_resets_the_connection_and_stays_cancelled() -> None:
    """Stopping a worker in the middle of a call is not taken for an outcome."""
    arrived = asyncio.Event()
    ends: asyncio.Queue[str] = asyncio.Queue()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        arrived.set()
        ends.put_nowait(await until_broken(reader))

    async def main() -> str:
        async with serving(handler) as server:
            running = asyncio.create_task(call(server.url()))
            await arrived.wait()
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            return await ends.get()

    assert asyncio.run(main()) == "reset"


def test_an_unused_connection_is_closed_in_order() -> None:
    """After an answer the provider sees an ordinary end of the connection."""
    ends: asyncio.Queue[str] = asyncio.Queue()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(OK)
        ends.put_nowait(await until_broken(reader))

    async def main() -> str:
        async with serving(handler) as server:
            assert isinstance(await call(server.url()), Answer)
            return await ends.get()

    assert asyncio.run(main()) == "closed"


KILLED = """
import asyncio, sys
from worker.providers.base import Request
from worker.providers.transport import Transport
asyncio.run(Transport().sender(lambda: True, 60)(Request(sys.argv[1], {})))
"""


def test_a_killed_worker_resets_its_connections() -> None:
    """Not even the kernel delivers a dead worker's request later."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        with subprocess.Popen([sys.executable, "-c", KILLED, url]) as worker:
            connection, _ = listener.accept()
            with connection:
                request = b""
                while not request.endswith(b"{}"):
                    request += connection.recv(65536)
                os.kill(worker.pid, signal.SIGKILL)
                worker.wait()
                with pytest.raises(ConnectionResetError):
                    connection.recv(65536)


def test_a_call_that_ends_late_leaves_the_next_users_connection_alone() -> None:
    """Many calls at a time over few connections all get their answers."""

    async def main() -> list[Sent]:
        async with serving(answering(OK)) as server, transport() as carrier:
            send = carrier.sender(lambda: True, AMPLE)
            rounds = [
                await asyncio.gather(*(send(Request(server.url(), {})) for _ in range(20)))
                for _ in range(5)
            ]
            return [sent for one in rounds for sent in one]

    assert all(isinstance(sent, Answer) for sent in asyncio.run(main()))


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux only")
def test_the_kernel_gives_up_with_the_budget() -> None:
    """Bytes in the kernel's buffer are not delivered minutes later."""
    address = (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 0))
    with Transport(user_timeout=3.5)._socket(address) as made:
        assert made.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 3500


# -- classification --------------------------------------------------------------------------

#: Every error of httpx's transports, and what it proves where no connection was handed over.
PROVES = {
    "TransportError": Lost,
    "TimeoutException": Lost,
    "ConnectTimeout": NotSent,
    "ReadTimeout": Lost,
    "WriteTimeout": Lost,
    "PoolTimeout": NotSent,
    "NetworkError": Lost,
    "ConnectError": NotSent,
    "ReadError": Lost,
    "WriteError": Lost,
    "CloseError": Lost,
    "ProxyError": NotSent,
    "UnsupportedProtocol": NotSent,
    "ProtocolError": Lost,
    "LocalProtocolError": Lost,
    "RemoteProtocolError": Lost,
}


def tree(kind: type[httpx.TransportError]) -> Iterator[type[httpx.TransportError]]:
    """Yield an error and all errors below it."""
    yield kind
    for below in kind.__subclasses__():
        yield from tree(below)


ERRORS = sorted(set(tree(httpx.TransportError)), key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", ERRORS)
def test_every_transport_error_is_classified(kind: type[httpx.TransportError]) -> None:
    """An error that httpx adds has to be thought about before it counts as not sent."""
    assert type(classify(kind("x"), connected=False)) is PROVES[kind.__name__]


@pytest.mark.parametrize("kind", ERRORS)
def test_with_a_connection_no_error_proves_anything(kind: type[httpx.TransportError]) -> None:
    """The evidence goes before the exception's name."""
    assert isinstance(classify(kind("x"), connected=True), Lost)


@pytest.mark.parametrize("connected", [True, False])
def test_a_fault_of_our_own_is_lost(connected: bool) -> None:
    """What nobody thought of is never called not sent."""
    assert classify(ZeroDivisionError(), connected=connected) == Lost("ZeroDivisionError")


def test_reasons_hold_no_text_of_the_error() -> None:
    """Texts of errors hold URLs and parts of bodies; reasons are logged."""
    error = httpx.ReadError("https://user:hunter2@example.com/")
    assert classify(error, connected=True) == Lost("ReadError")

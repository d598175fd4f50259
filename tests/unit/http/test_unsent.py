"""A request of which a part is not sent yet, and its connection."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.loops import end_all
from worker.http.connections import Watched
from worker.providers.base import Answer, Lost, NotSent, Request
from worker.providers.http import MAX_ANSWER, HttpTransport

#: More than the kernel's buffers hold.
LARGE = bytes(30_000_000)

Use = Callable[
    [Callable[[bytes], Awaitable[Answer | NotSent | Lost]], HttpTransport], Awaitable[None]
]


def answer(number: int) -> bytes:
    """An answer with its number as the status."""
    return f"HTTP/1.1 {number} Fine\r\ncontent-length: 2\r\n\r\n{{}}".encode()


class Server:
    """Reads the head of each request, and answers with the next status; at the end of a connection
    it reads all that comes."""

    def __init__(self, certificate: Path | None, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.connections = 0
        self.read: list[int] = []
        """How much came after the last answer of a connection that ended in order."""
        self.ended = asyncio.Event()
        self.go_on = asyncio.Event()
        self._context: ssl.SSLContext | None = None
        if certificate is not None:
            self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            self._context.load_cert_chain(certificate)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Serve, at this URL."""
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await self._serve(reader, writer)
            finally:
                writer.transport.abort()
                self.ended.set()

        server = await asyncio.start_server(connected, sock=listener, ssl=self._context)
        scheme, host = ("https", "localhost") if self._context else ("http", "127.0.0.1")
        try:
            yield f"{scheme}://{host}:{listener.getsockname()[1]}/"
        finally:
            await end_all(server)
            await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        status = 0
        while status < 400 and self.statuses:
            await reader.readuntil(b"\r\n\r\n")
            status = self.statuses.pop(0)
            if status:
                writer.write(answer(status))
                await writer.drain()
            else:
                break
        await self.go_on.wait()
        read = 0
        while chunk := await reader.read(1 << 20):
            read += len(chunk)
        self.read.append(read)


def run(server: Callable[[], Server], use: Use) -> Server:
    """Use a transport with a server."""

    async def main() -> Server:
        made = server()
        transport = HttpTransport()

        async with made.serving() as url:

            async def call(body: bytes) -> Answer | NotSent | Lost:
                return await transport.sender(lambda: True, 1000.0)(Request(url, content=body))

            try:
                await use(call, transport)
            finally:
                # The server reads on in the next turn of the loop.
                made.go_on.set()
                await transport.aclose()
            await made.ended.wait()
        return made

    return asyncio.run(main())


async def until(seen: Callable[[], bool]) -> None:
    """Let the loop go on until this is so."""
    while not seen():  # noqa: ASYNC110 -- there is no event
        await asyncio.sleep(0)


def busy(transport: HttpTransport) -> list[Watched]:
    """The connections with a call."""
    clients = transport._clients.values()
    found = [one for client in clients for one in client._connector._acquired]
    return [one for one in found if isinstance(one, Watched)]


def test_a_connection_with_a_request_on_its_way_is_not_used_again(tls: Path | None) -> None:
    """A server that answers early would read the rest of a request as the next one; and it gets no
    more of it."""

    async def use(call: Callable[[bytes], Awaitable[Answer | NotSent | Lost]], _: object) -> None:
        for _number in range(2):
            came = await call(LARGE)
            assert isinstance(came, Answer)
            assert came.status == 413

    server = run(lambda: Server(tls, 413, 413), use)
    assert server.connections == 2
    assert server.read == []


def test_an_answer_to_a_request_that_is_not_sent_yet_may_be_anothers(tls: Path | None) -> None:
    """On a used connection: the server may have repeated the answer before."""

    async def use(call: Callable[[bytes], Awaitable[Answer | NotSent | Lost]], _: object) -> None:
        assert isinstance(await call(b""), Answer)
        assert await call(LARGE) == Lost("more than one answer arrived")

    run(lambda: Server(tls, 200, 413), use)


def test_what_is_not_sent_when_a_transport_is_closed_is_never_sent(tls: Path | None) -> None:
    """A worker that stops in the middle of a call gave it up."""

    calls = []

    async def use(
        call: Callable[[bytes], Awaitable[Answer | NotSent | Lost]], transport: HttpTransport
    ) -> None:
        calls.append(asyncio.ensure_future(call(LARGE)))
        await until(lambda: any(one.unsent for one in busy(transport)))

    server = run(lambda: Server(tls, 0), use)
    assert server.read == []
    assert isinstance(calls[0].result(), Lost)


def test_an_idle_connection_that_the_server_ends_ends_in_order(tls: Path | None) -> None:
    """And is not reset, which servers and load balancers would log."""

    async def main() -> None:
        server = Server(tls, 200)
        ended = asyncio.get_running_loop().create_future()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer(200))
            await answered.wait()
            if writer.can_write_eof():
                writer.write_eof()
            else:
                writer.close()
            try:
                ended.set_result(await reader.read())
            except OSError as error:
                ended.set_result(error)

        server._serve = serve  # type: ignore[method-assign]
        answered = asyncio.Event()
        transport = HttpTransport()
        async with server.serving() as url:
            call = transport.sender(lambda: True, 1000.0)
            assert isinstance(await call(Request(url, content=b"")), Answer)
            answered.set()
            assert await ended == b""
        await transport.aclose()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("rest", "reason"),
    [
        (b"content-length: 9\r\n\r\nhel", "answer cut off"),
        (b"transfer-encoding: chunked\r\n\r\n9\r\nhel", "answer cut off"),
        (b"transfer-encoding: chunked\r\n\r\n1\r\nh\r\n", "answer cut off"),
    ],
)
def test_an_answer_that_ends_early_is_cut_off(rest: bytes, reason: str, tls: Path | None) -> None:
    """Not an answer that is no HTTP."""

    async def main() -> None:
        server = Server(tls)

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 Fine\r\n" + rest)
            await writer.drain()
            writer.close()
            await writer.wait_closed()

        server._serve = serve  # type: ignore[method-assign]
        transport = HttpTransport()
        async with server.serving() as url:
            call = transport.sender(lambda: True, 1000.0)
            assert await call(Request(url, content=b"")) == Lost(reason)
        await transport.aclose()

    asyncio.run(main())


def test_an_answer_that_ends_with_its_closed_connection_is_no_fault(
    tls: Path | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Closed by us, since it was too large: then its end comes when nobody reads it any more."""

    async def main() -> None:
        server = Server(tls)

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 Fine\r\n\r\n" + bytes(MAX_ANSWER + 1))
            await reader.read()

        server._serve = serve  # type: ignore[method-assign]
        transport = HttpTransport()
        async with server.serving() as url:
            call = transport.sender(lambda: True, 1000.0)
            assert await call(Request(url, content=b"")) == Lost("answer too large")
            await server.ended.wait()
        await transport.aclose()

    asyncio.run(main())
    assert [one.getMessage() for one in caplog.records if one.name.startswith("aiohttp")] == []


def test_an_answer_that_is_broken_after_its_head_ends_the_call(tls: Path | None) -> None:
    """It is not waited for, whatever the call's time limit is."""

    async def main() -> None:
        server = Server(tls)
        head = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 Fine\r\ntransfer-encoding: chunked\r\n\r\n1\r\nh\r\n")
            await writer.drain()
            await head.wait()
            writer.write(b"no chunk\r\n")
            await writer.drain()
            await reader.read()

        server._serve = serve  # type: ignore[method-assign]
        transport = HttpTransport()
        async with server.serving() as url:
            calling = asyncio.ensure_future(
                transport.sender(lambda: True, 1000.0)(Request(url, content=b""))
            )
            await until(lambda: any(one._payload is not None for one in busy(transport)))
            head.set()
            assert isinstance(await calling, Lost)
        await transport.aclose()

    asyncio.run(main())

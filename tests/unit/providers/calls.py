"""Calls over real sockets, to servers with answers that the test chooses."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from tests.loops import stop_accepting
from worker.providers.base import Answer, Lost, NotSent, Request
from worker.providers.http import HttpTransport

Sent = Answer | NotSent | Lost
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

#: Seconds. Long enough for any call that ends by itself.
AMPLE = 20.0
#: Seconds. For calls that end only with the budget.
SHORT = 0.6

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


class Server:
    """A server with one handler; counts connections."""

    def __init__(self, handler: Handler) -> None:
        self.connections = 0
        self.port = 0
        self._handler = handler
        self._tasks: set[asyncio.Task[None]] = set()

    def url(self, scheme: str = "http", path: str = "/") -> str:
        """The URL at which it listens."""
        return f"{scheme}://127.0.0.1:{self.port}{path}"

    def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection.

        `stop` must know it and close it even before the first step of its task: from Python 3.12
        on, `wait_closed` waits for each connection."""
        self.connections += 1
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        task.add_done_callback(lambda _: writer.transport.abort())
        self._tasks.add(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Broken connections are what these tests are about; the handler just ends.
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await self._handler(reader, writer)

    async def stop(self) -> None:
        """End all open handlers."""
        for task in self._tasks:
            task.cancel()
        for ended in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(ended, Exception):
                raise ended
        for _ in range(2):  # an aborted connection is closed in the next turn
            await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[Server]:
    """Run a server."""
    server = Server(handler)
    listener = await asyncio.start_server(server, "127.0.0.1", 0)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        await stop_accepting(listener)
        await server.stop()
        await listener.wait_closed()


@contextlib.asynccontextmanager
async def transport() -> AsyncIterator[HttpTransport]:
    """Make a transport, and close it at the end."""
    made = HttpTransport()
    try:
        yield made
    finally:
        await made.aclose()


async def call(
    url: str, *, budget: float = AMPLE, may_send: Callable[[], bool] = lambda: True
) -> Sent:
    """Make one call over a separate transport."""
    async with transport() as carrier:
        return await carrier.sender(may_send, budget)(Request(url, {"password": "pass123"}))


def outcome(handler: Handler, *, budget: float = AMPLE, scheme: str = "http") -> Sent:
    """The outcome of one call to a server with this handler."""

    async def main() -> Sent:
        async with serving(handler) as server:
            return await call(server.url(scheme), budget=budget)

    return asyncio.run(main())


async def read_request(reader: asyncio.StreamReader) -> bytes:
    """Read a whole request: head and body."""
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
    """Accept a connection, and send nothing."""
    await asyncio.Event().wait()

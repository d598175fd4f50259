"""Calls whose answer is lost: the provider may have carried them out."""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from tests.unit.providers.calls import (
    AMPLE,
    OK,
    SHORT,
    Handler,
    Sent,
    answering_once,
    outcome,
    read_request,
    serving,
    silent,
    transport,
)
from worker.providers.base import Answer, Lost, Request


async def close_unread(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Close the connection without reading everything."""
    await reader.readexactly(1)
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
        pytest.param(close_unread, id="closes before reading all"),
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
    """A server that accepted the connection may have carried the request out."""
    assert isinstance(outcome(handler), Lost)


def test_a_reset_is_named() -> None:
    """The reason is short and the same, whatever aiohttp calls the error."""
    assert outcome(reset_after_reading) == Lost("connection reset")


def test_a_server_that_never_answers_ends_with_the_budget() -> None:
    """A call takes no longer than its budget."""
    assert outcome(silent, budget=SHORT) == Lost("timeout")


def test_a_server_that_dribbles_ends_with_the_budget() -> None:
    """The budget is for the whole call: single bytes don't extend it."""

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
    """The budget also covers writing the request."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        writer.write(HALF)
        await asyncio.Event().wait()

    async def main() -> Sent:
        async with serving(handler) as server, transport() as carrier:
            request = Request(server.url(), "x" * 2**24)
            return await carrier.sender(lambda: True, 4 * SHORT)(request)

    assert asyncio.run(main()) == Lost("timeout")


class Closing:
    """Answers one request, and closes the connection when the test asks for it."""

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
            # Wakes `accept`; closing the listener alone may not.
            self._listener.shutdown(socket.SHUT_RDWR)
            self._thread.join()
            self._listener.close()

    def close(self) -> None:
        """Close the connection, and return when it is closed."""
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


def test_a_connection_just_closed_is_not_used_for_a_request() -> None:
    """The request would be lost; another connection carries it."""

    async def main(server: Closing) -> Sent:
        async with transport() as carrier:
            send = carrier.sender(lambda: True, AMPLE)
            assert isinstance(await send(Request(server.url, {})), Answer)
            server.close()
            # The loop has had no turn since: only the kernel knows of it.
            return await send(Request(server.url, {}))

    with Closing().running() as server:
        assert isinstance(asyncio.run(main(server)), Answer)
        assert server.connections == 2

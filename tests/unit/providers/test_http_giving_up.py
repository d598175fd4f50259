"""A call that is given up ends its connection, too."""

import asyncio
import os
import signal
import socket
import subprocess
import sys

import pytest

from tests.unit.providers.calls import (
    AMPLE,
    OK,
    SHORT,
    Sent,
    answering,
    call,
    read_request,
    serving,
    transport,
)
from worker.providers.base import Answer, Lost, Request
from worker.providers.http import HttpTransport


async def until_broken(reader: asyncio.StreamReader) -> str:
    """How the client ended the connection: `reset` or `closed`."""
    try:
        while await reader.read(65536):
            pass
    except ConnectionResetError:
        return "reset"
    return "closed"


def test_giving_up_resets_the_connection() -> None:
    """Bytes that were not yet sent are dropped, and never arrive."""
    ends: asyncio.Queue[str] = asyncio.Queue()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends.put_nowait(await until_broken(reader))

    async def main() -> str:
        async with serving(handler) as server:
            assert await call(server.url(), budget=SHORT) == Lost("timeout")
            return await ends.get()

    assert asyncio.run(main()) == "reset"


def test_a_cancelled_call_resets_the_connection_and_stays_cancelled() -> None:
    """Stopping a worker during a call gives no outcome."""
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
    """After an answer the provider sees a normal end of the connection."""
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
from worker.providers.http import HttpTransport
asyncio.run(HttpTransport().sender(lambda: True, 60)(Request(sys.argv[1], {})))
"""


def test_a_killed_worker_resets_its_connections() -> None:
    """The kernel does not deliver a dead worker's request later."""
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
    """Many calls share few connections, and all get their answers."""

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
    with HttpTransport(user_timeout=3.5)._socket(address) as made:
        assert made.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 3500

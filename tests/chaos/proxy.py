"""A network with faults on command: TCP links in front of the servers.

Each link listens on a port of its own and forwards to one server. It can refuse, reset, hold data
back and release it later (even after its sender has given up: a delayed packet), swallow the
answers, delay, or forget its connections, so that they are silently dead.
"""

import asyncio
import os
import random
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from tests.loops import end_all, stop_accepting

#: `SO_LINGER` on with 0 seconds: closing resets.
_RESET = struct.pack("ii", 1, 0)

#: The number of this process among those that run tests at the same time, and how many these are.
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))

#: Below the ports that the kernel assigns to outgoing connections: one of these could take the
#: port of a server that is down for a moment. So could a server of another process, or the port of
#: one that has not started yet, so each process has its own.
_PORTS = range(12000, 30000)[_WORKER::_WORKERS]

#: The last ports that were chosen, which are not chosen again soon.
_chosen: deque[int] = deque(maxlen=len(_PORTS) // 2)


#: Seconds for the loop to carry out a command. An overloaded machine needs many.
PATIENCE = 60.0


def free_port() -> int:
    """A port on which nothing listens, and which no outgoing connection can get."""
    for _ in range(1000):
        port = random.SystemRandom().choice(_PORTS)
        if port in _chosen:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                probe.bind(("127.0.0.1", port))
                _chosen.append(port)
                return port
    raise RuntimeError("no free port on 127.0.0.1")


def free_ports(number: int) -> list[int]:
    """Different ports of this kind."""
    return [free_port() for _ in range(number)]


@dataclass(eq=False)
class _Connection:
    """Both halves of one proxied connection."""

    writers: tuple[asyncio.StreamWriter, asyncio.StreamWriter]
    #: It swallows all data and answers nothing.
    forgotten: bool = False
    #: One of its answers was swallowed: it cannot continue.
    torn: bool = False
    #: Its source port, which identifies its owner.
    source: int = 0
    #: Cleared while no data of this connection gets through.
    open: asyncio.Event = field(default_factory=asyncio.Event)
    delay: float = 0.0

    def reset(self) -> None:
        for writer in self.writers:
            with suppress(OSError):
                writer.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, _RESET
                )
            writer.transport.abort()


@dataclass(eq=False)
class Link:
    """The route to one server. All methods run in the proxy's loop."""

    name: str
    target: int
    #: Seconds of delay for each piece of data, even without faults.
    distance: float = 0.0
    port: int = field(default_factory=free_port)
    delay: float = 0.0
    muted: bool = False
    #: Decides by a connection's two ports whether it is held. None: no connection is held.
    held: Callable[[int, int], bool] | None = None
    _open: asyncio.Event = field(default_factory=asyncio.Event)
    _server: asyncio.Server | None = None
    _connections: set[_Connection] = field(default_factory=set)

    async def listen(self) -> None:
        """Accept connections."""
        self.delay = self.distance
        self._open.set()
        if self._server is None:
            self._server = await asyncio.start_server(
                self._serve, "127.0.0.1", self.port, reuse_address=True, backlog=512
            )

    async def refuse(self) -> None:
        """Reset all connections, and refuse new ones."""
        server, self._server = self._server, None
        if server is not None:
            await stop_accepting(server)
        await self.reset()

    async def reset(self) -> None:
        """Reset every connection."""
        for connection in list(self._connections):
            connection.reset()

    async def hold(self) -> None:
        """From now on no data gets through, in either direction."""
        self._open.clear()

    async def hold_some(self, held: Callable[[int, int], bool]) -> None:
        """The same for present and future connections whose ports satisfy `held`."""
        self.held = held
        for connection in self._connections:
            if held(connection.source, self.port):
                connection.open.clear()

    async def slow_some(self, held: Callable[[int, int], bool], delay: float) -> None:
        """For present connections that match, each piece of data is delayed by so many seconds."""
        for connection in self._connections:
            if held(connection.source, self.port):
                connection.delay = delay

    async def reset_some(self, held: Callable[[int, int], bool]) -> None:
        """Reset the present connections that match."""
        for connection in list(self._connections):
            if held(connection.source, self.port):
                connection.reset()

    async def heal_some(self, how: str = "release") -> None:
        """Those connections forward data again; `how`: as for `heal`."""
        self.held = None
        for connection in list(self._connections):
            if how == "reset" and not connection.open.is_set():
                connection.reset()
            connection.delay = 0.0
            connection.open.set()

    async def mute(self) -> None:
        """From now on requests get through, and answers do not."""
        self.muted = True

    async def slow(self, delay: float) -> None:
        """From now on each piece of data is delayed by so many seconds."""
        self.delay = delay

    async def forget(self) -> None:
        """From now on the present connections are dead, without any signal."""
        for connection in list(self._connections):
            connection.forgotten = True

    async def heal(self, how: str = "release") -> None:
        """Forward data again; `how`: held data is released, or reset with its connections."""
        self.muted = False
        for connection in list(self._connections):
            if how == "reset" or connection.torn:
                connection.reset()
        await self.listen()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # The proxy's end cancels this; asyncio would log that as an error.
        with suppress(asyncio.CancelledError):
            await self._relay(reader, writer)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream = await asyncio.open_connection("127.0.0.1", self.target)
        except (OSError, asyncio.CancelledError):  # or the proxy ends
            _Connection((writer, writer)).reset()
            return
        source = writer.get_extra_info("peername")[1]
        connection = _Connection((writer, upstream[1]), source=source)
        if self.held is None or not self.held(source, self.port):
            connection.open.set()
        self._connections.add(connection)
        pumps = [
            asyncio.ensure_future(self._pump(connection, reader, upstream[1], answers=False)),
            asyncio.ensure_future(self._pump(connection, upstream[0], writer, answers=True)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._connections.discard(connection)
            for one in connection.writers:
                one.close()
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(
        self,
        connection: _Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        answers: bool,
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                if delay := max(self.delay, connection.delay):
                    await asyncio.sleep(delay)
                # Data that was read is forwarded when the hold ends, whether or not its sender
                # still waits.
                await self._open.wait()
                await connection.open.wait()
                if self.muted and answers:
                    connection.torn = True
                if not (connection.forgotten or (connection.torn and answers)):
                    writer.write(data)
                    await writer.drain()


class Proxy:
    """All links, in a thread with an event loop; its methods may be called from any thread."""

    def __init__(self) -> None:
        self.links: dict[str, Link] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def add(self, name: str, target: int, distance: float = 0.0) -> Link:
        """Open a link to a port of this machine."""
        link = self.links[name] = Link(name, target, distance)
        self._run(link.listen())
        return link

    def do(self, what: str, name: str, *arguments: Any) -> None:
        """Call a method of one link."""
        self._run(getattr(self.links[name], what)(*arguments))

    def heal(self) -> None:
        """All links forward data again. Forgotten connections stay dead."""
        for name in self.links:
            self.do("heal", name)

    def __enter__(self) -> "Proxy":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for name in self.links:
            self.do("refuse", name)
        self._run(end_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)

"""A network that misbehaves when told to: TCP links in front of the servers.

Each link listens on a port of its own and passes bytes on to one server. It can refuse, reset,
hold bytes back and release them later (even if their sender has long given up: a delayed packet),
swallow the answers, delay, or forget its connections, so that they are dead without saying so.
"""

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

#: `SO_LINGER` on with 0 seconds: closing resets.
_RESET = struct.pack("ii", 1, 0)

#: Below the ports that the kernel gives to outgoing connections, or one of these could take the
#: port of a server that is down for a moment.
_PORTS = range(12000, 30000)


def free_port() -> int:
    """A port that nobody listens on, and that no outgoing connection will get."""
    for _ in range(1000):
        port = random.SystemRandom().choice(_PORTS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise RuntimeError("no free port on 127.0.0.1")


@dataclass(eq=False)
class _Connection:
    """Both halves of one proxied connection."""

    writers: tuple[asyncio.StreamWriter, asyncio.StreamWriter]
    #: Swallows everything, and says nothing.
    forgotten: bool = False
    #: An answer of it was swallowed: it can't go on.
    torn: bool = False

    def reset(self) -> None:
        for writer in self.writers:
            with suppress(OSError):
                writer.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, _RESET
                )
            writer.transport.abort()


@dataclass(eq=False)
class Link:
    """One way to one server. All methods run in the proxy's loop."""

    name: str
    target: int
    #: Seconds that each piece takes, also when all is well.
    distance: float = 0.0
    port: int = field(default_factory=free_port)
    delay: float = 0.0
    muted: bool = False
    _open: asyncio.Event = field(default_factory=asyncio.Event)
    _server: asyncio.Server | None = None
    _connections: set[_Connection] = field(default_factory=set)

    async def listen(self) -> None:
        """Take connections."""
        self.delay = self.distance
        self._open.set()
        if self._server is None:
            self._server = await asyncio.start_server(
                self._serve, "127.0.0.1", self.port, reuse_address=True, backlog=512
            )

    async def refuse(self) -> None:
        """Reset what there is, and refuse what comes."""
        if self._server is not None:
            self._server.close()
            self._server = None
        await self.reset()

    async def reset(self) -> None:
        """Reset every connection."""
        for connection in list(self._connections):
            connection.reset()

    async def hold(self) -> None:
        """From now on no byte gets through, in either direction."""
        self._open.clear()

    async def mute(self) -> None:
        """From now on requests get through, and answers don't."""
        self.muted = True

    async def slow(self, delay: float) -> None:
        """From now on each piece takes this many seconds."""
        self.delay = delay

    async def forget(self) -> None:
        """The connections of this moment are dead from now on, without a sign of it."""
        for connection in list(self._connections):
            connection.forgotten = True

    async def heal(self, how: str = "release") -> None:
        """Pass bytes again; `how`: what was held is released, or reset with its connections."""
        self.muted = False
        for connection in list(self._connections):
            if how == "reset" or connection.torn:
                connection.reset()
        await self.listen()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Cancelled is what it is when the proxy ends; asyncio would log that as an error.
        with suppress(asyncio.CancelledError):
            await self._relay(reader, writer)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            _Connection((writer, writer)).reset()
            return
        connection = _Connection((writer, upstream[1]))
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
                if self.delay:
                    await asyncio.sleep(self.delay)
                # What was read is passed on when the hold ends, whether or not its sender waits.
                await self._open.wait()
                if self.muted and answers:
                    connection.torn = True
                if not (connection.forgotten or (connection.torn and answers)):
                    writer.write(data)
                    await writer.drain()


class Proxy:
    """All links, in a thread with a loop of its own; its methods may be called from any thread."""

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
        """Let one link do something: a method of `Link`."""
        self._run(getattr(self.links[name], what)(*arguments))

    def heal(self) -> None:
        """All links pass bytes again. Forgotten connections stay forgotten."""
        for name in self.links:
            self.do("heal", name)

    def __enter__(self) -> "Proxy":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for name in self.links:
            self.do("refuse", name)
        self._run(_end_tasks())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)


async def _end_tasks() -> None:
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

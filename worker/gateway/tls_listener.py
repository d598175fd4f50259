"""Accepts connections over TLS, with limits for those on which TLS has still to begin.

A server of asyncio's waits for a minute, and its protocols see none of these connections. So silent
clients would take all files of the process.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from functools import partial

#: The most connections on which the client has sent nothing. Beyond it, each new one ends the
#: oldest. They cost little, and a client that opens hundreds at once may need a second to begin.
MOST_SILENT = 2000

#: The most connections in the middle of TLS's first messages. Then no more are accepted until one
#: is through: many clients at once, as after a restart, wait for each other.
MOST_BEGINNING = 400

#: Seconds after which the oldest of these gives way.
SLOW = 2.0

#: Seconds for a client's first byte, and then for TLS to begin: as for the headers of a request.
PATIENCE = 10.0

#: Seconds until it accepts again after an error of the system, such as too many open files.
PAUSE = 0.1


class TlsListener:
    """Accepts until it is closed. It has what uvicorn uses of a server."""

    def __init__(
        self, listener: socket.socket, context: ssl.SSLContext, make: Callable[[], asyncio.Protocol]
    ) -> None:
        """`make`: a new connection's protocol. To be made in a running loop."""
        # A copy, which is closed only when the loop does not use it any more.
        self._listener = listener.dup()
        self._listener.setblocking(False)
        self._context, self._make = context, make
        self._loop = asyncio.get_running_loop()
        self._silent: dict[socket.socket, asyncio.Task[None]] = {}
        """The oldest first."""
        self._beginning: dict[socket.socket, float] = {}
        """Since when, in the loop's time; the oldest first."""
        self._ended = asyncio.Event()
        """Set when TLS has begun or failed on one."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._accepting = asyncio.create_task(self._accept())
        self._accepting.add_done_callback(lambda _: self._listener.close())

    def close(self) -> None:
        """Accept no more, and end all connections on which TLS has not begun."""
        self._accepting.cancel()
        for task in self._tasks:
            task.cancel()

    async def wait_closed(self) -> None:
        """Wait for their end."""
        await asyncio.wait([self._accepting, *self._tasks])

    async def _accept(self) -> None:
        while True:
            await self._room()
            try:
                made, _ = await self._loop.sock_accept(self._listener)
            except OSError:
                await asyncio.sleep(PAUSE)
                continue
            if len(self._silent) >= MOST_SILENT:
                oldest = next(iter(self._silent))
                self._silent.pop(oldest).cancel()
            task = self._silent[made] = self._loop.create_task(self._begin(made))
            self._tasks.add(task)
            task.add_done_callback(partial(self._done, made))

    async def _room(self) -> None:
        """Wait until TLS begins on few enough connections."""
        while len(self._beginning) >= MOST_BEGINNING:
            oldest, since = next(iter(self._beginning.items()))
            if (left := since + SLOW - self._loop.time()) > 0:
                self._ended.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._ended.wait(), left)
            else:
                del self._beginning[oldest]
                with suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)

    async def _begin(self, made: socket.socket) -> None:
        try:
            await self._spoken(made)
        except TimeoutError:
            made.close()
            return
        finally:
            self._silent.pop(made, None)
        self._beginning[made] = self._loop.time()
        try:
            await self._loop.connect_accepted_socket(
                self._make, made, ssl=self._context, ssl_handshake_timeout=PATIENCE
            )
        except OSError:
            pass  # no TLS, or not in time: its transport has closed it
        finally:
            self._beginning.pop(made, None)
            self._ended.set()

    def _done(self, made: socket.socket, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():  # perhaps before its first step
            made.close()

    async def _spoken(self, made: socket.socket) -> None:
        """Wait for the client's first byte."""
        spoken = asyncio.Event()
        self._loop.add_reader(made, spoken.set)
        try:
            async with asyncio.timeout(PATIENCE):
                await spoken.wait()
        finally:
            self._loop.remove_reader(made)

"""Accepts connections over TLS, with a limit for those on which TLS has still to begin.

A server of asyncio's waits for a minute, and its protocols see none of these connections. So silent
clients would take all files of the process.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress

#: The most connections on which TLS has still to begin. Beyond it, each new one ends the oldest.
MOST_BEGINNING = 200

#: Seconds for TLS to begin: as for the headers of a request.
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
        self._beginning: dict[socket.socket, asyncio.Task[None]] = {}
        """The oldest first."""
        self._accepting = asyncio.create_task(self._accept())
        self._accepting.add_done_callback(lambda _: self._listener.close())

    def close(self) -> None:
        """Accept no more, and end all connections on which TLS has not begun."""
        self._accepting.cancel()
        for task in self._beginning.values():
            task.cancel()

    async def wait_closed(self) -> None:
        """Wait for their end."""
        await asyncio.wait([self._accepting, *self._beginning.values()])

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                made, _ = await loop.sock_accept(self._listener)
            except OSError:
                await asyncio.sleep(PAUSE)
                continue
            if len(self._beginning) >= MOST_BEGINNING:
                oldest = next(iter(self._beginning))
                del self._beginning[oldest]
                with suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)
            self._beginning[made] = loop.create_task(self._begin(made))

    async def _begin(self, made: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(
                self._make, made, ssl=self._context, ssl_handshake_timeout=PATIENCE
            )
        except OSError:
            pass  # no TLS, or not in time: its transport has closed it
        finally:
            self._beginning.pop(made, None)

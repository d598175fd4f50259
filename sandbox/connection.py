"""Breaks real connections: closes or resets the TCP connection of a request."""

import asyncio
import contextlib
import socket
import struct
from typing import Any, cast

from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

#: A linger time of 0: the kernel answers a close with RST.
_RESET = struct.pack("ii", 1, 0)


class BreakableConnection(H11Protocol):
    """Uvicorn's HTTP protocol, accessible to the app as `scope["state"]["connection"]`."""

    #: The server's stop does not wait for a held connection.
    held = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Put the connection into the state that each of its requests copies."""
        super().connection_made(transport)
        # asyncio does so only for sockets with an explicit protocol, which our listener's do not
        # have; without it, every answer but a connection's first waits 40 ms for an ACK
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.app_state = {**self.app_state, "connection": self}


class NoAnswer(Response):
    """Answers nothing: holds the connection, then closes or resets it.

    `hold` in seconds; None: until the client disconnects.
    """

    def __init__(self, hold: float | None = 0, *, reset: bool = False) -> None:
        super().__init__()
        self.hold = hold
        self.reset = reset

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hold and break the connection."""
        connection = _connection(scope)
        connection.held = True
        await _client_leaves(receive, self.hold)
        if self.reset:
            sock = cast(socket.socket, connection.transport.get_extra_info("socket"))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            connection.transport.abort()
        else:
            connection.transport.close()
        await _client_leaves(receive, None)


class Truncated(Response):
    """Promises a whole body, sends half of it, and closes the connection."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send half and close."""
        half = bytes(self.body)[: len(self.body) // 2]
        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        await send({"type": "http.response.body", "body": half, "more_body": True})
        _connection(scope).transport.close()  # after the written data has been sent
        await _client_leaves(receive, None)


class Repeated(Response):
    """Answers, and sends the same bytes once more, unrequested.

    `delay`: seconds after the answer; 0: together with it.
    """

    def __init__(
        self,
        delay: float,
        body: bytes,
        status: int,
        headers: dict[str, str],
        media_type: str,
    ) -> None:
        super().__init__(body, status, headers, media_type)
        self.delay = delay

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, and repeat it."""
        transport: Any = _connection(scope).transport
        pieces: list[bytes] = []
        ends: list[bool] = []
        transport.write = pieces.append
        # If the client wants only one answer, close only after both were sent.
        transport.close = lambda: ends.append(True)
        try:
            await super().__call__(scope, receive, send)
        finally:
            del transport.write, transport.close
        answer = b"".join(pieces)
        transport.write(answer if self.delay else 2 * answer)
        if self.delay:
            await asyncio.sleep(self.delay)
            if not transport.is_closing():
                transport.write(answer)
        if ends:
            transport.close()


def _connection(scope: Scope) -> BreakableConnection:
    connection = scope.get("state", {}).get("connection")
    if not isinstance(connection, BreakableConnection):
        raise TypeError("Broken connections need sandbox.server; an in-memory transport has none.")
    return connection


async def _client_leaves(receive: Receive, patience: float | None) -> None:
    """Wait until the connection is gone, for `patience` seconds at most."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(patience):
            while (await receive())["type"] != "http.disconnect":
                pass

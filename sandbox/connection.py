"""Breaking connections for real: closing and resetting the TCP connection under a request."""

import asyncio
import contextlib
import socket
import struct
from typing import cast

from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

#: Linger for no time: the kernel answers a close with RST.
_RESET = struct.pack("ii", 1, 0)


class BreakableConnection(H11Protocol):
    """Uvicorn's HTTP protocol, showing itself to the app in `scope["state"]["connection"]`."""

    #: A held connection is not waited for when the server stops.
    held = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Remember the connection in the state that each of its requests gets a copy of."""
        super().connection_made(transport)
        # asyncio does so only for sockets of an explicit protocol, which our listener's are not;
        # without it every answer but a connection's first waits 40 ms for an ACK
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.app_state = {**self.app_state, "connection": self}


class NoAnswer(Response):
    """Answers nothing: holds the connection, then closes or resets it.

    `hold` in seconds; None holds until the client leaves.
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
    """Promises a whole body, sends the first half of it, and closes the connection."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send half and close."""
        half = bytes(self.body)[: len(self.body) // 2]
        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        await send({"type": "http.response.body", "body": half, "more_body": True})
        _connection(scope).transport.close()  # after what is written has been sent
        await _client_leaves(receive, None)


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

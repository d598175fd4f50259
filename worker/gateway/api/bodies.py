"""Reading a body: while it arrives, its request counts among those that wait."""

from collections.abc import Mapping
from typing import Any

from starlette.requests import ClientDisconnect

from worker.gateway.auth import Principal
from worker.gateway.connection import ARRIVED
from worker.gateway.middleware import Receive
from worker.gateway.services import Services


async def whole(
    here: Services, principal: Principal, asked: Mapping[str, Any], receive: Receive
) -> bytes:
    """The body of a request. Raises `NotTaken` (429) as `Gate.waits`, and `ClientDisconnect`.

    `asked`: the request's ASGI scope.
    """
    if asked["state"].get(ARRIVED):
        return await _read(receive)
    async with here.gate.waits(principal):
        return await _read(receive)


async def _read(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)

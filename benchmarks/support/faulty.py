"""The provider of `benchmarks.soak`: answers at once, and a small share of its calls fails.

It counts the customers that it makes for each job, so that a doubled one is seen. Like `stub.py`,
it prints `listening on URL`; `/counts` shows what it did so far.
"""

import argparse
import asyncio
import copy
import json
import random
import re
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from benchmarks.support.stub import serve
from sandbox.documented import SKYPOSTAL_REGISTERED

#: The share of registrations with each fault: so few that five in a row, which open the account's
#: breaker, do not happen by chance.
FAULTS = {
    "slow": 0.0005,  # carried out; the answer takes a second
    "silent": 0.0005,  # carried out; no answer within the client's time limit
    "late": 0.0005,  # carried out after the client's time limit; no answer
    "reset": 0.001,  # carried out; a TCP RST instead of the answer
    "reset before": 0.001,  # a TCP RST; not carried out
    "500": 0.001,  # carried out; the answer is 500
    "503": 0.001,  # not carried out
    "429": 0.0005,  # not carried out
}

#: The share of webhooks that fail at first. Their next try comes five seconds later.
HOOKS_FAIL = 0.005

#: Seconds until a slow answer, and until a late call is carried out: longer than the client waits,
#: and shorter than its settle delay.
SLOW, LATE = 1.0, 3.0

#: A linger time of 0: the kernel answers a close with RST.
_RESET = struct.pack("ii", 1, 0)

_Message = MutableMapping[str, Any]
_Send = Callable[[_Message], Awaitable[None]]
_Receive = Callable[[], Awaitable[_Message]]


class Connection(HttpToolsProtocol):
    """Uvicorn's protocol, which the app can reach to break the connection."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Put the connection into the state that its requests get."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, "connection": self}

    def reset(self) -> None:
        """Break it."""
        end: socket.socket = self.transport.get_extra_info("socket")
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()


class Faulty:
    """The provider's ASGI app."""

    def __init__(self, jobs: int) -> None:
        self.made = bytearray(jobs + 1)
        """How many customers were made for each job's number."""
        self.faults: Counter[str] = Counter()
        self._hooks: set[bytes] = set()
        self._failed: set[bytes] = set()
        self._random = random.Random(1)
        answer = copy.deepcopy(SKYPOSTAL_REGISTERED)
        answer[0]["customer_box_id"] = 0
        self._before, self._after = json.dumps(answer).split('"customer_box_id": 0', 1)
        answer[0]["_verify"] = False
        answer[0]["error"]["error_description"] = "There is no customer with this email."
        self._nobody = json.dumps(answer).encode()

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """Answer one request."""
        body = b""
        message: _Message = {"more_body": True}
        while message.get("more_body"):
            message = await receive()
            body += message.get("body", b"")
        path: str = scope["path"]
        if path == "/counts":
            return await _answer(send, 200, json.dumps(self._counts()).encode())
        if path.startswith("/hooks/"):
            return await _answer(send, self._hook(dict(scope["headers"])[b"webhook-id"]), b"{}")
        found = re.search(rb"customer(\d+)@", body)
        number = int(found[1]) if found else 0
        if path.endswith("/customer-registration"):
            return await self._register(number, scope["state"]["connection"], receive, send)
        return await _answer(
            send, 200, self._customer(number) if self.made[number] else self._nobody
        )

    async def _register(
        self, number: int, connection: Connection, receive: _Receive, send: _Send
    ) -> None:
        fault = self._draw()
        self.faults[fault] += 1
        if fault == "late":
            asyncio.get_running_loop().call_later(LATE, self._make, number)
        elif fault not in {"reset before", "503", "429"}:
            self._make(number)
        match fault:
            case "silent" | "late":
                while (await receive())["type"] != "http.disconnect":
                    pass
            case "reset" | "reset before":
                connection.reset()
            case "500" | "503" | "429":
                await _answer(send, int(fault), b"{}")
            case _:
                await asyncio.sleep(SLOW if fault == "slow" else 0)
                await _answer(send, 200, self._customer(number))

    def _draw(self) -> str:
        drawn = self._random.random()
        for fault, share in FAULTS.items():
            drawn -= share
            if drawn < 0:
                return fault
        return "none"

    def _make(self, number: int) -> None:
        self.made[number] += 1

    def _customer(self, number: int) -> bytes:
        return f'{self._before}"customer_box_id": {number}{self._after}'.encode()

    def _hook(self, event: bytes) -> int:
        if event not in self._failed and self._random.random() < HOOKS_FAIL:
            self._failed.add(event)
            return 503
        self._hooks.add(event)
        return 200

    def _counts(self) -> dict[str, Any]:
        return {
            "customers": sum(map(bool, self.made)),
            "doubled": sum(count > 1 for count in self.made),
            "hooks": len(self._hooks),
            "hooks_failed": len(self._failed),
            "calls": self.faults,
        }


async def _answer(send: _Send, status: int, body: bytes) -> None:
    headers = [
        (b"content-type", b"application/json; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def main() -> None:
    """Serve until it is stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, required=True, help="the largest number of a job")
    options = parser.parse_args()
    serve(Faulty(options.jobs), http=Connection, log_level="critical")


if __name__ == "__main__":
    main()

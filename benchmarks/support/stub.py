"""The provider: answers registrations after 50 ms, as documented by SkyPostal, and receives
webhooks.

An ASGI app without a framework, so that it is never the bottleneck: `ceiling.py` prints how many
calls it can handle. It prints `listening on URL`; `/counts` shows what it has answered so far, and
`/calls?word` when each call with that word and a number in its body came and was answered.
"""

import argparse
import asyncio
import copy
import json
import re
import socket
import time
from collections.abc import Awaitable, Callable, MutableMapping
from itertools import count
from typing import Any

import uvicorn

from sandbox.documented import SKYPOSTAL_REGISTERED

#: Seconds until a registration is answered.
ANSWER_TIME = 0.05

#: Seconds. Longer than any client's: with uvicorn's 5, which httpx also uses, some calls would use
#: a connection that is just being closed, and be repeated after a quarter of a minute.
KEEP_ALIVE = 75

_Message = MutableMapping[str, Any]
_Send = Callable[[_Message], Awaitable[None]]
_Receive = Callable[[], Awaitable[_Message]]

_JSON = [(b"content-type", b"application/json; charset=utf-8")]


class Stub:
    """Counts what it answers."""

    def __init__(self) -> None:
        self.counts = {"registrations": 0, "hooks": 0}
        self._calls: list[tuple[bytes, float, float]] = []
        self._boxes = count(811111)
        # Everything except the box's number is the same for all: created once.
        answer = copy.deepcopy(SKYPOSTAL_REGISTERED)
        answer[0]["customer_box_id"] = 0
        self._before, self._after = json.dumps(answer).split('"customer_box_id": 0', 1)

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """Answer one request; its body is read, but not parsed."""
        path: str = scope["path"]
        arrived = time.time()
        message = await receive()
        begun = message.get("body", b"")
        while message.get("more_body"):
            message = await receive()
        if path.endswith("/customer-registration"):
            await asyncio.sleep(ANSWER_TIME)
            self.counts["registrations"] += 1
            self._calls.append((begun, arrived, time.time()))
            body = f'{self._before}"customer_box_id": {next(self._boxes)}{self._after}'.encode()
        elif path.startswith("/hooks/"):
            self.counts["hooks"] += 1
            body = b"{}"
        elif path == "/calls":
            body = json.dumps(self._seen(scope["query_string"])).encode()
        else:
            body = json.dumps(self.counts).encode()
        headers = [*_JSON, (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _seen(self, word: bytes) -> dict[str, tuple[float, float]]:
        # Searched on request, so that recording a call costs as little as possible.
        return {
            found[0].decode(): (arrived, answered)
            for begun, arrived, answered in self._calls
            if (found := re.search(rb"\b" + re.escape(word) + rb"\d+", begun))
        }


def serve(app: Any, **config: Any) -> None:
    """Serve on a loopback port until it is stopped; `config`: uvicorn's, in addition."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        # uvloop and httptools are used if they are installed.
        chosen = uvicorn.Config(
            app, lifespan="off", access_log=False, timeout_keep_alive=KEEP_ALIVE, **config
        )
        uvicorn.Server(chosen).run(sockets=[listener])


def main() -> None:
    """Serve until it is stopped."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    serve(Stub(), log_level="warning")


if __name__ == "__main__":
    main()

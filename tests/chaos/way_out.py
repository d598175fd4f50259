"""One account's outgoing route in a chaos run: TLS, through an HTTP proxy that lies.

The proxy answers CONNECT and forwards, or it lies: it accepts and drops the connection, closes it
in the handshake, answers in the provider's place, or lets the provider carry out a request and
drops the answer (with 502, or silently). Behind it the provider's own TLS ends, in front of the
sandbox. A seed determines the lies.
"""

import asyncio
import random
import ssl
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.loops import end_all
from tests.tls import Authority

#: The lies with their weights, per connection; otherwise it forwards honestly.
LIES = {
    "accepts and drops": 6,
    "closes in the handshake": 6,
    "answers for the provider": 6,
    "502 after forwarding": 8,
    "closes after forwarding": 8,
    "502": 6,
    "": 60,
}

_FORWARDS = (LIES.keys() - {""}) & {"502 after forwarding", "closes after forwarding"}

_OPEN = b"HTTP/1.1 200 Connection established\r\n\r\n"
_NO = b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n"

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class LyingWay:
    """The proxy and the provider's TLS. Its methods may be called from any thread."""

    folder: Path
    seed: int
    lies: Counter[str] = field(default_factory=Counter)
    """How often it used each lie; `''`: none."""
    honest: bool = False
    """From now on it forwards everything."""
    proxy: int = 0
    _servers: list[asyncio.Server] = field(default_factory=list)
    _answered: dict[int, asyncio.Event] = field(default_factory=dict)
    """By a connection's port at the provider: set when a request was carried out."""

    def __post_init__(self) -> None:
        self._chance = random.Random(f"lies {self.seed}")
        self._authority = Authority(self.folder)
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(self._authority.certificate("good"))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="lies", daemon=True)

    def environment(self, account: str, target: int) -> dict[str, str]:
        """Settings that lead an account (`SKYPOSTAL__DEFAULT`) to a port of the sandbox."""
        port = self._run(self._listen(target))
        prefix = f"REGWORKER_ACCOUNTS__{account}__"
        return {
            f"{prefix}BASE_URL": f"https://localhost:{port}",
            f"{prefix}PROXY": f"http://corp:chaos@127.0.0.1:{self.proxy}",
            f"{prefix}CA_FILE": str(self._authority.file),
        }

    def __enter__(self) -> "LyingWay":
        self._thread.start()
        self.proxy = self._run(self._serve(self._connect, None))
        return self

    def __exit__(self, *_: object) -> None:
        self._run(end_all(*self._servers))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    async def _listen(self, target: int) -> int:
        async def provide(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._provide((reader, writer), target)

        return await self._serve(provide, self._context)

    async def _serve(self, served: Any, context: ssl.SSLContext | None) -> int:
        async def quietly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await served(reader, writer)
            writer.close()

        server = await asyncio.start_server(quietly, "127.0.0.1", 0, ssl=context, backlog=512)
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def _provide(self, client: Streams, target: int) -> None:
        """Act as the provider: decrypted requests go to the sandbox, and answers come back."""
        carried_out = self._answered.get(client[1].get_extra_info("peername")[1])
        upstream = await asyncio.open_connection("127.0.0.1", target)

        def answered() -> bool:
            if carried_out is not None:
                carried_out.set()
            return carried_out is None  # otherwise the answer is dropped

        await _relay(client, upstream, answered)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Act as the proxy."""
        head = await reader.readuntil(b"\r\n\r\n")
        port = int(head.split(b" ", 2)[1].rpartition(b":")[2])
        lie = "" if self.honest else self._chance.choices(list(LIES), list(LIES.values()))[0]
        self.lies[lie] += 1
        if lie == "502":
            writer.write(_NO)
            return
        if lie == "accepts and drops":
            writer.write(_OPEN)
            return
        if lie in {"closes in the handshake", "answers for the provider"}:
            writer.write(_OPEN)
            await reader.read(1)
            if lie == "answers for the provider":
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
                await reader.read()
            return
        upstream = await asyncio.open_connection("127.0.0.1", port)
        own = upstream[1].get_extra_info("sockname")[1]
        if lie in _FORWARDS:
            self._answered[own] = asyncio.Event()
        writer.write(_OPEN)
        carrying = asyncio.ensure_future(_relay((reader, writer), upstream))
        try:
            if lie in _FORWARDS:
                waiting = asyncio.ensure_future(self._answered[own].wait())
                await asyncio.wait({carrying, waiting}, return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                if lie.startswith("502"):
                    writer.write(_NO)
            else:
                await carrying
        finally:
            carrying.cancel()
            self._answered.pop(own, None)
            upstream[1].close()

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)


async def _relay(one: Streams, other: Streams, may_answer: Any = lambda: True) -> None:
    """Forward in both directions until a side closes; `may_answer` is called for each piece."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, may: Any) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                if may():
                    writer.write(data)
                    await writer.drain()

    pumps = [
        asyncio.ensure_future(pump(one[0], other[1], lambda: True)),
        asyncio.ensure_future(pump(other[0], one[1], may_answer)),
    ]
    try:
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for pump_ in pumps:
            pump_.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        for _, writer in (one, other):
            writer.close()

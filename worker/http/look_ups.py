"""Looks host names up, in threads of its own.

The system's resolver can hang for half a minute. asyncio's own look-ups would then take the threads
that the rest of the process shares: six hanging names would stop all work of a worker on two cores.
"""

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.connector import AddrInfoType


class LookUps(AbstractResolver):
    """Looks names up; each name once at a time, so that one that hangs takes one thread.

    `most`: names at a time.
    """

    def __init__(self, most: int) -> None:
        self._threads = ThreadPoolExecutor(most, thread_name_prefix="look-up")
        self._running: dict[Any, asyncio.Future[list[AddrInfoType]]] = {}

    async def addresses(
        self,
        host: str,
        port: int,
        family: socket.AddressFamily = socket.AF_UNSPEC,
        flags: socket.AddressInfo | int = 0,
    ) -> list[AddrInfoType]:
        """All addresses of a name. Whoever asks while it is looked up gets the same answer."""
        asked = (host, port, family, flags)
        running = self._running.get(asked)
        if running is None or running.done():  # its callback comes in the loop's next turn
            look_up: partial[Any] = partial(
                socket.getaddrinfo, host, port, family, socket.SOCK_STREAM, flags=flags
            )
            running = asyncio.get_running_loop().run_in_executor(self._threads, look_up)
            self._running[asked] = running
            running.add_done_callback(partial(self._end, asked))
        return await asyncio.shield(running)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The same, as aiohttp wants it."""
        found = await self.addresses(host, port, family, socket.AI_ADDRCONFIG)
        return [
            ResolveResult(
                hostname=host,
                host=str(address[0]),
                port=port,
                family=kind,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for kind, _, protocol, _, address in found
        ]

    async def close(self) -> None:
        """Called by aiohttp with each session."""

    def stop(self) -> None:
        """End the threads, without waiting for a hanging look-up."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _end(self, asked: Any, ended: asyncio.Future[list[AddrInfoType]]) -> None:
        if self._running.get(asked) is ended:
            del self._running[asked]
        if not ended.cancelled():
            ended.exception()  # possibly nobody awaits it any more

"""Looks host names up for aiohttp, as the client library does (`regworker/look_ups.py`)."""

import asyncio
import socket

from aiohttp.abc import AbstractResolver, ResolveResult

from regworker.look_ups import AddressInfo, looked_up


class LookUps(AbstractResolver):
    """Looks names up; a name that hangs delays nobody else."""

    async def addresses(
        self,
        host: str,
        port: int,
        family: socket.AddressFamily = socket.AF_UNSPEC,
        flags: int = 0,
    ) -> list[AddressInfo]:
        """All addresses of a name."""
        return await asyncio.wrap_future(looked_up(host, port, family, flags))

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

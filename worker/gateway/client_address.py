"""The address that a request came from, also behind a trusted proxy."""

import re
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any


def peer(asked: Mapping[str, Any]) -> str:
    """The other end of a request's connection. `asked`: the request's ASGI scope."""
    return str((asked.get("client") or ("",))[0])


class Proxies:
    """The trusted proxies, whose headers about their clients are believed."""

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = [ip_network(one) for one in networks]

    def __bool__(self) -> bool:
        return bool(self._networks)

    def has(self, address: str) -> bool:
        """Whether a trusted proxy has this address."""
        found = _read(address)
        return found is not None and any(found in one for one in self._networks)

    def sender(self, asked: Mapping[str, Any]) -> str:
        """To whom failed attempts are counted: an IPv4 address, or the /64 network of an IPv6
        address, since one customer of a provider has all addresses of it.

        Behind trusted proxies it is the last address in `X-Forwarded-For` that is none of them:
        whatever precedes it may be forged.
        """
        found = peer(asked)
        named = [
            address.strip()
            for name, value in asked["headers"]
            if name == b"x-forwarded-for"
            for address in value.decode("latin-1").split(",")
        ]
        while named and self.has(found) and _read(named[-1]) is not None:
            found = named.pop()
        read = _read(found)
        if isinstance(read, IPv6Address):
            return str(IPv6Network((int(read), 64), strict=False))
        return str(read or found)


#: As some proxies write an address: with its port.
_WITH_PORT = re.compile(r"([0-9.]+):[0-9]+|\[(.*)\](?::[0-9]+)?")


def _read(address: str) -> IPv4Address | IPv6Address | None:
    if found := _WITH_PORT.fullmatch(address):
        address = found[1] or found[2]
    try:
        read = ip_address(address)
    except ValueError:
        return None
    return getattr(read, "ipv4_mapped", None) or read

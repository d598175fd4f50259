"""Which addresses are public: a webhook must not lead into a private network.

The check uses the address to which the connection is made, never a name: a name may resolve
differently a moment later. It does not use Python's `is_global`, which differs between versions,
and treats a multicast group as public.
"""

from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address, IPv6Network

#: IANA's special-purpose registry of IPv4, and multicast.
_INSIDE_4 = {
    "unspecified": ("0.0.0.0/8",),
    "loopback": ("127.0.0.0/8",),
    "link-local": ("169.254.0.0/16",),
    "private": ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"),
    "multicast": ("224.0.0.0/4",),
    "reserved": (
        *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15"),
        *("198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4"),
    ),
}

#: The same for IPv6. `tunnelled` carries an IPv4 address in old ways (IPv4-compatible, 6to4,
#: Teredo): its real destination is unknown.
_INSIDE_6 = {
    "unspecified": ("::/128",),
    "loopback": ("::1/128",),
    "link-local": ("fe80::/10",),
    "private": ("fc00::/7", "fec0::/10", "64:ff9b:1::/48"),
    "multicast": ("ff00::/8",),
    "tunnelled": ("::/96", "2002::/16", "2001::/32"),
    "reserved": ("2001::/23", "2001:db8::/32", "3fff::/20"),
}

#: All assigned IPv6 unicast addresses (RFC 4291); the rest is reserved.
_UNICAST_6 = IPv6Network("2000::/3")

#: NAT64, with which a network without IPv4 reaches IPv4 addresses.
_NAT64 = IPv6Network("64:ff9b::/96")

_NETWORKS_4 = [(kind, IPv4Network(one)) for kind, all_ in _INSIDE_4.items() for one in all_]
_NETWORKS_6 = [(kind, IPv6Network(one)) for kind, all_ in _INSIDE_6.items() for one in all_]


def inside(address: str) -> str | None:
    """The kind of a non-public address (`loopback`); None if it is public.

    An address that is not in its usual form (`2130706433`, `127.1`) is `misspelt`.
    """
    try:
        return _inside_4(IPv4Address(address))
    except AddressValueError:
        pass
    try:
        return _inside_6(IPv6Address(address))
    except AddressValueError:
        return "misspelt"


def _inside_4(address: IPv4Address) -> str | None:
    return next((kind for kind, network in _NETWORKS_4 if address in network), None)


def _inside_6(address: IPv6Address) -> str | None:
    if address.ipv4_mapped is not None:
        return _inside_4(address.ipv4_mapped)
    if address in _NAT64:
        return _inside_4(IPv4Address(int(address) & 0xFFFFFFFF))
    found = next((kind for kind, network in _NETWORKS_6 if address in network), None)
    return found or (None if address in _UNICAST_6 else "reserved")

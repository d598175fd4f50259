"""Tries the nodes of a RabbitMQ cluster in a better order: the one that answered last is first.

kombu begins with the first URL at each new connection. While that node is away, each of a worker's
connections would wait for it.
"""

from typing import Any

from regworker import addresses

_last: list[tuple[str, int]] = []
"""Host and port of the node that answered last; in a list, so that one assignment changes them."""


def answered(host: str, port: int) -> None:
    """Remember that this node accepted a connection."""
    _last[:] = [(host, int(port))]


def in_order(broker: str) -> str:
    """The URLs of a setting, with the last node first; the others keep their order."""
    urls = broker.split(";")
    if len(urls) == 1 or not _last:
        return broker
    return ";".join(sorted(urls, key=lambda url: addresses.read(url).hosts[0] != _last[0]))


def reach(connection: Any) -> None:
    """Connect with kombu's connection: each node is tried once, or twice if there is only one."""
    connection.ensure_connection(max_retries=max(1, len(connection.alt)), interval_start=0)

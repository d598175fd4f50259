"""Finds the node of a Redis Cluster that has the ledger.

All keys of the ledger share a hash tag, and so one slot: a client needs the one node that owns that
slot, and the addresses of the others in case this node fails. A connection asks the node that it
has reached; that one names the owner.
"""

from collections.abc import Generator, Sequence
from typing import Any

from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    ConnectionError,  # noqa: A004
    MovedError,
    TimeoutError,  # noqa: A004
)

Place = tuple[str, int]

#: A key that every role may read; it need not exist, since only the answering node matters.
_KEY = "{reg}:results"
_SLOT = key_slot(_KEY.encode())

#: The questions to a node: the other nodes, and whether it owns our slot.
QUESTIONS = (("CLUSTER", "SLOTS"), ("EXISTS", _KEY))

#: Redirects that one connection follows: during a migration two nodes may name each other.
_MOST_HOPS = 4

#: Errors after which another node may know better.
_ELSEWHERE = (ConnectionError, TimeoutError, BusyLoadingError, ClusterDownError, OSError)


class OtherNode(ConnectionError):  # noqa: N818
    """Another node has the slot, as far as this one knows."""

    def __init__(self, place: Place) -> None:
        super().__init__("another node of the cluster holds the ledger's slot")
        self.place = place


class Cluster:
    """The known nodes of a cluster, shared by all connections of a pool.

    A server that is in no cluster is a single node, and always the right one.
    """

    def __init__(self, hosts: Sequence[Place]) -> None:
        """`hosts`: the first nodes to ask."""
        self._given = tuple(hosts)
        self._nodes = tuple(hosts)

    @property
    def several(self) -> bool:
        """Whether more than one node was given, so that it must be a cluster."""
        return len(self._given) > 1

    def places(self) -> Generator[Place, Exception, None]:
        """Places to connect to, one after another; is sent the error of each failed try.

        Raises that error if no other node is left, or none could help.
        """
        places, hops = list(self._nodes), 0
        while True:
            place = places.pop(0)
            # The next connection asks it last, unless it answers: waiting for a hanging node may be
            # interrupted.
            self._nodes = (*(one for one in self._nodes if one != place), place)
            fault = yield place
            if isinstance(fault, OtherNode) and hops < _MOST_HOPS:
                hops += 1
                places = [fault.place, *(one for one in places if one != fault.place)]
            elif not places or not _may_pass_elsewhere(fault):
                raise fault

    def judge(self, here: Place, slots: Any, exists: Any) -> None:
        """Learn from a node's answers to `QUESTIONS`, including errors.

        Raises `OtherNode` if another node has the slot, and the node's error if it cannot tell.
        """
        if not isinstance(slots, Exception):
            self._learn(here, slots)
        if isinstance(exists, MovedError):
            raise OtherNode((exists.host or here[0], exists.port))
        # While a slot moves, it belongs to the node that answers ASK.
        if isinstance(exists, Exception) and not isinstance(exists, AskError):
            raise exists
        self._nodes = (here, *(one for one in self._nodes if one != here))

    def _learn(self, here: Place, slots: Any) -> None:
        # First the nodes of the slot's own shard: one of these is promoted if its primary fails.
        shards = sorted(slots, key=lambda one: not one[0] <= _SLOT <= one[1])
        found = [_place(node, here) for _, _, *nodes in shards for node in nodes]
        known = (one for one in found if one is not None)
        self._nodes = tuple(dict.fromkeys((*known, *self._given)))


def _may_pass_elsewhere(fault: Exception) -> bool:
    return isinstance(fault, _ELSEWHERE) and not isinstance(fault, AuthenticationError)


def _place(node: Any, here: Place) -> Place | None:
    """A node's address from `CLUSTER SLOTS`; None: it has none that a client could use."""
    host = node[0].decode() if isinstance(node[0], bytes) else node[0]
    if host == "?":
        return None
    return (host or here[0]), int(node[1])

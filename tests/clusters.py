"""A Redis Cluster of real servers for tests; each node can be killed or frozen.

with cluster(folder) as here:
    Producer(redis_url=here.url(), sealing_keys=...)
    here.owner.kill()
    here.wait_for_another()"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
from redis.crc import key_slot
from redis.exceptions import AskError, MovedError

from tests.chaos.proxy import free_port
from tests.sentinels import PATIENCE, Server
from worker.cli.local import stack

#: The slot of all keys of the ledger.
SLOT = key_slot(b"{reg}:")

#: Milliseconds until the cluster replaces a node that does not answer. Production: about 5000.
NODE_TIMEOUT = 1500

SLOTS = 16384


@dataclass
class Cluster:
    """The nodes by name: `primary-1` and so on, and the replicas of the ledger's shard."""

    folder: Path
    nodes: list[Server] = field(default_factory=list)
    database: int = 0

    def url(self, *nodes: Server, options: str = "") -> str:
        """The URL to set: with the addresses of these nodes, or of all."""
        hosts = ",".join(f"127.0.0.1:{one.port}" for one in nodes or self.nodes)
        return f"redis://{hosts}/0{options}"

    @property
    def owner(self) -> Server:
        """The node that owns the ledger's slot. While the owner changes, wait for the next one."""
        found: list[Server] = []

        def owned() -> bool:
            port = self._owner()
            found[:] = [one for one in self.nodes if one.port == port]
            return bool(found)

        stack.until(owned, "an owner of the slot", PATIENCE)
        return found[0]

    @property
    def others(self) -> list[Server]:
        """The primaries of other slots."""
        owner = self.owner
        return [one for one in self.nodes if one is not owner and one.role() == "master"]

    @property
    def replicas(self) -> list[Server]:
        """The replicas of the owner."""
        owner = self.owner
        return [
            one for one in self.nodes if one.alive() and one.info().get("master_port") == owner.port
        ]

    def _owner(self) -> int:
        """The port of the node that itself reports that it owns the slot."""
        for one in self.nodes:
            with suppress(redis.RedisError), one.client() as client:
                try:
                    client.exists("{reg}:results")
                except MovedError:
                    continue
                except AskError:
                    pass  # the old owner keeps the slot until it has moved
                return one.port
        return 0

    def wait_for_another(self, than: Server) -> Server:
        """Wait until another node owns the slot, and return that node."""
        stack.until(lambda: self._owner() not in {0, than.port}, "another owner", PATIENCE)
        return self.owner

    def wait_until_well(self) -> None:
        """Wait until every running node knows the owner of each slot, and each slot has one."""

        def well() -> bool:
            views = set()
            for one in self.nodes:
                if not one.alive():
                    continue
                slots = None
                with suppress(redis.RedisError), one.client() as client:
                    if b"cluster_state:ok" in _ask(client, "CLUSTER", "INFO"):
                        slots = _ask(client, "CLUSTER", "SLOTS")
                if slots is None:
                    return False
                views.add(tuple(sorted((first, last, main[1]) for first, last, main, *_ in slots)))
            return len(views) == 1

        stack.until(well, "a cluster that agrees", PATIENCE)

    def wait_for_replicas(self, number: int) -> None:
        """Wait until the owner has this number of replicas."""

        def connected() -> bool:
            with suppress(redis.RedisError):
                return bool(self.owner.info().get("connected_slaves", 0) >= number)
            return False

        stack.until(connected, f"{number} replicas", PATIENCE)

    def fail_over(self) -> None:
        """Make a replica take over, as an operator does; the old owner stays as a replica."""
        before = self.owner
        with self.replicas[0].client() as client:
            _ask(client, "CLUSTER", "FAILOVER")
        self.wait_for_another(before)

    def begin_to_move(self, to: Server) -> None:
        """Begin to move the slot to another primary, key by key, as before Valkey 9."""
        owner = self.owner
        with owner.client() as source, to.client() as target:
            _ask(target, "CLUSTER", "SETSLOT", SLOT, "IMPORTING", _id(source))
            _ask(source, "CLUSTER", "SETSLOT", SLOT, "MIGRATING", _id(target))

    def move_keys(self, to: Server, number: int) -> int:
        """Move this number of keys of the slot, and return how many are left."""
        with self.owner.client() as source:
            for key in _ask(source, "CLUSTER", "GETKEYSINSLOT", SLOT, number):
                _ask(source, "MIGRATE", "127.0.0.1", to.port, key, 0, 5000)
            left: int = _ask(source, "CLUSTER", "COUNTKEYSINSLOT", SLOT)
        return left

    def end_the_move(self, to: Server) -> None:
        """Assign the slot to its new owner."""
        owner = self.owner
        with owner.client() as source, to.client() as target:
            new = _id(target)
            _ask(target, "CLUSTER", "SETSLOT", SLOT, "NODE", new)
            _ask(source, "CLUSTER", "SETSLOT", SLOT, "NODE", new)
        self.wait_until_well()

    def stop(self) -> None:
        """Stop all nodes."""
        for one in self.nodes:
            one.stop()


def _ask(client: redis.Redis, *command: Any) -> Any:
    return client.execute_command(*command)  # type: ignore[no-untyped-call]


def _id(client: redis.Redis) -> str:
    found: bytes = _ask(client, "CLUSTER", "MYID")
    return found.decode()


@contextmanager
def cluster(
    folder: Path, primaries: int = 3, replicas: int = 2, **config: str
) -> Iterator[Cluster]:
    """Start it. `replicas`: of the ledger's shard; `config`: with underscores instead of
    hyphens."""
    options = {
        "bind": "127.0.0.1",
        "cluster-enabled": "yes",
        "cluster-node-timeout": str(NODE_TIMEOUT),
        "appendonly": "yes",
        "maxmemory-policy": "noeviction",
        "save": '""',
        "repl-diskless-sync-delay": "0",
        **{name.replace("_", "-"): value for name, value in config.items()},
    }
    here = Cluster(folder)
    try:
        names = [f"primary-{i}" for i in range(1, primaries + 1)]
        for name in [*names, *(f"replica-{i}" for i in range(1, replicas + 1))]:
            own = {**options, "cluster-port": str(free_port())}
            one = Server(name, folder / name, free_port(), own)
            here.nodes.append(one)
            one.start()
        first, *rest = here.nodes
        with first.client() as client:
            for one in rest:
                _ask(client, "CLUSTER", "MEET", "127.0.0.1", one.port, one.options["cluster-port"])
        share = SLOTS // primaries
        for i, one in enumerate(here.nodes[:primaries]):
            last = SLOTS - 1 if i == primaries - 1 else (i + 1) * share - 1
            with one.client() as client:
                _ask(client, "CLUSTER", "ADDSLOTSRANGE", i * share, last)
        here.wait_until_well()
        with here.owner.client() as client:
            owner = _id(client)
        for one in here.nodes[primaries:]:
            with one.client() as client:
                stack.until(lambda: _follows(client, owner), one.name, PATIENCE)
        here.wait_for_replicas(replicas)
        here.wait_until_well()
        yield here
    finally:
        here.stop()


def _follows(client: redis.Redis, owner: str) -> bool:
    try:
        _ask(client, "CLUSTER", "REPLICATE", owner)
    except redis.RedisError:
        return False  # this node does not know the other one yet, or does not answer
    return True

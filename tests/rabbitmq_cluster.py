"""A cluster of three RabbitMQ nodes on this machine; each can be killed.

    with cluster(folder) as here:
        here.nodes[0].kill()
        here.revive(here.nodes[0])

They find each other by their configuration when they start together. Tests start these nodes
even if `REGWORKER_TEST_AMQP_URL` is set, so that they kill no other server."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.proxy import free_port, free_ports
from tests.programs import leave_out
from tests.rabbitmq import RabbitNode, installed, program

#: Seconds. Far more than anything here needs.
PATIENCE = 120.0

#: One thread each, because three nodes share the cores with what is tested.
_FRUGAL = "+S 1:1 +sbwt none +A 4"


@dataclass
class Cluster:
    """The nodes, in the order of their names."""

    nodes: list[RabbitNode]

    def url(self, *order: int) -> str:
        """The URL to set. `order`: numbers of nodes; all nodes by default."""
        return ";".join(self.nodes[number].url for number in order or range(len(self.nodes)))

    def revive(self, node: RabbitNode) -> None:
        """Start a node that was killed, and wait until it has its copies of the queues."""
        node.start()
        node.wait()

    def queues(self) -> dict[str, tuple[str, bool]]:
        """Every queue: its kind, and whether it is deleted with its connection."""
        done = subprocess.run(
            [
                *(str(program("rabbitmqctl")), "--quiet", "list_queues", "--formatter", "json"),
                *("name", "type", "exclusive"),
            ],
            env=next(one for one in self.nodes if one.serving).environment,
            capture_output=True,
            timeout=PATIENCE,
            check=True,
        )
        return {one["name"]: (one["type"], one["exclusive"]) for one in json.loads(done.stdout)}


@contextmanager
def cluster(folder: Path, size: int = 3) -> Iterator[Cluster]:
    """Start the nodes together, and stop them at the end."""
    if not installed():
        leave_out("RabbitMQ: needs rabbitmq-server on this machine")
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"rabbit{number}-{free_port()}@localhost" for number in range(1, size + 1)]
    backend = "cluster_formation.peer_discovery_backend = classic_config"
    members = [
        f"cluster_formation.classic_config.nodes.{number} = {name}"
        for number, name in enumerate(names, 1)
    ]
    (folder / "rabbitmq.conf").write_text("\n".join([backend, *members, ""]))
    with ExitStack() as running:
        nodes = []
        for name in names:
            node = RabbitNode(
                folder / name,
                *free_ports(2),
                HOME=str(folder),  # has the cookie that the nodes share
                RABBITMQ_NODENAME=name,
                RABBITMQ_CONFIG_FILE=str(folder / "rabbitmq"),
                RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=_FRUGAL,
            )
            running.callback(node.kill)
            nodes.append(node)
        for node in nodes:
            node.start()
        for node in nodes:
            node.wait()
        yield Cluster(nodes)

"""Three nodes of RabbitMQ: any one may be killed, and the installation continues."""

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.installation import PATIENCE, Installation, installation
from tests.integration.jobs import skypostal
from tests.rabbitmq_cluster import Cluster, cluster
from worker.broker import nodes
from worker.broker.wakeups import QUEUES, REQUESTS, Wakeups
from worker.celery import new_app
from worker.cli.local import stack
from worker.execution.delivery import JITTER, SCHEDULE

#: Three nodes start, and each is killed and started again; a busy machine needs minutes for it.
pytestmark = pytest.mark.timeout(900)

#: A second place for results besides the stream: it must survive a node as well.
RESULTS = "results.cluster"

#: Seconds until the third try of a delivery: a cluster on a busy machine may choose its leaders
#: for longer than the first pause.
THIRD_TRY = sum(SCHEDULE[:2]) * (1 + JITTER)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The three nodes, all of which run when a test begins."""
    with cluster(tmp_path_factory.mktemp("cluster")) as here:
        yield here


@pytest.fixture(autouse=True)
def forgetful() -> Iterator[None]:
    """Forget the node that this process connected to last."""
    nodes._last.clear()
    yield
    nodes._last.clear()


class Silent:
    """A node that accepts connections and never answers, as behind a firewall."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"amqp://guest:guest@127.0.0.1:{self._listener.getsockname()[1]}//"
        self.taken: list[socket.socket] = []
        threading.Thread(target=self._take, daemon=True).start()

    def _take(self) -> None:
        while True:
            try:
                self.taken.append(self._listener.accept()[0])
            except OSError:
                return

    def close(self) -> None:
        """Close everything."""
        self._listener.close()
        for one in self.taken:
            one.close()


@contextmanager
def working(folder: Path, url: str) -> Iterator[Installation]:
    """A worker on a broker."""
    ends: dict[str, Any] = {
        "endpoints__q__kind": "queue",
        "endpoints__q__queue": RESULTS,
    }
    with installation(folder, broker_url=url, **ends) as here:
        yield here


def _consumed(here: Installation) -> bool:
    app = new_app(here.producer.settings)
    with closing(app), app.connection_for_write() as connection:
        channel = connection.default_channel
        return all(
            channel.queue_declare(name, passive=True).consumer_count for name in QUEUES.values()
        )


def _waiting(here: Installation, queue: str) -> int:
    app = new_app(here.producer.settings)
    with closing(app), app.connection_for_write() as connection:
        return int(connection.default_channel.queue_declare(queue, passive=True).message_count)


@pytest.mark.parametrize("shape", ["refuses", "silent", "silent, refuses", "alive, silent"])
def test_a_node_that_is_away_is_asked_once(
    three: Cluster, tmp_path: Path, shape: str, unused_port: int
) -> None:
    """Wherever it is in the list: later connections start with the node that answered."""
    with closing(Silent()) as silent:
        urls = {"refuses": f"amqp://guest:guest@127.0.0.1:{unused_port}//", "silent": silent.url}
        listed = [urls.get(one, three.nodes[1].url) for one in shape.split(", ")]
        url = ";".join([*listed, three.nodes[0].url])
        with installation(tmp_path, workers=0, broker_url=url) as here:
            app = new_app(here.producer.settings)
            with closing(app):
                for _ in range(3):
                    Wakeups(app).probe()
        assert len(silent.taken) == ("silent" in shape and "alive" not in shape)


def test_a_worker_starts_beside_dead_nodes(
    three: Cluster, tmp_path: Path, unused_port: int
) -> None:
    """The first of its URLs is silent, the second refuses: it does a job with the third."""
    with closing(Silent()) as silent:
        refuses = f"amqp://guest:guest@127.0.0.1:{unused_port}//"
        with working(tmp_path, f"{silent.url};{refuses};{three.nodes[2].url}") as here:
            assert here.run(skypostal())["type"] == "registration.registered"
            stack.until(lambda: _consumed(here), "consumers", PATIENCE)


def test_each_node_is_killed_in_turn_and_every_job_ends(three: Cluster, tmp_path: Path) -> None:
    """The worker keeps running, finds another node, and also publishes to the queue of results."""
    with working(tmp_path, three.url()) as here:
        here.wait_for_line("ready.")
        ended = 0
        for node in three.nodes:
            running = [
                here.producer.enqueue(skypostal(reply_to=["q", "results"])) for _ in range(5)
            ]
            node.kill()
            running += [
                here.producer.enqueue(skypostal(lane=lane, reply_to=["q", "results"]))
                for lane in ("live", "bulk")
                for _ in range(5)
            ]
            for one in running:
                assert here.producer.wait(one.job_id, PATIENCE)["type"].endswith("registered")
            # A consumer, not the alarm clock: the worker must consume again.
            stack.until(lambda: _consumed(here), "consumers", PATIENCE)
            ended += len(running)
            if node is three.nodes[-1]:  # the last test of this file
                kinds = three.queues()
            else:
                three.revive(node)
        assert here.workers[0].poll() is None
        stack.until(lambda: _waiting(here, RESULTS) >= ended, "results", THIRD_TRY + PATIENCE)
    assert {*QUEUES.values(), REQUESTS, RESULTS} <= set(kinds)
    lasting = {name: kind for name, (kind, exclusive) in kinds.items() if not exclusive}
    assert set(lasting.values()) == {"quorum"}, kinds

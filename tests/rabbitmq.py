"""RabbitMQ for tests: one node for each test process, which tests may kill.

If `REGWORKER_TEST_AMQP_URL` names a server, tests use that one instead."""

import atexit
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from kombu import Connection

from tests.chaos.proxy import free_ports
from tests.programs import answers, leave_out
from worker.broker.wakeups import QUEUES, REQUESTS
from worker.cli.local import stack

#: Debian's commands change the user; the programs that they call run as the current user.
_DEBIAN = "/usr/lib/rabbitmq/bin"

#: Seconds that a node gets to start, on a busy machine.
_START = 120.0


def program(name: str) -> str | None:
    """The path of one of the server's commands; None if it is not installed."""
    return shutil.which(name, path=_DEBIAN) or shutil.which(name)


def installed() -> bool:
    """Whether a node can be started on this machine."""
    return program("rabbitmq-server") is not None


class RabbitNode:
    """A node that can be killed, and restarted with its data on the same port."""

    def __init__(self, folder: Path, port: int, distribution_port: int, **environment: str) -> None:
        folder.mkdir(parents=True)
        self.port = port
        self.url = f"amqp://guest:guest@127.0.0.1:{port}//"
        self.environment = {
            **os.environ,
            "HOME": str(folder),
            "RABBITMQ_NODENAME": f"tests-{port}@localhost",
            "RABBITMQ_NODE_PORT": str(port),
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_DIST_PORT": str(distribution_port),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_CONFIG_FILE": str(folder / "none"),
            "RABBITMQ_SERVER_START_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            **environment,
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, unless it runs; it answers some seconds later."""
        if self._process is not None and self._process.poll() is None:
            return
        self._process = subprocess.Popen(
            [str(program("rabbitmq-server"))],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def wait(self) -> None:
        """Wait until it answers."""
        stack.until(lambda: self.serving, "RabbitMQ does not answer", _START)

    def kill(self) -> None:
        """Kill it as a power cut would: the script and the virtual machine that it started."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    @property
    def serving(self) -> bool:
        """Whether it answers."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"AMQP\x00\x00\x09\x01")
                connection.settimeout(5)
                return bool(connection.recv(1))
        except OSError:
            return False


_running = ExitStack()
"""What is stopped when this process ends."""
atexit.register(_running.close)


@cache
def _node() -> RabbitNode:
    """The node for this process's tests."""
    folder = Path(tempfile.mkdtemp(prefix="registration-worker-rabbitmq-"))
    _running.callback(shutil.rmtree, folder, ignore_errors=True)
    node = RabbitNode(folder / "node", *free_ports(2))
    _running.callback(node.kill)
    node.start()
    node.wait()
    return node


@cache
def amqp_url() -> str:
    """The default virtual host of a server for the tests of this process."""
    given = os.environ.get("REGWORKER_TEST_AMQP_URL")
    if given:
        if not answers(given):
            leave_out("RabbitMQ: nothing answers at REGWORKER_TEST_AMQP_URL")
        return _running.enter_context(_virtual_host(given, f"tests-{os.getpid()}"))
    if not installed():
        leave_out("RabbitMQ: needs rabbitmq-server on this machine, or REGWORKER_TEST_AMQP_URL")
    return _node().url


def publishing(url: str) -> Connection:
    """A connection whose calls to publish return when the broker has the message. Without this,
    RabbitMQ may lose a message for a quorum queue if the channel is closed soon after it."""
    return Connection(url, transport_options={"confirm_publish": True})


_idle: list[str] = []
"""URLs of virtual hosts that were used, and are free again."""


@contextmanager
def borrowed() -> Iterator[str]:
    """A virtual host without queues for one installation. Later tests use it again, because
    making one takes seconds."""
    name = f"tests-{os.getpid()}-{next(_numbers)}"
    url = _idle.pop() if _idle else _running.enter_context(_virtual_host(amqp_url(), name))
    try:
        yield url
    finally:
        with Connection(url) as connection:
            for queue in (REQUESTS, *QUEUES.values()):
                connection.default_channel.queue_delete(queue)
        _idle.append(url)


_numbers = count(1)


def rabbitmqctl(*arguments: str) -> None:
    """Run one of the server's commands; without `rabbitmqctl` the test is left out."""
    if program("rabbitmqctl") is None:
        leave_out("RabbitMQ: needs rabbitmqctl on this machine")
    _control(*arguments).check_returncode()


@contextmanager
def memory_alarm() -> Iterator[None]:
    """The server reports that it has no memory left: it reads nothing more from publishers."""
    rabbitmqctl("set_vm_memory_high_watermark", "0.00001")
    try:
        stack.until(lambda: not _confirms(), "RabbitMQ is not short of memory", _START)
        yield
    finally:
        rabbitmqctl("set_vm_memory_high_watermark", "0.4")
        stack.until(_confirms, "RabbitMQ is short of memory", _START)


def _confirms() -> bool:
    """Whether the server accepts messages; the routing key belongs to no queue."""
    connection = publishing(amqp_url())
    try:
        channel = connection.default_channel
        for _ in range(2):  # it accepts the first message of a connection in any case
            channel.basic_publish(
                channel.prepare_message(b""), routing_key="none", confirm_timeout=1
            )
    except OSError:
        return False
    finally:
        connection.collect()
    return True


@contextmanager
def hung() -> Iterator[None]:
    """The server keeps its connections open, and answers nobody."""
    if os.environ.get("REGWORKER_TEST_AMQP_URL"):
        leave_out("RabbitMQ: a server that is not ours is not stopped")
    process = _node()._process
    assert process is not None
    os.killpg(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGCONT)


def _control(*arguments: str) -> "subprocess.CompletedProcess[bytes]":
    ours = None if os.environ.get("REGWORKER_TEST_AMQP_URL") else _node().environment
    # `rabbitmqctl` for a server that we did not start needs its user; Debian's command changes to
    # it.
    command = program("rabbitmqctl") if ours else shutil.which("rabbitmqctl")
    return subprocess.run(
        [str(command), "--quiet", *arguments],
        env=ours,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=_START,
        check=False,
    )


@contextmanager
def _virtual_host(url: str, name: str) -> Iterator[str]:
    """A separate virtual host, if one can be made: other workers would consume our wake-ups.

    Making one takes `rabbitmqctl` beside the server; without it the URL is used as it is."""
    parts = urlsplit(url)
    local = parts.hostname in {"127.0.0.1", "localhost"}
    if program("rabbitmqctl") is None or not local or _control("add_vhost", name).returncode:
        sys.stderr.write("no virtual host of our own; other workers may share the queues\n")
        yield url
        return
    _control("set_permissions", "-p", name, parts.username or "guest", ".*", ".*", ".*")
    try:
        yield urlunsplit(parts._replace(path=f"/{name}"))
    finally:
        if os.environ.get("REGWORKER_TEST_AMQP_URL"):
            _control("delete_vhost", name)

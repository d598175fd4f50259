"""A RabbitMQ node of our own, which may be killed: the machine's server is not ours to."""

import os
import shutil
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

from worker.cli import stack

#: Debian's command changes the user; the script behind it runs as whoever starts it.
_SCRIPTS = ("/usr/lib/rabbitmq/bin/rabbitmq-server", "rabbitmq-server")

#: Seconds a node gets to start, on a machine that is busy.
_START = 120.0


def script() -> str | None:
    """The server's start script, where one is installed."""
    return next((found for name in _SCRIPTS if (found := shutil.which(name))), None)


class RabbitNode:
    """A node that can be killed, and comes back with its data under its port."""

    def __init__(self, folder: Path, port: int, distribution_port: int) -> None:
        folder.mkdir(parents=True)
        self.port = port
        self.url = f"amqp://guest:guest@127.0.0.1:{port}//"
        self._environment = {
            **os.environ,
            "HOME": str(folder),
            "RABBITMQ_NODENAME": f"chaos-{os.getpid()}@localhost",
            "RABBITMQ_NODE_PORT": str(port),
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_DIST_PORT": str(distribution_port),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_CONFIG_FILE": str(folder / "none"),
            "RABBITMQ_SERVER_START_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, unless it runs; it answers some seconds later."""
        if self._process is not None and self._process.poll() is None:
            return
        self._process = subprocess.Popen(
            [str(script())],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def wait(self) -> None:
        """Wait until it answers."""
        stack.until(lambda: self.serving, "RabbitMQ does not answer", _START)

    def kill(self) -> None:
        """End it as a power cut would: the script and the virtual machine under it."""
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

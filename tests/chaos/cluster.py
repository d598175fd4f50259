"""The processes of a chaos run, and the faults that can be injected into them."""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx

from regworker.ledger import SyncLedger
from regworker.sealing.keyring import Keyring
from sandbox.client import SandboxClient
from tests.chaos import junk
from tests.chaos.failovers import Level
from tests.chaos.nemesis import Fault
from tests.chaos.processes import Kill, Slot, Store
from tests.chaos.profiles import Profile
from tests.chaos.proxy import Proxy, free_port
from tests.chaos.replicated import ReplicatedStore
from tests.chaos.skew import Clock, library
from tests.chaos.way_out import LyingWay
from tests.rabbitmq import RabbitNode
from worker.cli.local import stack

ROOT = Path(__file__).parents[2]
PLUGIN = Path(__file__).parent / "plugin"

SECRET = "whsec_dGhlIHNlY3JldCBvZiB0aGUgY2hhb3MgcnVuIG9ubHk="

#: Bytes. The most memory that a worker may use, whatever it receives.
MOST_MEMORY = 250_000_000

#: Seconds for which a broker runs between two kills: workers try to connect every few seconds, and
#: must succeed.
SERVED = 6.0

#: Seconds for a worker to get ready: several start at once.
START = 180.0

#: Seconds for a worker to stop after SIGTERM. It may have to settle at a ledger that is away, for
#: which it waits up to a minute.
STOP = 75.0


@dataclass
class Cluster:
    """All running processes. The `Victim` of a `Nemesis`."""

    folder: Path
    profile: Profile
    proxy: Proxy
    ledger: Store | ReplicatedStore
    broker: Store | RabbitNode
    broker_url: str
    sandbox: SandboxClient
    sandbox_url: str
    keys: str
    way: LyingWay
    """The outgoing route of one account: TLS, through a proxy that lies."""
    workers: list[Slot] = field(default_factory=list)
    kills: list[Kill] = field(default_factory=list)
    unclean: list[str] = field(default_factory=list)
    """Workers that did not end cleanly."""
    jumps: list[float] = field(default_factory=list)
    """When the ledger's clock was set (milliseconds since 1970, by the machine's clock)."""
    retired: bool = False
    """No worker may be started any more."""
    brokers_killed: int = 0
    starts_refused: int = 0
    """Workers that did not start because no ledger answered for half a minute."""
    _stopping: list[threading.Thread] = field(default_factory=list)
    _killing: list[threading.Thread] = field(default_factory=list)
    _broker_lock: threading.Lock = field(default_factory=threading.Lock)
    _healing: threading.Event = field(default_factory=threading.Event)

    # -- for the nemesis ---------------------------------------------------------------------

    def hurt(self, fault: Fault) -> None:
        """Begin a fault."""
        match fault.kind:
            case "kill_worker" | "stop_worker" if self._ready_beside(fault) < self.profile.spares:
                pass
            case "kill_worker":
                self._kill(self._slot(fault))
            case "pause_worker" | "freeze_worker":
                self._slot(fault).signal(signal.SIGSTOP)
            case "stop_worker":
                self._begin_stop(self._slot(fault))
            case "kill_ledger":
                self.ledger.kill()
            case "kill_broker":
                self._begin_kill_broker(fault.seconds)
            case "reset" | "refuse" | "mute" | "forget":
                self.proxy.do(fault.kind, fault.target)
            case "hold" | "partition":
                self.proxy.do("hold", fault.target)
            case "delay":
                self.proxy.do("slow", fault.target, float(fault.how))
            case "jump_clock":
                self._set_clock(float(fault.how))
            case "weather":
                self.weather(int(fault.how))
            case "junk":
                self._throw_junk(int(fault.how))
            case _:
                raise ValueError(fault.kind)

    def undo(self, fault: Fault) -> None:
        """End a fault."""
        match fault.kind:
            case "kill_worker":
                self._slot(fault).down = False
                self._slot(fault).start()
            case "pause_worker" | "freeze_worker":
                self._slot(fault).signal(signal.SIGCONT)
            case "kill_ledger":
                self.ledger.start()
            case "refuse" | "mute" | "delay":
                self.proxy.do("heal", fault.target)
            case "hold" | "partition":
                self.proxy.do("heal", fault.target, fault.how)
            case "jump_clock":
                self._set_clock(0.0)

    def weather(self, number: int) -> None:
        """Switch to another set of provider faults."""
        self.sandbox.faults(rates=self.profile.weather[number], seed=number + 1)

    def heal(self) -> None:
        """End all faults: of links, servers, clocks, workers, providers and the receiver."""
        self.way.honest = True
        self._set_clock(0.0)
        self.ledger.start()
        self._let_brokers_be()
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

    # -- for the run -------------------------------------------------------------------------

    def receiver(self, faults: float) -> None:
        """Make the receiver fail a share of its deliveries."""
        behaviour = {"rate": faults, "rate_status": 503, "seed": 1}
        url = f"{self.sandbox_url}/hooks-behaviour"
        httpx.put(url, json=behaviour, timeout=60).raise_for_status()

    def hooks(self) -> list[dict[str, Any]]:
        """The requests that the receiver got."""
        return list(httpx.get(f"{self.sandbox_url}/hooks-log", timeout=30).json())

    def link(self, whose: str, url: str, server: str) -> str:
        """The same URL through a link of its own."""
        parts = urlsplit(url)
        if parts.scheme == "sentinel":
            return url  # every server there already has a link
        distance = self.profile.distance if server == "provider" else 0.0
        port = self.proxy.add(f"{whose}.{server}", parts.port or 5672, distance).port
        user, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{user}{at}127.0.0.1:{port}"))

    def add_worker(self, command: list[str], environment: dict[str, str]) -> None:
        """Add a worker's slot, and start the worker."""
        slot = Slot(f"worker-{len(self.workers)}", command, environment, self.folder)
        self.workers.append(slot)
        slot.start()

    def supervise(self) -> None:
        """Restart workers that ended by themselves, as an init system would; record the crash."""
        for slot in self.workers:
            with slot.lock:
                if not slot.stopping and not slot.down:
                    self.note_crash(slot)
                    slot.start()

    def note_crash(self, slot: Slot) -> None:
        """Record a worker that ended by itself."""
        with slot.lock:
            process = slot.process
            if process is None or slot.stopping:
                return
            killed = any(kill.pid == process.pid for kill in self.kills)
            if process.poll() is not None and not killed:
                if slot.refused:
                    self.starts_refused += 1
                else:
                    text = f"{slot.name} ended by itself: exit code {process.returncode}"
                    self.unclean.append(text)
                slot.process = None

    def retire_workers(self) -> None:
        """Stop every worker cleanly, and start none: from now on no record changes."""
        self.retired = True
        for slot in self.workers:
            self._begin_stop(slot)
        for thread in self._stopping:
            thread.join(STOP + 10)

    def close(self) -> None:
        """Kill the remaining workers, and prevent further starts: all results are collected."""
        self.retired = True
        self._let_brokers_be()
        for slot in self.workers:
            with slot.lock:
                if slot.process is not None:
                    with suppress(ProcessLookupError, PermissionError):
                        os.killpg(slot.process.pid, signal.SIGKILL)
                    slot.process.wait()

    def _throw_junk(self, seed: int) -> None:
        # In a thread: a hanging broker must not delay the other faults.
        threading.Thread(target=junk.throw, args=(self.broker_url, seed), daemon=True).start()
        for slot in self.workers:
            if slot.most_memory > MOST_MEMORY:
                self.unclean.append(f"{slot.name} had {slot.most_memory} bytes of memory")

    def _set_clock(self, offset: float) -> None:
        clock = self.ledger.clock
        if clock is not None and clock.offset != offset:
            clock.set(offset)
            self.jumps.append(time.time() * 1000)

    def _slot(self, fault: Fault) -> Slot:
        return self.workers[int(fault.target.rpartition("-")[2])]

    def _ready_beside(self, fault: Fault) -> int:
        others = [slot for slot in self.workers if slot is not self._slot(fault)]
        return sum(slot.ready and not slot.stopping and not slot.down for slot in others)

    def _kill(self, slot: Slot) -> None:
        with slot.lock:
            self.note_crash(slot)
            if not slot.stopping and (pid := slot.signal(signal.SIGKILL)):
                slot.down = True
                clock = self.ledger.clock
                ahead = clock.offset * 1000 if clock is not None else 0.0
                self.kills.append(Kill(pid, time.time() * 1000 + ahead, ahead))

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
            # SIGTERM kills a process that has not set up its handlers yet. One that was killed a
            # moment before may still have been there to receive SIGTERM.
            killed = any(kill.pid == process.pid for kill in self.kills)
            if code and not killed and (ready or code != -signal.SIGTERM):
                self.unclean.append(f"{slot.name} ended with {code} after SIGTERM")
        except subprocess.TimeoutExpired:
            self.unclean.append(f"{slot.name} did not end within {STOP:g} s after SIGTERM")
            process.kill()
            process.wait()
        with slot.lock:
            slot.stopping = False
            slot.process = None
            if not self.retired:
                slot.start()

    def _let_brokers_be(self) -> None:
        self._healing.set()
        for thread in self._killing:
            thread.join()

    def _begin_kill_broker(self, seconds: float) -> None:
        thread = threading.Thread(target=self._kill_broker, args=(seconds,), daemon=True)
        self._killing.append(thread)
        thread.start()

    def _kill_broker(self, seconds: float) -> None:
        # RabbitMQ starts slowly, and killing it during its start would prove little: each kill
        # waits for the earlier kills, and until the broker has run for a while.
        with self._broker_lock:
            while not self.broker.serving:
                if self._healing.wait(0.2):
                    return
            if self._healing.wait(SERVED):
                return
            self.broker.kill()
            self.brokers_killed += 1
            self._healing.wait(seconds)
            self.broker.start()


@contextmanager
def cluster(
    profile: Profile,
    broker: str,
    folder: Path,
    *,
    durable_broker: bool = False,
    level: Level | None = None,
    seed: int = 0,
) -> Iterator[Cluster]:
    """Start servers and links; stop everything at the end. The caller adds workers."""
    with ExitStack() as running:
        faketime = library() if profile.kinds.get("jump_clock") else None
        clock = Clock(folder, faketime) if faketime is not None else None
        proxy = running.enter_context(Proxy())
        ledger: Store | ReplicatedStore
        if level is None:
            ledger = Store(folder / "ledger", durable=True, clock=clock)
        else:
            ledger = ReplicatedStore(folder, proxy, level.fsync, dict(level.options))
        running.callback(ledger.kill)
        ledger.start()
        own: Store | RabbitNode
        if broker == "redis":
            # Alarms exist for a broker that loses everything: by default it does.
            own = Store(folder / "broker", durable=durable_broker)
            running.callback(own.kill)
            own.start()
        else:
            own = RabbitNode(folder / "rabbitmq", free_port(), free_port())
            running.callback(own.kill)
            own.start()
            own.wait()
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
        made = Cluster(
            folder,
            profile,
            proxy,
            ledger,
            own,
            own.url,
            client,
            url,
            Keyring.new("chaos"),
            running.enter_context(LyingWay(folder, seed)),
        )
        running.callback(made.close)
        yield made


def add_workers(here: Cluster, sabotage: str = "", replicas: int = 0) -> None:
    """Start the workers, each with links of its own to everything."""
    for number in range(here.profile.workers):
        whose = f"worker-{number}"
        environment = stack.environment(
            here.link(whose, here.ledger.url, "ledger"),
            here.link(whose, here.sandbox_url, "provider"),
            here.keys,
            SECRET,
            broker_url=here.link(whose, here.broker_url, "broker"),
            replicas=replicas,
            **here.profile.pace,
        )
        environment |= {"PYTHONPATH": os.pathsep.join(map(str, (PLUGIN, ROOT)))}
        environment |= {"CHAOS_SABOTAGE": sabotage}
        link = urlsplit(environment["REGWORKER_ACCOUNTS__SKYPOSTAL__DEFAULT__BASE_URL"])
        environment |= here.way.environment("SKYPOSTAL__DEFAULT", int(link.port or 0))
        here.add_worker(stack.worker_command("--hostname", f"{whose}@%h"), environment)
    ledger = SyncLedger(here.ledger.url)
    try:
        for slot in here.workers:
            assert slot.process is not None
            stack.wait_for_worker(ledger, slot.process, START)
            stack.until(lambda slot=slot: slot.ready, f"{slot.name} is not ready", START)
    finally:
        ledger.close()

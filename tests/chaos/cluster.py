"""The processes of a chaos run, and what can be done to them."""

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

from sandbox.client import SandboxClient
from tests.chaos.nemesis import Fault
from tests.chaos.processes import Kill, Slot, Store
from tests.chaos.profiles import Profile
from tests.chaos.proxy import Proxy, free_port
from tests.chaos.rabbit import RabbitNode, script
from tests.chaos.skew import Clock, library
from tests.rabbitmq import virtual_host
from worker.cli import stack
from worker.ledger import SyncLedger
from worker.sealing import Keyring

ROOT = Path(__file__).parents[2]
PLUGIN = Path(__file__).parent / "plugin"

SECRET = "whsec_dGhlIHNlY3JldCBvZiB0aGUgY2hhb3MgcnVuIG9ubHk="

#: Seconds for which a broker serves between two kills: workers look for it every few seconds, and
#: are to find it.
SERVED = 6.0

#: Seconds that a worker gets to stop after SIGTERM. It may have a settle to carry to a ledger that
#: is away, for which it waits up to a minute.
STOP = 75.0


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
    jumps: list[float] = field(default_factory=list)
    """When the ledger's clock was set (milliseconds since 1970, by the machine's)."""
    retired: bool = False
    """No worker is to be started any more."""
    brokers_killed: int = 0
    _stopping: list[threading.Thread] = field(default_factory=list)
    _killing: list[threading.Thread] = field(default_factory=list)
    _broker_lock: threading.Lock = field(default_factory=threading.Lock)
    _healing: threading.Event = field(default_factory=threading.Event)

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
            case "refuse" | "mute" | "delay":
                self.proxy.do("heal", fault.target)
            case "hold" | "partition":
                self.proxy.do("heal", fault.target, fault.how)
            case "jump_clock":
                self._set_clock(0.0)

    def weather(self, number: int) -> None:
        """Put other faults of the provider in force."""
        self.sandbox.faults(rates=self.profile.weather[number], seed=number + 1)

    def heal(self) -> None:
        """Everything is well again: links, servers, clocks, workers, providers, the receiver."""
        self._set_clock(0.0)
        self.ledger.start()
        self._let_brokers_be()
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

    def retire_workers(self) -> None:
        """Let every worker end in order, and start none: from now on no book changes."""
        self.retired = True
        for slot in self.workers:
            self._begin_stop(slot)
        for thread in self._stopping:
            thread.join(STOP + 10)

    def close(self) -> None:
        """Kill what is left of the workers, and let nobody start anything: all is known by now."""
        self.retired = True
        self._let_brokers_be()
        for slot in self.workers:
            with slot.lock:
                if slot.process is not None:
                    with suppress(ProcessLookupError, PermissionError):
                        os.killpg(slot.process.pid, signal.SIGKILL)
                    slot.process.wait()

    def _set_clock(self, offset: float) -> None:
        clock = self.ledger.clock
        if clock is not None and clock.offset != offset:
            clock.set(offset)
            self.jumps.append(time.time() * 1000)

    def _slot(self, fault: Fault) -> Slot:
        return self.workers[int(fault.target.rpartition("-")[2])]

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
        # RabbitMQ takes its time to start, and to kill it meanwhile would prove little: each kill
        # waits until it has served for a while, and for the kills before.
        with self._broker_lock:
            while self.broker is not None and not self.broker.serving:
                if self._healing.wait(0.2):
                    return
            if self._healing.wait(SERVED):
                return
            links = [] if self.broker else [n for n in self.proxy.links if n.endswith(".broker")]
            if self.broker is not None:
                self.broker.kill()
            for name in links:
                # Not ours to kill: nobody reaches it.
                self.proxy.do("refuse", name)
            self.brokers_killed += 1
            self._healing.wait(seconds)
            if self.broker is not None:
                self.broker.start()
            for name in links:
                self.proxy.do("heal", name)


@contextmanager
def cluster(
    profile: Profile, broker: str, amqp_url: str, folder: Path, *, durable_broker: bool = False
) -> Iterator[Cluster]:
    """Start servers and links; end everything, whatever happens. The caller adds workers."""
    with ExitStack() as running:
        faketime = library() if profile.kinds.get("jump_clock") else None
        clock = Clock(folder, faketime) if faketime is not None else None
        ledger = Store(folder / "ledger", durable=True, clock=clock)
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
        running.callback(made.close)
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

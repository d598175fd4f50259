"""A real installation for tests: an embedded ledger, the providers' sandbox, and a worker."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regworker.ledger import SyncLedger
from regworker.producer import Producer
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from sandbox.receiver import Receiver
from sandbox.server import SandboxServer
from worker.cli.local import stack

WEBHOOK_SECRET = "whsec_dGhlIHNlY3JldCBvZiB0aGUgdGVzdHMgb25seQ=="  # noqa: S105
"""The signing secret of the endpoint `crm`."""

#: What takes minutes in production takes seconds here.
PACE: dict[str, Any] = {
    "call_budget": 1.0,
    "settle_delay": 2.0,
    "lease": 3.0,
    "lease_renewal": 1.0,
    "clock_period": 0.1,
    "retry_base": 0.2,
    "retry_cap": 1.0,
    "concurrency": 10,
}


@dataclass
class Installation:
    """The running processes, and how to reach them."""

    environment: dict[str, str] = field(repr=False)
    """`REGWORKER_*` of this installation, for processes of the host."""
    producer: Producer
    server: SandboxServer
    receiver: Receiver
    """Receives the webhooks of the endpoint `crm`; `receiver.log` lists them."""

    def fault(self, kind: str, *, times: int | None = 1, **match: Any) -> None:
        """Make the next `times` matching calls fail; None: all of them.

        `kind`: one of `sandbox.faults.KINDS`, with its parameters; `match`: `provider`, `call`,
        `email`. Faults apply in the order in which they were added.
        """
        faults = self.server.sandbox.faults
        now = faults.public()
        rule = {"kind": kind, "times": times, **match}
        faults.configure({**now, "script": [*now["script"], rule]})

    def accounts(self, email: str) -> int:
        """How many customers the providers created for an e-mail address."""
        return len(self.server.sandbox.accounts.find(email=email))

    def reset(self) -> None:
        """Delete the providers' customers, requests and faults, and the receiver's log."""
        self.server.sandbox.reset()
        self.receiver.reset()


@contextmanager
def installation(folder: Path, **settings: Any) -> Iterator[Installation]:
    """Start everything in a folder, and stop it at the end. `settings`: `REGWORKER_*` in lower
    case."""
    receiver = Receiver([WEBHOOK_SECRET])
    keys = Keyring.new("test")
    with stack.valkey(folder / "ledger") as valkey, SandboxServer(receiver=receiver) as server:
        url = valkey.connection_url
        environment = stack.environment(
            url, server.url, keys, WEBHOOK_SECRET, **{**PACE, **settings}
        )
        log = folder / "worker.log"
        ledger = SyncLedger(url)
        with (
            log.open("wb") as output,
            stack.process(stack.worker_command(), environment, folder, output) as worker,
            Producer(Settings.load(redis_url=url, sealing_keys=keys)) as producer,
        ):
            stack.wait_for_worker(ledger, worker)
            yield Installation(environment, producer, server, receiver)
        ledger.close()

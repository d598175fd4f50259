"""An installation with jobs in every state, and its pages."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from regworker.ledger.admin import quarantined
from regworker.settings import Settings
from tests.gateway.conftest import start
from tests.integration.installation import PATIENCE, Installation, installation
from tests.integration.jobs import ACTOR, email_of, open2b, skypostal
from worker.cli.local import stack
from worker.gateway.auth import Role
from worker.operations.admin_actions import AdminActions

PASSWORD = "correct horse battery"

#: The proxy runs on this machine, with an address of its own.
PROXY = "127.0.0.2"

#: The settings of the pages; the others are a worker's.
SERVE = {
    "REGWORKER_SERVE_PASSWORD": PASSWORD,
    "REGWORKER_SERVE_TRUSTED_PROXY": PROXY,
    "REGWORKER_SERVE_GROUPS": "viewer=staff,support=helpdesk,operator=sre",
}

GROUPS: dict[Role, str] = {"viewer": "staff", "support": "helpdesk", "operator": "sre"}


@dataclass
class Stage:
    """The pages' URL, the installation, and the ids of jobs by their state."""

    here: Installation
    url: str
    log: Path
    jobs: dict[str, str] = field(default_factory=dict)

    def client(self, role: Role = "operator", name: str = "") -> httpx.Client:
        """A client with the user and role that the trusted proxy sends."""
        return httpx.Client(
            base_url=self.url,
            headers={
                "x-forwarded-user": name or f"{role}@shop",
                "x-forwarded-groups": f"everybody, {GROUPS[role]}",
            },
            transport=httpx.HTTPTransport(local_address=PROXY),
            timeout=60,
        )

    def in_review(self, key: str, **job: object) -> str:
        """A job whose answer was lost, and whose e-mail address another customer has."""
        email = f"{key}@example.com"
        self.here.run(skypostal(email, idempotency_key=f"{key}-first"))
        made = skypostal(email, idempotency_key=key, **job)
        made["registration"]["customer_password"] = f"another {key}"
        rule = {"kind": "drop_before_commit", "email": email_of(made)}
        self.here.sandbox.faults.configure({"script": [rule]})
        job_id = self.here.producer.enqueue(made).job_id
        self.here.wait_for(job_id, "review")
        return job_id

    def decided(self, key: str) -> str:
        """A job whose review a person has resolved."""
        job_id = self.in_review(key)
        settings = Settings.load(
            redis_url=self.here.environment["REGWORKER_REDIS_URL"],
            sealing_keys=self.here.environment["REGWORKER_SEALING_KEYS"],
            broker_url=self.here.environment.get("REGWORKER_BROKER_URL"),
        )
        with AdminActions(settings) as admin:
            admin.rejected(job_id, "somebody else's", ACTOR)
        return job_id

    def queued(self, key: str) -> str:
        """A job that waits, because the provider asked the worker to wait."""
        made = open2b(f"{key}@example.com", idempotency_key=key)
        rule = {"kind": "too_many", "email": email_of(made), "retry_after": 3600}
        self.here.sandbox.faults.configure({"script": [rule]})
        job_id = self.here.producer.enqueue(made).job_id
        stack.until(
            lambda: self.here.producer.status(job_id).attempts == 1, "its first call", PATIENCE
        )
        self.here.wait_for(job_id, "queued")
        return job_id

    def dead(self, key: str) -> str:
        """A job whose event the endpoint has refused for good, which disables the endpoint."""
        self.here.receiver.behave({"script": [{"status": 410}]})
        event = self.here.run(open2b(idempotency_key=key, reply_to=["results", "crm"]))
        stack.until(
            lambda: bool(self.here.ledger.redis.zcard("{reg}:dead")), "a dead delivery", PATIENCE
        )
        return str(event["subject"])

    def set_aside(self) -> None:
        """An entry of the job stream that cannot be parsed."""
        before = self.here.ledger(quarantined(9))[0]
        self.here.ledger.redis.xadd("{reg}:jobs", {"job": f'{{"registration": "{before}'})
        stack.until(
            lambda: self.here.ledger(quarantined(9))[0] > before, "the quarantine", PATIENCE
        )


@contextmanager
def pages(folder: Path, **environment: str) -> Iterator[Stage]:
    """Start everything, with jobs that are registered, rejected, in review and queued, and one
    with a dead webhook."""
    with ExitStack() as running:
        here = running.enter_context(installation(folder, **environment))
        url, _, log = start(running, folder, {**here.environment, **SERVE}, "--port", "0")
        stage = Stage(here, url, log)
        registered = here.run(skypostal("ann@example.com", idempotency_key="order-1001"))
        rejected = here.run(skypostal("ann@example.com", idempotency_key="order-1002"))
        stage.jobs = {
            "registered": registered["subject"],
            "rejected": rejected["subject"],
            "review": stage.in_review("order-1003", metadata={"shop": 7}),
            "queued": stage.queued("order-1004"),
            "dead": stage.dead("order-1005"),
        }
        stage.jobs["decided"] = stage.decided("order-1006")
        stage.set_aside()
        yield stage

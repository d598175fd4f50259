"""Record a ledger: jobs in every state, as this version writes them, in one RDB file.

    python -m tests.upgrade.record tests/upgrade/ledgers/VERSION.rdb

Run it with the version to be recorded; `test_upgrade.py` reads the recordings with the current
version. Nothing in a recording expires: deadlines and retention are decades."""

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from regworker.ledger.admin import QUARANTINE
from regworker.ledger.endpoints import enable, endpoint_key
from regworker.ledger.records import Claim
from regworker.ledger.transitions import ALARMS, DEAD, ClaimRules, account_key, claim, job_key
from regworker.settings import Settings, variable
from tests.integration import installation as installing
from tests.integration.installation import PATIENCE, Installation, installation
from tests.integration.jobs import ACTOR, open2b, skypostal
from worker.broker.wakeups import QUEUES
from worker.cli.local import stack
from worker.operations.admin_actions import AdminActions

#: Used in recordings only.
KEYS = "recorded:cmVjb3JkZWQgbGVkZ2VycyBvZiB0aGUgdGVzdHMgISE"

FAR = "2099-01-01T00:00:00Z"

#: Seconds: fifty years.
DECADES = 50 * 365 * 86400

PROVIDERS = ("skypostal", "open2b")

#: The name of a worker that died before it did anything.
RULES = ClaimRules(worker="dead:1", lease=0.001, settle_delay=0.001, max_attempts=12, probe=1)


def job(key: str, make: Any = skypostal, **more: Any) -> dict[str, Any]:
    """A job whose key says what became of it."""
    made: dict[str, Any] = make(email=f"{key}@example.com", **{"deadline": FAR, **more})
    return {**made, "idempotency_key": key}


def fill(here: Installation, operator: AdminActions) -> None:
    """One job of each kind, brought to its state in the usual way."""
    producer = here.producer

    def ends(given: dict[str, Any], state: str) -> str:
        event = here.run(given)
        assert event["type"] == f"registration.{state}", event
        return str(event["subject"])

    here.wait_for_hook(ends(job("registered", reply_to=["results", "crm"]), "registered"))
    stack.until(lambda: not here.ledger.redis.exists(ALARMS), "the delivery's end", PATIENCE)
    ends(job("registered-open2b", open2b), "registered")
    ends(job("registered") | {"idempotency_key": "rejected"}, "rejected")
    ends(job("abandoned", deadline="2001-01-01T00:00:00Z"), "abandoned")

    here.sandbox.faults.configure(
        {"script": [{"kind": "drop_before_commit", "email": "registered@example.com"}]}
    )
    doubtful = job("registered") | {"idempotency_key": "review"}
    doubtful["registration"]["customer_password"] = "another one"
    here.wait_for(producer.enqueue(doubtful).job_id, "review")

    here.receiver.behave({"script": [{"status": 410, "times": 1}]})
    producer.enqueue(job("delivery-dead", reply_to=["crm"]))
    stack.until(lambda: bool(here.ledger.redis.exists(DEAD)), "a dead delivery", PATIENCE)

    def disabled() -> bool:
        return here.ledger.redis.hget(endpoint_key("crm"), "disabled") == b"1"

    stack.until(disabled, "an endpoint that is disabled", PATIENCE)
    here.ledger(enable("crm"))
    here.receiver.behave({"rate": 1.0, "rate_status": 500})
    late = producer.enqueue(job("delivery-pending", reply_to=["crm"])).job_id

    def failed() -> bool:
        return b"HTTP 500" in (here.ledger.redis.hget(job_key(late), "log") or b"")

    stack.until(failed, "a delivery that failed", PATIENCE)

    for provider in PROVIDERS:
        operator.pause(provider, "default", ACTOR)
    producer.cancel(producer.enqueue(job("cancelled")).job_id)
    producer.enqueue(job("queued"))
    producer.enqueue(job("queued-open2b", open2b, lane="bulk", reply_to=["crm"]))
    here.ledger.redis.lpush(QUEUES["live"], b"no message of ours")
    stack.until(lambda: bool(here.ledger.redis.exists(QUARANTINE)), "a message kept", PATIENCE)


def left_on_the_wire(here: Installation) -> None:
    """One job whose worker died during its call, and one for which this has been noticed."""
    for provider in PROVIDERS:
        here.ledger.redis.hset(account_key(provider, "default"), "paused", "0")
    for key in ("calling", "unknown"):
        job_id = here.producer.enqueue(job(key)).job_id
        assert isinstance(here.ledger(claim(job_id, RULES, 0.5)), Claim)

        def asked(job_id: str = job_id) -> bool:
            return isinstance(here.ledger(claim(job_id, RULES, 0.5)), Claim)

        if key == "unknown":
            stack.until(asked, "a claim of a job whose lease ran out", PATIENCE)


def record(file: Path) -> None:
    """Fill a ledger, and save it."""
    installing.KEYS = KEYS
    os.environ[variable("retention")] = str(DECADES)
    with tempfile.TemporaryDirectory() as folder, installation(Path(folder)) as here:
        settings = Settings.load(redis_url=here.valkey.connection_url, sealing_keys=KEYS)
        with AdminActions(settings) as operator:
            fill(here, operator)
        for worker in here.workers:
            stack.stop(worker)
        left_on_the_wire(here)
        server: Any = here.ledger.redis
        # The broker's own keys; at the worst a new version starts without them.
        for key in server.keys("*"):
            if not key.startswith(b"{reg}:"):
                server.delete(key)
        server.save()
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(server.config_get("dir")["dir"]) / "dump.rdb", file)
        sys.stdout.write("\n".join(sorted(key.decode() for key in server.keys("*"))) + "\n")


if __name__ == "__main__":
    record(Path(sys.argv[1]))

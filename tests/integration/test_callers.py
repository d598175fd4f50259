"""Producers and operators use the server's clock, and wait for a server that is away."""

import ast
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import regworker
import worker
from regworker.domain.errors import LedgerUnavailable
from regworker.domain.event import EventType
from regworker.domain.job import Job
from regworker.event_builder import EventBuilder
from regworker.ledger import SyncLedger
from regworker.ledger.admin import Limits, announce
from regworker.ledger.records import Claim, Settled
from regworker.ledger.transitions import ClaimRules, Decision, SettleRules, claim, settle
from regworker.producer import Producer
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from tests.integration.jobs import ACTOR, skypostal
from worker.monitoring.heartbeat import own_name
from worker.operations.admin_actions import AdminActions

KEYS = Keyring.new("test")
YEAR = 365 * 86400.0

#: Modules that may read the machine's clock, because their times belong to no job: log lines, HTTP
#: dates and signatures, the host's tables, texts for people. Kombu stamps deliveries with the
#: worker's clock, and so does the transport that looks for old ones.
OWN_CLOCK = {
    *("telemetry/logs.py", "domain/retry.py", "publishers/webhook.py", "outbox/relay.py"),
    # What Celery shows of a task: when it began.
    *("broker/redis_transport.py", "process/wake_requests.py"),
}


@pytest.fixture
def settings(redis_url: str, ledger: SyncLedger) -> Iterator[Settings]:
    """Settings of a caller; a worker has announced itself to the ledger."""
    ledger(announce([Limits("skypostal", "default", 0, 0, 0)], ["results"]))
    yield Settings.load(redis_url=redis_url, sealing_keys=KEYS)
    ledger.redis.flushdb()


def in_review(ledger: SyncLedger, producer: Producer) -> str:
    """Bring a job into review."""
    job_id = producer.enqueue(skypostal()).job_id
    held = ledger(claim(job_id, ClaimRules(own_name(), 60, 60, 3, 20), 0.5))
    assert isinstance(held, Claim)
    settings = Settings.load(sealing_keys=KEYS)
    announcer = EventBuilder(settings, Keyring.parse(KEYS))
    publication = announcer.failed(EventType.REVIEW, held.record, held.at, ())
    rules = SettleRules(60, 5, 60, 864000)
    done = ledger(settle(held, Decision("unresolvable", "a test"), rules, publication))
    assert isinstance(done, Settled)
    return job_id


@pytest.mark.parametrize("ahead", [-YEAR, YEAR])
@pytest.mark.parametrize("step", ["cancel", "registered", "rejected"])
def test_an_event_is_stamped_by_the_servers_clock(
    settings: Settings, ledger: SyncLedger, monkeypatch: pytest.MonkeyPatch, step: str, ahead: float
) -> None:
    """The clock of the caller's machine makes no difference."""
    real = time.time
    with Producer(settings) as producer, AdminActions(settings) as operator:
        if step == "cancel":
            job_id = producer.enqueue(skypostal()).job_id
        else:
            job_id = in_review(ledger, producer)
        monkeypatch.setattr(time, "time", lambda: real() + ahead)
        steps: dict[str, Callable[[], Any]] = {
            "cancel": lambda: producer.cancel(job_id),
            "registered": lambda: operator.registered(
                job_id, {"customer_box_id": 1, "customer_key": "k"}, ACTOR
            ),
            "rejected": lambda: operator.rejected(job_id, "no", ACTOR),
        }
        steps[step]()
        status = producer.status(job_id)
    assert status.event is not None
    data = status.event["data"]
    assert data["accepted_at"] <= data["finished_at"] == status.event["time"]
    assert status.finished_at is not None
    assert abs(status.finished_at.timestamp() - real()) < 3600


def test_no_other_module_reads_the_machines_clock() -> None:
    """The machine's clock would be a second source of time in the ledger."""
    roots = [Path(one.__path__[0]) for one in (regworker, worker)]
    found = set()
    for root, file in ((one, file) for one in roots for file in one.rglob("*.py")):
        name = file.relative_to(root).as_posix()
        if name.startswith(("cli/", "gateway/pages/", "testing/")) or name in OWN_CLOCK:
            continue
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {
                *("time.time", "datetime.now", "datetime.utcnow", "time.time_ns"),
            }:
                found.add(name)
    assert found == set()


OPERATOR: dict[str, Callable[[AdminActions], Any]] = {
    "reviews": lambda one: list(one.reviews()),
    "accounts": lambda one: one.accounts(),
    "pause": lambda one: one.pause("skypostal", "default", ACTOR),
    "resume": lambda one: one.resume("skypostal", "default", ACTOR),
    "rejected": lambda one: one.rejected(Job.model_validate(skypostal()).id, "no", "ann"),
    "redrive": lambda one: one.redrive(skypostal(), ACTOR),
}


@pytest.mark.parametrize("what", OPERATOR)
def test_an_operator_is_told_that_the_ledger_is_away(
    unused_port: int, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """An operator's command waits and then raises `LedgerUnavailable`, not a refusal."""
    patiently = SyncLedger.patiently
    monkeypatch.setattr(
        SyncLedger, "patiently", lambda self, carry, patience=0: patiently(self, carry, 0.1)
    )
    url = f"redis://127.0.0.1:{unused_port}/0"
    with (
        AdminActions(Settings.load(redis_url=url, sealing_keys=KEYS)) as operator,
        pytest.raises(LedgerUnavailable, match="did not answer"),
    ):
        OPERATOR[what](operator)


def test_no_two_processes_have_one_name() -> None:
    """Names differ even with equal host names and pids, as in containers; a process keeps its
    name."""
    from worker.monitoring import heartbeat

    assert own_name() == own_name()
    first = own_name()
    heartbeat._mark.cache_clear()
    assert own_name() != first
    assert own_name().rsplit(":", 1)[0] == first.rsplit(":", 1)[0]

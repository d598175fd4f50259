"""A job's steps in the ledger, with one account: how tests carry them out."""

from dataclasses import replace
from typing import Any

from regworker.domain.event import EventType, read_event
from regworker.domain.job import Job
from regworker.domain.outcome import Code, Fault, Registered
from regworker.event_builder import EventBuilder
from regworker.ledger import SyncLedger
from regworker.ledger.admin import (
    Limits,
    announce,
)
from regworker.ledger.records import (
    Claim,
    Record,
)
from regworker.ledger.transitions import (
    ALARMS,
    ClaimRules,
    Decision,
    SettleRules,
    accept,
    claim,
    look,
    settle,
)
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings

DAY = 86_400.0
#: Seconds. What has to expire is created with no time left, so that no test waits.
RULES = ClaimRules("this worker", lease=60, settle_delay=60, max_attempts=3, probe=20)
AT_ONCE = replace(RULES, lease=0, settle_delay=0)
SETTLE = SettleRules(settle_delay=60, breaker_threshold=2, breaker_pause=60, retention=7 * DAY)
IMPATIENT = replace(SETTLE, settle_delay=0)
KEYS = Keyring.new("test")
KEYRING = Keyring.parse(KEYS)
ANNOUNCER = EventBuilder(Settings.load(sealing_keys=KEYS), KEYRING)
RESULTS = "{reg}:results"


def job(key: str = "crm-1", **more: Any) -> Job:
    """A job."""
    return Job(provider="acme", idempotency_key=key, registration={}, **more)


def serve(ledger: SyncLedger, cap: int = 0, interval: float = 0, burst: float = 0) -> None:
    """Let a worker announce what it serves."""
    ledger(announce([Limits("acme", "default", interval, burst, cap)], ["results", "crm"]))


def take_in(ledger: SyncLedger, one: Job, *fingerprints: str, deadline: float = DAY) -> Any:
    """Accept a job."""
    return ledger(accept(one, "sealed", fingerprints or ["k1:same"], deadline))


def record(ledger: SyncLedger, key: str = "crm-1") -> Record:
    """The ledger's record of a job."""
    found = ledger(look(job(key).id))
    assert found is not None
    return found


def claimed(ledger: SyncLedger, key: str = "crm-1", rules: ClaimRules = RULES) -> Claim:
    """A claim that was granted."""
    found = ledger(claim(job(key).id, rules, 0.5))
    assert isinstance(found, Claim), found
    return found


def concluded(
    ledger: SyncLedger, held: Claim, name: str, rules: SettleRules = SETTLE, **more: Any
) -> Any:
    """The answer to a settle."""
    event = None
    if name == "registered":
        event = ANNOUNCER.registered(held.record, held.at, Registered({"customer_key": "k"}))
    if name in {"rejected", "unresolvable"}:
        kind = EventType.REJECTED if name == "rejected" else EventType.REVIEW
        event = ANNOUNCER.failed(kind, held.record, held.at, (Fault(Code.INVALID, "f", "no"),))
    return ledger(settle(held, Decision(name, **more), rules, event))


def events(ledger: SyncLedger) -> list[dict[str, Any]]:
    """The published events."""
    entries: Any = ledger.redis.xrange(RESULTS)
    return [read_event(fields[b"event"]) for _, fields in entries]


def alarms(ledger: SyncLedger) -> list[str]:
    """The ids with an alarm."""
    return [member.decode() for member in ledger.redis.zrange(ALARMS, 0, -1)]


def due_now(ledger: SyncLedger) -> None:
    """Make all alarms due."""
    for member in alarms(ledger):
        ledger.redis.zadd(ALARMS, {member: 1})


def settings_of_a_host(redis_url: str, ledger: SyncLedger, keys: str) -> Settings:
    """A host's settings for a ledger to which a worker has announced itself."""
    found = Settings.load(redis_url=redis_url, sealing_keys=keys)
    accounts = [Limits(name, "default", 0, 0, 0) for name in ("skypostal", "open2b")]
    ledger(announce(accounts, ["results"], found.streams()))
    return found

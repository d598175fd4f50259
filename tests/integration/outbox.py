"""Deliveries for tests: created, tried and settled directly, and read from the ledger."""

import io
import json
import os
from contextlib import redirect_stderr, redirect_stdout
from typing import Any
from unittest.mock import patch

from regworker.domain.event import Notice
from regworker.domain.job import Job
from regworker.domain.outcome import Registered
from regworker.event_builder import EventBuilder
from regworker.ledger import SyncLedger
from regworker.ledger.admin import Limits, announce
from regworker.ledger.endpoints import EndpointState, endpoint_key, look_at_endpoint, serve
from regworker.ledger.records import Claim, Delivery, Settled, Tried, Wake
from regworker.ledger.transitions import (
    ALARMS,
    BULK_WAKES,
    URGENT_WAKES,
    WAKES,
    ClaimRules,
    Decision,
    SettleRules,
    accept,
    claim,
    deliver,
    delivered,
    delivery_key,
    settle,
)
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from worker.cli.app import run

DAY = 86_400.0
KEYS = Keyring.new("test")
KEYRING = Keyring.parse(KEYS)
ANNOUNCER = EventBuilder(Settings.load(sealing_keys=KEYS), KEYRING)
CLAIM = ClaimRules("w", lease=60, settle_delay=60, max_attempts=3, probe=20)
SETTLE = SettleRules(settle_delay=60, breaker_threshold=5, breaker_pause=10, retention=7 * DAY)


def open_shop(ledger: SyncLedger) -> SyncLedger:
    """A ledger where a worker has announced two endpoints, each with two places."""
    ledger(announce([Limits("acme", "default", 0, 0, 0)], ["results", "crm", "erp"]))
    ledger(serve({"crm": 2, "erp": 2}, 30 * DAY))
    return ledger


def woken(ledger: SyncLedger) -> list[Wake]:
    """Take the wake-ups that the ledger's scripts have left for a worker to pass on."""
    found = []
    for key in (URGENT_WAKES, WAKES, BULK_WAKES):
        for item in ledger.redis.rpop(key, 10_000) or []:
            lane, _, member = item.decode().partition(" ")
            found.append(Wake(member, lane))
    return found


def due(shop: SyncLedger, *keys: str, to: str = "crm") -> list[str]:
    """For each key a finished job with an event due to an endpoint: the deliveries' ids."""
    found = []
    for key in keys:
        job = Job(provider="acme", idempotency_key=key, registration={}, reply_to=(to,))
        shop(accept(job, "sealed", ["k:1"], DAY))
        held = shop(claim(job.id, CLAIM, 0))
        assert isinstance(held, Claim)
        event = ANNOUNCER.registered(held.record, held.at, Registered({"customer_key": "x"}))
        woken(shop)
        assert isinstance(shop(settle(held, Decision("registered"), SETTLE, event)), Settled)
        [wake] = woken(shop)
        found.append(wake.member)
    return found


def tried(shop: SyncLedger, member: str, lease: float = 30) -> Delivery:
    """Claim a delivery for one try."""
    one = shop(deliver(member, lease))
    assert isinstance(one, Delivery), one
    return one


def settled(shop: SyncLedger, one: Delivery, verdict: str, delay: float = 0) -> Tried:
    """Settle a try."""
    return shop(delivered(one, verdict, "HTTP 503", delay))


def alarm(shop: SyncLedger, member: str) -> float:
    """Seconds until a delivery's alarm."""
    seconds, micros = shop.redis.time()
    at: Any = shop.redis.zscore(ALARMS, member)
    return float(at) / 1000 - seconds - micros / 1e6


def crm(shop: SyncLedger, name: str = "crm") -> EndpointState:
    """The state of the endpoint `crm`."""
    return shop(look_at_endpoint(name))


def record(shop: SyncLedger, member: str) -> dict[str, str]:
    """What the ledger holds of a delivery."""
    found: Any = shop.redis.hgetall(delivery_key(member))
    return texts(found)


def texts(record: dict[bytes, bytes]) -> dict[str, str]:
    """A hash with its bytes decoded."""
    return {name.decode(): value.decode() for name, value in record.items()}


def published(shop: SyncLedger) -> list[Notice]:
    """The notices on the results stream."""
    entries: Any = shop.redis.xrange("{reg}:results")
    events = [fields[b"event"] for _, fields in entries]
    return [Notice.model_validate_json(one) for one in events if b"endpoint." in one]


def failing(shop: SyncLedger, days: float, last: float = 0.0) -> None:
    """Record failures of an endpoint that began so many days ago; the latest, `last` days ago."""
    seconds: int = shop.redis.time()[0]  # type: ignore[index]
    since, at = (round((seconds - one * DAY) * 1000) for one in (days, last))
    shop.redis.hset(endpoint_key("crm"), mapping={"failing_since": since, "failed_at": at})


class Cli:
    """Runs `regworker` against a ledger."""

    def __init__(self, **settings: str) -> None:
        clean = {name: value for name, value in os.environ.items() if "REGWORKER" not in name}
        self._environment = clean | settings

    def __call__(self, *arguments: str, code: int | None = 0) -> str:
        """Run a command; return its stdout and stderr. `code`: the expected exit code; None:
        any."""
        printed, complained = io.StringIO(), io.StringIO()
        with (
            patch.dict(os.environ, self._environment, clear=True),
            redirect_stdout(printed),
            redirect_stderr(complained),
        ):
            ended = run(list(arguments))
        assert code is None or ended == code, complained.getvalue()
        return printed.getvalue() + ("" if code == 0 else complained.getvalue())

    def json(self, *arguments: str, code: int | None = 0) -> list[dict[str, Any]]:
        """Run a command with `--json`; return the objects that it printed."""
        lines = self(*arguments, "--json", code=code).splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

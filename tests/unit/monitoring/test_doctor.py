"""What the doctor, `regworker top` and the pages say about the ledger's server."""

from typing import Any

import pytest
from rich.console import Console

from regworker.ledger.snapshot import RANKS, Beat, Jobs, Snapshot
from worker.cli.screen import Screen
from worker.gateway.pages.alerts import firing
from worker.monitoring import doctor
from worker.monitoring.overview import Overview, Server

#: A healthy server's `INFO`.
INFO: dict[str, Any] = {
    "valkey_version": "9.1.0",
    "maxmemory_policy": "noeviction",
    "role": "master",
    "aof_enabled": 1,
    "aof_last_write_status": "ok",
    "aof_last_bgrewrite_status": "ok",
    "used_memory": 10,
    "maxmemory": 1000,
}

#: What is wrong, the finding's subject and level, and the alert.
WRONG = [
    ({"aof_enabled": 0}, "persistence", "unsafe", "RegworkerLedgerNotWritten"),
    ({"aof_last_write_status": "err"}, "persistence", "unsafe", "RegworkerLedgerNotWritten"),
    ({"aof_last_bgrewrite_status": "err"}, "persistence", "warning", "RegworkerLedgerNotWritten"),
    ({"role": "slave"}, "role", "unsafe", "RegworkerLedgerNotPrimary"),
    ({"used_memory": 900}, "memory", "warning", "RegworkerLedgerMemory"),
    ({"used_memory": 1000}, "memory", "unsafe", "RegworkerLedgerMemory"),
]


def overview(info: dict[str, Any], **snapshot: Any) -> Overview:
    """An installation with one worker, and nothing to do."""
    worker = Beat("w:1:a", "w", 1, "1", "loop", 1, 1, 0, "", {"loop": (0, 30)}, 1, **snapshot)
    empty: tuple[Any, ...] = ()
    seen = Snapshot(
        at=1, jobs=_no_jobs(), accounts=empty, endpoints=empty, streams=empty, workers=(worker,),
        alarms=0, overdue=0, overdue_by=0, reviews=0, review_since=0, dead={}, quarantine=0,
        stats={}, unreadable=(),
    )  # fmt: skip
    return Overview(seen, Server.read(info), {})


def _no_jobs() -> tuple[Any, ...]:
    return tuple(Jobs(state, lane, 0, 0, 0) for state in RANKS for lane in ("live", "bulk"))


def attention(found: Overview) -> list[str]:
    """The lines of `regworker top` that need a person."""
    console = Console(width=200, color_system=None)
    with console.capture() as shown:
        console.print(Screen().whole(found))
    return [line for line in shown.get().splitlines() if line.startswith("! ")]


def test_a_healthy_server_needs_nobody() -> None:
    """Nothing is said of it."""
    findings = [*doctor.server(INFO), *doctor.memory(INFO)]
    assert {one.level for one in findings} == {"ok"}
    assert attention(overview(INFO)) == []
    assert firing(overview(INFO)) == []


@pytest.mark.parametrize(("wrong", "subject", "level", "alert"), WRONG, ids=str)
def test_what_rings_an_alert_is_named_everywhere(
    wrong: dict[str, Any], subject: str, level: str, alert: str
) -> None:
    """By the doctor, `top` and the pages: whoever is called looks there first."""
    info = INFO | wrong
    findings = {one.subject: one for one in [*doctor.server(info), *doctor.memory(info)]}
    assert findings[subject].level == level
    assert findings[subject].advice
    assert len(attention(overview(info))) == 1
    assert [one.name for one in firing(overview(info))] == [alert]


def test_nothing_is_said_of_a_worker_that_does_not_say_whose_broker_it_uses() -> None:
    """An older version's heartbeat does not."""
    sent = overview(INFO, broker="other").snapshot.workers[0].fields()
    record = dict(zip(map(str, sent[::2]), map(str, sent[1::2]), strict=True))
    record |= {"name": "w:1:a", "at": "1"}
    assert Beat.read(record).broker == "other"
    del record["broker"]
    found = overview(INFO, broker=Beat.read(record).broker)
    assert list(doctor.broker_owner(found.snapshot)) == []
    assert firing(found) == []


def test_a_broker_of_another_installation_is_named_everywhere() -> None:
    """Otherwise jobs wait for their alarms, and nobody knows why."""
    found = overview(INFO, broker="other")
    [said] = attention(found)
    assert "another installation" in said
    assert [one.name for one in firing(found)] == ["RegworkerBrokerShared"]
    [finding] = doctor.broker_owner(found.snapshot)
    assert finding.level == "unsafe"

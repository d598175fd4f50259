"""An operator sets an account's pace while workers run, and pauses an account until a time."""

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import typer

from regworker.domain.pace import Pace
from regworker.ledger import SyncLedger
from regworker.ledger.admin import Limits, announce, pace
from regworker.ledger.records import Claim, NotNow
from regworker.ledger.transitions import ALARMS, account_key, claim
from sandbox.server import SandboxServer
from tests.integration.installation import SECRET
from tests.integration.jobs import ACTOR
from tests.integration.ledger_steps import RULES, job, serve, take_in
from tests.integration.outbox import KEYS, Cli
from worker.cli import time_arguments
from worker.cli.local import stack

ACCOUNT = ("acme", "default")


@pytest.fixture
def cli(redis_url: str) -> Cli:
    """The commands."""
    return Cli(REGWORKER_REDIS_URL=redis_url, REGWORKER_SEALING_KEYS=KEYS)


def waits(ledger: SyncLedger, key: str) -> float:
    """Milliseconds until the slot of this key's job; 0: it is called now."""
    take_in(ledger, job(key))
    answer: Any = ledger(claim(job(key).id, RULES, 0))
    if isinstance(answer, Claim):
        return 0.0
    assert isinstance(answer, NotNow)
    assert answer.why == "pace"
    return answer.until - float(ledger.now())


def account(cli: Cli) -> dict[str, Any]:
    """The account in `providers list`."""
    [found] = cli.json("providers", "list")
    return found


def test_an_operators_pace_goes_before_the_setting(ledger: SyncLedger, cli: Cli) -> None:
    """For all workers and after restarts, until the operator returns to the setting."""
    serve(ledger, interval=1000)
    assert account(cli)["rate"] == 1
    said = cli("providers", "pace", "acme/default", "1/10s", "--by", "ann", "--why", "asked to")
    assert "it was the setting" in said
    serve(ledger, interval=1000)
    found = account(cli)
    assert (found["rate"], found["own_pace"]) == (0.1, "1/10s")
    assert "operator: 1/10s" in cli("providers", "list")
    assert waits(ledger, "a") == 0.0
    # A tenth of the period may be used up at once; the claim itself takes a moment.
    assert 5_000 <= waits(ledger, "b") <= 9_000
    said = cli("providers", "pace", "acme/default", "default", "--by", "ann")
    assert "it was 1/10s" in said
    found = account(cli)
    assert (found["rate"], found["own_pace"]) == (1, None)
    acts = [(one["before"], one["after"]) for one in cli.json("audit", "--what", "account.pace")]
    assert acts[-2:] == [("the setting", "1/10s"), ("1/10s", "the setting")]


def test_calls_of_the_old_pace_count_for_the_new_one(ledger: SyncLedger) -> None:
    """Setting a pace twice allows no extra calls; jobs that wait for a slot are woken at once."""
    serve(ledger, interval=100_000)
    assert waits(ledger, "a") == 0.0
    take_in(ledger, job("b"))
    assert ledger(claim(job("b").id, RULES, 0)).why == "pace"
    ledger(pace(ACCOUNT, Pace(1, 10), "1/10s", ACTOR))
    due = ledger.redis.zscore(ALARMS, job("b").id)
    assert due is not None
    assert float(due) <= float(ledger.now())
    assert (
        7_000 <= float(ledger(claim(job("b").id, RULES, 0)).until) - float(ledger.now()) <= 10_000
    )


def test_a_pace_that_says_nothing_is_refused(ledger: SyncLedger, cli: Cli) -> None:
    """The command says how to write a pace; an unknown account is an error, too."""
    serve(ledger)
    for wrong in ("fast", "0/1s", "5", "5/s0", "1/0s"):
        assert "Usage" in cli("providers", "pace", "acme/default", wrong, code=2)
    assert "announced" in cli("providers", "pace", "acme/nobody", "5/s", code=1)
    assert account(cli)["own_pace"] is None
    assert Pace.parse("5/m") == Pace(5, 60)


@pytest.fixture
def zone() -> Iterator[None]:
    """A machine in New York."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = "America/New_York"
    time.tzset()
    yield
    if before is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = before
    time.tzset()


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("18:00", "2026-11-28T23:00"),
        ("9:30", "2026-11-29T14:30"),
        ("90m", "2026-11-28T17:30"),
        ("2026-11-28T18:00", "2026-11-28T23:00"),
        ("2026-11-28T18:00Z", "2026-11-28T18:00"),
    ],
)
@pytest.mark.usefixtures("zone")
def test_a_time_to_come_is_read_in_the_zone_of_the_machine(text: str, end: str) -> None:
    """A time of day is the next such time; other zones must be named."""
    now = datetime(2026, 11, 28, 16, tzinfo=UTC)
    found = time_arguments.ahead(text, "--until", now)
    assert found == datetime.fromisoformat(end).replace(tzinfo=UTC)
    for past in ("2026-11-28T10:00", "2026-11-28T16:00Z", "0s", "0d", "000m"):
        with pytest.raises(typer.BadParameter, match="not in the future"):
            time_arguments.ahead(past, "--until", now)
    with pytest.raises(typer.BadParameter, match="time of day"):
        time_arguments.ahead("soon", "--until", now)


@pytest.mark.usefixtures("zone")
def test_the_clock_changes_before_the_time_of_day_comes() -> None:
    """In the night in which clocks go back, six in the morning is an hour later."""
    now = datetime(2026, 11, 1, 3, tzinfo=UTC)  # 23:00 on the evening before
    found = time_arguments.ahead("06:00", "--until", now)
    assert found == datetime(2026, 11, 1, 11, tzinfo=UTC)


@pytest.mark.usefixtures("zone")
def test_a_pause_ends_by_itself(ledger: SyncLedger, cli: Cli) -> None:
    """The command and the list show the end with its time zone; a waiting job is tried then."""
    serve(ledger)
    said = cli("providers", "pause", "acme/default", "--until", "2h", "--by", "ann")
    end = datetime.fromisoformat(account(cli)["paused_until"])
    assert abs(end - datetime.now(UTC) - timedelta(hours=2)) < timedelta(minutes=1)
    shown = f"{end.astimezone():%Y-%m-%d %H:%M} E"
    assert shown in said
    assert shown in cli("providers", "list")
    take_in(ledger, job("waits"))
    assert ledger(claim(job("waits").id, RULES, 0)).why == "paused"
    ledger.redis.hset(account_key(*ACCOUNT), "paused_until", 1)
    assert isinstance(ledger(claim(job("waits").id, RULES, 0)), Claim)
    found = account(cli)
    assert (found["paused"], found["paused_until"], found["reason"]) == (False, None, "")


@pytest.mark.parametrize("hours", [-5, 5])
def test_a_pause_ends_by_the_clock_of_the_ledger(
    ledger: SyncLedger, cli: Cli, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    """The clock of the operator's machine may be wrong."""
    serve(ledger)

    class Wrong(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + timedelta(hours=hours)

    monkeypatch.setattr(time_arguments, "datetime", Wrong)
    cli("providers", "pause", "acme/default", "--until", "2h", "--by", "ann")
    end = datetime.fromisoformat(account(cli)["paused_until"])
    left = end.timestamp() * 1000 - float(ledger.now())
    assert 6_000_000 < left <= 7_200_000


def test_a_pause_that_is_over_at_once_is_refused(ledger: SyncLedger, cli: Cli) -> None:
    """The command says so, and pauses nothing."""
    serve(ledger)
    said = cli("providers", "pause", "acme/default", "--until", "0s", "--by", "ann", code=2)
    assert "not in the future" in said
    assert account(cli)["paused"] is False


def test_the_doctor_looks_up_somebody_at_each_provider(ledger: SyncLedger, redis_url: str) -> None:
    """It checks connection and credentials, unless it runs offline; it creates nobody."""
    ledger(announce([Limits("skypostal", "default", 0, 0, 0)], ["results"]))
    with SandboxServer() as server:
        server.sandbox.configure({"skypostal": {"app_key": "right"}})

        def looked_up(key: str, *options: str) -> list[tuple[str, str]]:
            values = stack.environment(redis_url, server.url, KEYS, SECRET)
            values["REGWORKER_ACCOUNTS__SKYPOSTAL__DEFAULT__APP_KEY"] = key
            cli = Cli(**values)
            found = cli.json("doctor", *options)
            return [
                (one["subject"], one["level"])
                for one in found
                if one["subject"] == "skypostal/default: look-up"
            ]

        assert looked_up("right") == [("skypostal/default: look-up", "ok")]
        assert looked_up("wrong") == [("skypostal/default: look-up", "warning")]
        assert looked_up("wrong", "--offline") == []
        assert not server.sandbox.accounts.find()

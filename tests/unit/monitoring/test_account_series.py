"""Metrics of very many accounts: added up by provider, and those that alerts name by themselves."""

from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from regworker.ledger.snapshot import AccountSnapshot, Snapshot
from worker.monitoring.account_series import AccountSeries
from worker.monitoring.overview import Overview, Server
from worker.monitoring.prometheus import of_all

ORDER = ("state", "provider", "account")
SERVER = Server("valkey 8", 1, 0, True, True, True, 1)


def account(name: str, provider: str = "open2b", **more: Any) -> AccountSnapshot:
    """An account with two calls in flight."""
    values: dict[str, Any] = {
        "breaker": "closed",
        "paused": False,
        "paused_until": 0,
        "reason": "",
        "failures": 0,
        "in_flight": 2,
        "max_in_flight": 5,
        "waiting": 3,
        "interval": 100.0,
        "burst": 1000.0,
        "booked": 0.0,
        "own_pace": "",
        "retry_at": 0,
        "stray_at": 0,
        **more,
    }
    return AccountSnapshot(provider=provider, account=name, **values)


ACCOUNTS = (
    account("a", booked=100.0),
    account("b", booked=500.0),
    account("c", breaker="refused"),
    account("d", paused=True),
    account("default", "skypostal"),
)
STATS = {
    **{f"registered:open2b:{name}": 10 for name in ("a", "b", "c", "gone")},
    "registered:skypostal:default": 1,
    "accepted": 50,
}


def samples(series: AccountSeries, accounts: tuple[AccountSnapshot, ...] = ACCOUNTS) -> Any:
    """Of each metric its values, by its labels' values in this order."""
    jobs: Any = dict.fromkeys(("jobs", "endpoints", "streams", "workers"), ())
    seen = Snapshot(
        at=1000, accounts=accounts, alarms=0, overdue=0, overdue_by=0.0, reviews=0, review_since=0,
        dead={}, quarantine=0, stats=STATS, unreadable=(), **jobs,
    )  # fmt: skip
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(
        of_all(Overview(seen, SERVER, {}), series).decode()
    ):
        for one in family.samples:
            found.setdefault(one.name, {})[
                tuple(one.labels[name] for name in ORDER if name in one.labels)
            ] = one.value
    return found


def test_each_account_of_a_small_installation_has_its_series() -> None:
    """Up to the limit; also one that no worker has any more has its counter."""
    found = samples(AccountSeries(limit=5))
    assert set(found["regworker_account_waiting"]) == {
        (one.provider, one.account) for one in ACCOUNTS
    }
    assert set(found["regworker_accounts_folded"].values()) == {0}
    finished = found["regworker_jobs_finished_total"]
    assert finished["registered", "open2b", "gone"] == 10
    assert not [name for name in finished if "*" in name]


def test_more_accounts_are_added_up_by_provider() -> None:
    """But for those that alerts name; the pace is the highest."""
    found = samples(AccountSeries(limit=4))
    assert found["regworker_account_waiting"] == {
        ("open2b", "*"): 6,
        ("open2b", "c"): 3,
        ("open2b", "d"): 3,
        ("skypostal", "*"): 3,
    }
    assert found["regworker_account_pace_used_ratio"]["open2b", "*"] == 0.5
    assert found["regworker_account_breaker"]["closed", "open2b", "*"] == 2
    assert found["regworker_account_breaker"]["refused", "open2b", "c"] == 1
    assert found["regworker_account_paused"]["open2b", "d"] == 1
    assert found["regworker_accounts_folded"] == {("open2b",): 2, ("skypostal",): 1}


def test_a_counter_of_several_accounts_never_falls() -> None:
    """An account that fails, or that no worker has any more, stays in it."""
    before = samples(AccountSeries(limit=2))["regworker_jobs_finished_total"]
    assert before["registered", "open2b", "*"] == 40
    healed = tuple(account(one.account, one.provider) for one in ACCOUNTS[1:])
    after = samples(AccountSeries(limit=2), healed)["regworker_jobs_finished_total"]
    assert after == before
    # Nor does one that the pattern names, while no worker announces it.
    named = AccountSeries(2, "open2b/a*")
    before = samples(named)["regworker_jobs_finished_total"]
    gone = samples(named, ACCOUNTS[1:])["regworker_jobs_finished_total"]
    assert gone["registered", "open2b", "*"] == before["registered", "open2b", "*"] == 30


@pytest.mark.parametrize(("limit", "named"), [(0, {"*"}), (1, {"*", "c"}), (2, {"*", "c", "d"})])
def test_no_more_accounts_are_named_than_the_limit(limit: int, named: set[str]) -> None:
    """Also if all of them fail; the others' sum says how many do."""
    found = samples(AccountSeries(limit))
    assert {name for _, name in found["regworker_account_waiting"]} == named
    refused = found["regworker_account_breaker"]
    assert sum(n for (state, *_), n in refused.items() if state == "refused") == 1


def test_accounts_by_a_pattern_have_their_series_anyway() -> None:
    """All of them, with their counters."""
    found = samples(AccountSeries(0, "open2b/[ab]"))
    assert {name for _, name in found["regworker_account_waiting"]} == {"a", "b", "*"}
    finished = found["regworker_jobs_finished_total"]
    assert finished["registered", "open2b", "a"] == 10
    assert finished["registered", "open2b", "*"] == 20
    assert finished["abandoned", "open2b", "a"] == 0

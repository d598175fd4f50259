"""Lists of jobs: by state, account, age, key, reason and metadata; a page at a time."""

import base64
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from regworker.domain.job import Job
from regworker.domain.states import FINAL, State
from regworker.ledger import SyncLedger
from regworker.ledger.admin import Limits, announce
from regworker.ledger.records import Claim, Settled
from regworker.ledger.transitions import (
    PREFIX,
    Decision,
    Publication,
    accept,
    cancel,
    claim,
    job_key,
    look,
    settle,
)
from tests.integration.jobs import ACTOR
from tests.integration.ledger_steps import RULES, SETTLE
from worker.operations import jobs as operations
from worker.operations.jobs import JobFilter, JobList, WrongCursor

ACCOUNTS = (("acme", "default"), ("acme", "other"), ("zeta", "default"))


@pytest.fixture(scope="module")
def shop(redis_url: str) -> Iterator[SyncLedger]:
    """A ledger of 150 jobs in every state, of three accounts."""
    ledger = SyncLedger(redis_url)
    ledger.redis.flushdb()
    limits = [Limits(*account, 0, 0, 1000) for account in ACCOUNTS]
    ledger(announce(limits, ["results"]))
    for number in range(150):
        provider, account = ACCOUNTS[number % 3]
        lane = "bulk" if number % 7 == 0 else "live"
        job = Job(
            provider=provider,
            account=account,
            idempotency_key=f"key-{number}",
            registration={},
            lane=lane,
            metadata={"order": number % 10, "shop": "nord"},
        )
        ledger(accept(job, "sealed", [f"k:{number}"], 3600))
        drive(ledger, job.id, number // 3 % 7)
    yield ledger
    ledger.redis.flushdb()
    ledger.close()


def drive(ledger: SyncLedger, job_id: str, way: int) -> None:
    """Bring a job to one of the states."""
    if way == 0:
        return
    if way == 1:
        record = ledger(look(job_id))
        assert record is not None
        assert isinstance(ledger(cancel(record, 86400, event(job_id), ACTOR)), Settled)
        return
    held = ledger(claim(job_id, RULES, 0.5))
    assert isinstance(held, Claim)
    if way == 2:
        return
    name, reason = (
        ("registered", ""),
        ("rejected", "e-mail is taken"),
        ("unknown", "ReadTimeout"),
        ("unresolvable", "the password does not open it"),
    )[way - 3]
    publication = None if way == 5 else event(job_id)
    assert isinstance(ledger(settle(held, Decision(name, reason), SETTLE, publication)), Settled)


def event(job_id: str) -> Publication:
    """Something to publish."""
    return Publication(f"{job_id}.x", "x", b"{}", "sealed", "kept", ("results",))


def truth(ledger: SyncLedger) -> dict[str, dict[str, str]]:
    """All records, raw."""
    found = {}
    for key in ledger.redis.scan_iter(match=f"{PREFIX}job:*"):
        fields = {
            name.decode(): value.decode() for name, value in ledger.redis.hgetall(key).items()
        }
        found[key.decode().rpartition(":")[2]] = fields
    return found


FILTERS: dict[str, tuple[JobFilter, Any]] = {
    "all": (JobFilter(), lambda job: True),
    **{
        state: (JobFilter(states=(state,)), lambda job, state=state: job["state"] == state)
        for state in State
        if state is not State.ABANDONED
    },
    "an account": (
        JobFilter(provider="acme", account="other"),
        lambda job: (job["provider"], job["account"]) == ("acme", "other"),
    ),
    "a state of a provider": (
        JobFilter(states=(State.REJECTED, State.QUEUED), provider="zeta"),
        lambda job: job["provider"] == "zeta" and job["state"] in {"rejected", "queued"},
    ),
    "a reason": (JobFilter(reason="TAKEN"), lambda job: "taken" in job["log"]),
    "metadata": (
        JobFilter(metadata=(("order", "3"), ("shop", "nord"))),
        lambda job: '"order":3' in job["metadata"],
    ),
    "a key": (JobFilter(key="key-42"), lambda job: job["key"] == "key-42"),
    "nothing": (JobFilter(reason="no such thing"), lambda job: False),
    "the future": (JobFilter(since=datetime(2100, 1, 1, tzinfo=UTC)), lambda job: False),
}


@pytest.mark.parametrize("few", [40, 0])
@pytest.mark.parametrize("sort", ["newest", "oldest"])
@pytest.mark.parametrize("name", FILTERS)
def test_pages_have_each_job_once_and_in_order(
    shop: SyncLedger, name: str, sort: Any, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the size of a page, however little is looked at for it, and also if there are very
    many accounts."""
    monkeypatch.setattr(operations, "FEW", few)
    wanted, wants = FILTERS[name]
    wanted = JobFilter(**{**fields(wanted), "sort": sort})
    jobs = JobList(shop)
    expected = {id_ for id_, job in truth(shop).items() if wants(job)}
    for most, budget in ((1000, 10_000), (7, 10_000), (5, 1)):
        rows, cursor = [], None
        for _ in range(400):
            page = jobs.page(wanted, cursor, most, budget)
            rows += page.rows
            cursor = page.cursor
            if cursor is None:
                break
        assert sorted(row.id for row in rows) == sorted(expected)
        times = [row.at for row in rows]
        assert times == sorted(times, reverse=sort == "newest")


def test_a_page_reads_few_records_of_very_many_accounts(
    shop: SyncLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of each account and state, and of those in the page the next ones."""

    def read(few: int) -> int:
        monkeypatch.setattr(operations, "FEW", few)
        shop.redis.config_resetstat()
        assert len(JobList(shop).page(JobFilter(), None, 10).rows) == 10
        stats: Any = shop.redis.info("commandstats")
        return int(stats["cmdstat_hmget"]["calls"])

    assert read(0) < read(1000) / 2


def fields(wanted: JobFilter) -> dict[str, Any]:
    """A filter as its arguments."""
    return {name: getattr(wanted, name) for name in JobFilter.__dataclass_fields__}


def test_a_row_says_what_a_person_asks(shop: SyncLedger) -> None:
    """State, account, key, why, and the last line of its timeline."""
    [row] = JobList(shop).page(JobFilter(key="key-12", provider="acme", account="default")).rows
    assert (row.state, row.idempotency_key, row.last) == (
        "rejected",
        "key-12",
        "rejected: e-mail is taken",
    )


@pytest.mark.parametrize(
    "cursor",
    [
        "nonsense",
        '[Infinity,"x",""]',
        '[0,"x",""]',
        '[10000000000000,"x",""]',
        '[5,"ended:registered:acme:default","garbage"]',
        '[5,"ended:registered:acme:default","5 an-id"]',
        '[5,"ended:registered:acme:default","5-99999999999999999999"]',
        '[5,"open:queued:live","5-1"]',
        '[5,"open:queued:live","5 \\ud800"]',
    ],
)
@pytest.mark.parametrize("few", [40, 0])
def test_a_cursor_of_another_list_is_refused(
    shop: SyncLedger, cursor: str, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that somebody has made up."""
    monkeypatch.setattr(operations, "FEW", few)
    with pytest.raises(WrongCursor):
        JobList(shop).page(JobFilter(), base64.urlsafe_b64encode(cursor.encode()).decode())


def test_a_job_that_ends_while_a_page_is_read_is_not_in_it(
    shop: SyncLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list, read to its end, has each of the others once and in order."""
    monkeypatch.setattr(operations, "FEW", 0)
    wanted = JobFilter(states=tuple(FINAL))
    newest, *others = JobList(shop).all(wanted)
    expected = [row.id for row in (newest, *others)]
    first = next(one for one in others if one.state != newest.state)
    late = job_key("late")
    index = f"{{reg}}:ended:{first.state}:{first.provider}:{first.account}"
    jobs = JobList(shop)
    begin = jobs._begin

    def and_a_job_ends(*args: Any) -> None:
        begin(*args)
        if not shop.redis.exists(late):
            shop.redis.copy(job_key(first.id), late)
            shop.redis.xadd(index, {"i": "late"})

    monkeypatch.setattr(jobs, "_begin", and_a_job_ends)
    rows, cursor = [], None
    try:
        for _ in expected:
            page = jobs.page(wanted, cursor, 5)
            rows += page.rows
            cursor = page.cursor
            if cursor is None:
                break
    finally:
        [(entry, _)] = shop.redis.xrevrange(index, count=1)
        shop.redis.xdel(index, entry)
        shop.redis.delete(late)
    assert [row.id for row in rows] == expected

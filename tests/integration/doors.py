"""Handing in requests by each of the doors, and hearing what became of them."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from celery import Celery
from kombu import Queue

from tests.integration.installation import PATIENCE, Installation
from worker.cli import stack
from worker.errors import IdempotencyConflict, InvalidJob
from worker.job import Job
from worker.ledger.commands import JOBS, look
from worker.ledger.records import Record
from worker.wakeups import CANCEL, DOOR, REGISTER

DOORS = ["producer", "task", "stream"]


def id_of(job: Mapping[str, Any]) -> str:
    """The id that a job will have."""
    return Job.model_validate({**job, "registration": {}}).id


@contextmanager
def plain_client(url: str) -> Iterator[Celery]:
    """A Celery client that knows nothing of us but where the broker is."""
    client = Celery(broker=url, set_as_current=False)
    client.conf.task_ignore_result = True
    yield client
    client.close()


def hand_in(here: Installation, door: str, job: Mapping[str, Any]) -> str:
    """Hand in a job that will be taken; its id, once it is in the ledger."""
    if door == "producer":
        return here.producer.enqueue(job).job_id
    _send(here, door, "register", job)
    stack.until(lambda: here.ledger(look(id_of(job))) is not None, "the job taken", PATIENCE)
    return id_of(job)


def take_back(here: Installation, door: str, job: Mapping[str, Any]) -> None:
    """Cancel a job; it is over then."""
    scope = {"provider": job["provider"], "idempotency_key": job["idempotency_key"]}
    if door == "producer":
        here.producer.cancel(id_of(job))
    else:
        _send(here, door, "cancel", scope)
    here.wait_for(id_of(job), "cancelled")


def refused(here: Installation, door: str, job: Mapping[str, Any]) -> list[dict[str, str]]:
    """Hand in what will not be taken; what is said to be wrong."""
    if door == "producer":
        try:
            here.producer.enqueue(job)
        except InvalidJob as error:
            return [
                {"code": one.code, "field": one.field, "message": one.message}
                for one in error.problems
            ]
        except IdempotencyConflict as error:
            field, _, message = str(error).partition(": ")
            return [{"code": "idempotency_conflict", "field": field, "message": message}]
        raise AssertionError("it was taken")
    before = len(refusals(here))
    _send(here, door, "register", job)
    stack.until(lambda: len(refusals(here)) > before, "the refusal told", PATIENCE)
    errors: list[dict[str, str]] = refusals(here)[-1]["data"]["errors"]
    return errors


def refusals(here: Installation) -> list[dict[str, Any]]:
    """All events that tell of a request that made no job."""
    entries: Any = here.ledger.redis.xrange("{reg}:results")
    events = [json.loads(fields[b"event"]) for _, fields in entries]
    return [event for event in events if event["data"].get("accepted") is False]


def record(here: Installation, job: Mapping[str, Any]) -> Record:
    """What the ledger has of a job."""
    found = here.ledger(look(id_of(job)))
    assert found is not None
    return found


def _send(here: Installation, door: str, request: str, content: Mapping[str, Any]) -> None:
    if door == "stream":
        field = {"register": "job", "cancel": "cancel"}[request]
        here.ledger.redis.xadd(JOBS, {field: json.dumps(content)})
        return
    task = {"register": REGISTER, "cancel": CANCEL}[request]
    broker = here.environment.get("REGWORKER_BROKER_URL") or here.valkey.connection_url
    with plain_client(broker) as client:
        client.send_task(task, [dict(content)], queue=Queue(DOOR, no_declare=True))

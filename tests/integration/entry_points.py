"""Submit requests through each of the entry points, and read what became of them."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from celery import Celery
from kombu import Queue

from regworker.domain.errors import IdempotencyConflict, InvalidJob
from regworker.domain.job import Job
from regworker.ledger.records import Record
from regworker.ledger.transitions import JOBS, look
from tests.integration.installation import PATIENCE, Installation
from worker.broker.wakeups import CANCEL, REGISTER, REQUESTS
from worker.cli.local import stack

ENTRY_POINTS = ["producer", "task", "stream"]


def id_of(job: Mapping[str, Any]) -> str:
    """The id that a job will have."""
    return Job.model_validate({**job, "registration": {}}).id


@contextmanager
def plain_client(url: str) -> Iterator[Celery]:
    """A Celery client of another service, as the guide shows it: it knows only the broker's URL."""
    client = Celery(broker=url, set_as_current=False)
    client.conf.broker_transport_options = {"confirm_publish": True}
    client.conf.task_ignore_result = True
    yield client
    client.close()


def hand_in(here: Installation, entry_point: str, job: Mapping[str, Any]) -> str:
    """Submit a valid job; return its id once the ledger holds it."""
    if entry_point == "producer":
        return here.producer.enqueue(job).job_id
    _send(here, entry_point, "register", job)
    stack.until(lambda: here.ledger(look(id_of(job))) is not None, "the job taken", PATIENCE)
    return id_of(job)


def take_back(here: Installation, entry_point: str, job: Mapping[str, Any]) -> None:
    """Cancel a job and wait until it is cancelled."""
    scope = {"provider": job["provider"], "idempotency_key": job["idempotency_key"]}
    if entry_point == "producer":
        here.producer.cancel(id_of(job))
    else:
        _send(here, entry_point, "cancel", scope)
    here.wait_for(id_of(job), "cancelled")


def refused(here: Installation, entry_point: str, job: Mapping[str, Any]) -> list[dict[str, str]]:
    """Submit an invalid job; return the errors that are reported."""
    if entry_point == "producer":
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
    _send(here, entry_point, "register", job)
    stack.until(lambda: len(refusals(here)) > before, "the refusal's event", PATIENCE)
    errors: list[dict[str, str]] = refusals(here)[-1]["data"]["errors"]
    return errors


def refusals(here: Installation) -> list[dict[str, Any]]:
    """All events about requests that were refused."""
    entries: Any = here.ledger.redis.xrange("{reg}:results")
    events = [json.loads(fields[b"event"]) for _, fields in entries]
    return [event for event in events if event["data"].get("accepted") is False]


def record(here: Installation, job: Mapping[str, Any]) -> Record:
    """The ledger's record of a job."""
    found = here.ledger(look(id_of(job)))
    assert found is not None
    return found


def _send(here: Installation, entry_point: str, request: str, content: Mapping[str, Any]) -> None:
    if entry_point == "stream":
        field = {"register": "job", "cancel": "cancel"}[request]
        here.ledger.redis.xadd(JOBS, {field: json.dumps(content)})
        return
    task = {"register": REGISTER, "cancel": CANCEL}[request]
    broker = here.environment.get("REGWORKER_BROKER_URL") or here.valkey.connection_url
    with plain_client(broker) as client:
        client.send_task(task, [dict(content)], queue=Queue(REQUESTS, no_declare=True))

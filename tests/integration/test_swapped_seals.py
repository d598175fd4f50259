"""An attacker who can write to the server, without a key, gets no sealed data out."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from regworker.domain.errors import WrongSeal
from regworker.ledger.admin import QUARANTINE, quarantined
from regworker.ledger.endpoints import pending_key
from regworker.ledger.records import USUAL
from regworker.ledger.transitions import ALARMS, DEAD, STREAMS, delivery_key, job_key
from regworker.settings import Settings
from tests.integration.entry_points import id_of
from tests.integration.installation import KEYS, PATIENCE, SECRET, Installation, installation
from tests.integration.jobs import ACTOR, email_of, skypostal
from worker.broker.wakeups import REQUESTS
from worker.cli.local import stack
from worker.intake.quarantine import NotInQuarantine, Quarantine
from worker.operations.admin_actions import AdminActions

PASSWORD = "canary-0123"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """An installation with two webhooks and a sealed stream."""
    more = {
        "endpoints__erp__kind": "webhook",
        "endpoints__erp__secrets": SECRET,
        "endpoints__erp__allow_http": True,
        "endpoints__erp__allow_private": True,
        "endpoints__erp__url": "http://127.0.0.1:1/",
        "endpoints__billing__kind": "stream",
        "endpoints__billing__stream": "{reg}:billing",
        "endpoints__billing__sealed": True,
    }
    folder = tmp_path_factory.mktemp("swapped")
    with installation(folder, workers=0, broker_url="", **more) as running:
        running.environment["REGWORKER_ENDPOINTS__ERP__URL"] = f"{running.server.url}/hooks/erp"
        stack.wait_for_worker(running.ledger, running.start_worker())
        yield running


@contextmanager
def operating(here: Installation) -> Iterator[AdminActions]:
    """Its operator."""
    url = here.valkey.connection_url
    with AdminActions(Settings.load(redis_url=url, sealing_keys=KEYS)) as operator:
        yield operator


@contextmanager
def paused(here: Installation) -> Iterator[None]:
    """The account is paused: jobs wait with their payloads in the ledger."""
    with operating(here) as operator:
        operator.pause("skypostal", "default", ACTOR)
        try:
            yield
        finally:
            operator.resume("skypostal", "default", ACTOR)


def secret(**more: Any) -> dict[str, Any]:
    """A job with a password that a test can search for."""
    job = skypostal(**more)
    job["registration"]["customer_password"] = PASSWORD
    return job


def waiting(here: Installation, job: dict[str, Any]) -> str:
    """Enqueue a job, and wait until it waits; return its id."""
    job_id = here.producer.enqueue(job).job_id
    stack.until(lambda: here.producer.status(job_id).why == "paused", "the wait", PATIENCE)
    return job_id


def field(here: Installation, key: str, name: str) -> bytes:
    """A field of a record, which may omit what is usual."""
    value: Any = here.ledger.redis.hget(key, name)
    return bytes(value) if value is not None else USUAL[name].encode()


def shown(here: Installation, job_id: str) -> str:
    """The last event of a job on the stream."""
    return here.events(job_id)[-1].decode()


def forge(here: Installation, sealed: bytes, member: str, **fields: str) -> None:
    """Make a delivery out of any sealed text."""
    redis = here.ledger.redis
    _, event_id, endpoint = member.split(":")
    made = {"job": "x", "event_id": event_id, "endpoint": endpoint, "tries": "0"}
    made |= {"state": "pending", "created_at": "1", "provider": "", "account": "", "trace": ""}
    redis.hset(delivery_key(member), mapping={**made, **fields, "event": sealed})
    redis.zadd(pending_key(endpoint), {member: 1})
    redis.zadd(ALARMS, {member: 1})


def dies(here: Installation, member: str) -> str:
    """Wait until a delivery is dead; return the reason."""
    redis = here.ledger.redis
    stack.until(lambda: redis.zscore(DEAD, member) is not None, "a dead delivery", PATIENCE)
    return field(here, delivery_key(member), "why").decode()


def test_a_payload_is_delivered_as_no_event(here: Installation) -> None:
    """It would be sent in plain text, with its password."""
    with paused(here):
        victim = waiting(here, secret())
        forge(here, field(here, job_key(victim), "payload"), f"d:{victim}.1.registered:crm")
        why = dies(here, f"d:{victim}.1.registered:crm")
        assert "sealed as 'payload', not as 'event'" in why
    assert not any(PASSWORD.encode() in one.body for one in here.receiver.log)
    here.producer.wait(victim, PATIENCE)


def test_an_event_is_delivered_to_those_only_that_its_job_names(here: Installation) -> None:
    """It contains the customer's key."""
    job_id = here.run(secret(reply_to=["billing"]))["subject"]
    [(_, fields)] = here.ledger.redis.xrevrange("{reg}:billing", count=1)  # type: ignore[misc]
    event_id = fields[b"id"].decode()
    member = f"d:{event_id}:erp"
    forge(here, fields[b"sealed"], member)
    assert "sealed for ['billing'], not for ['erp']" in dies(here, member)
    other = f"d:{event_id}x:billing"
    forge(here, fields[b"sealed"], other.replace("billing", "crm"))
    assert "sealed as the event of" in dies(here, other.replace("billing", "crm"))
    assert not [one for one in here.receiver.log if one.subject == job_id]


def test_a_payload_is_no_other_jobs_registration(here: Installation) -> None:
    """With `adopt`, the attacker's job would get the victim's key."""
    victim = secret()
    with paused(here):
        payload = field(here, job_key(waiting(here, victim)), "payload")
    outcome = here.producer.wait(id_of(victim), PATIENCE)["data"]["outcome"]
    with paused(here):
        attacker = waiting(here, skypostal(if_exists="adopt", reply_to=["results", "crm"]))
        here.ledger.redis.hset(job_key(attacker), "payload", payload)
    status = here.wait_for(attacker, "review")
    assert "the payload does not belong to this job" in status.why
    assert outcome["customer_key"] not in shown(here, attacker)
    assert here.made(email_of(victim)) == 1


def test_two_payloads_that_are_swapped_are_sent_nowhere(here: Installation) -> None:
    """Each customer would be registered, and each job would get the other's key."""
    with paused(here):
        jobs = [secret(), secret()]
        keys = [job_key(waiting(here, job)) for job in jobs]
        payloads = [field(here, key, "payload") for key in keys]
        for key, payload in zip(keys, reversed(payloads), strict=True):
            here.ledger.redis.hset(key, "payload", payload)
    for job in jobs:
        assert "does not belong to this job" in here.wait_for(id_of(job), "review").why
        assert here.made(email_of(job)) == 0
        assert PASSWORD not in shown(here, id_of(job))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("reply_to", '["crm"]'),
        ("if_exists", "adopt"),
        ("metadata", '{"customer":2}'),
        ("account", "other"),
        ("provider", "open2b"),
        ("key", "another"),
    ],
)
def test_a_record_that_was_changed_is_not_carried_out(
    here: Installation, name: str, value: str
) -> None:
    """Its plain fields decide where the customer's key goes, and whose key it is."""
    with paused(here):
        job = secret(reply_to=["billing"])
        key = job_key(waiting(here, job))
        before = field(here, key, name)
        here.ledger.redis.hset(key, name, value)
        # Wake it through its alarm: no worker serves the changed account, and a claim checks first.
        here.ledger.redis.zadd(ALARMS, {id_of(job): 1})
    here.wait_for(id_of(job), "review")
    assert here.made(email_of(job)) == 0
    with operating(here) as operator, pytest.raises(WrongSeal):
        operator.registered(id_of(job), {"customer_box_id": 1, "customer_key": "k"}, ACTOR)
    # Nor without the payload, which shows the change.
    payload = field(here, key, "payload")
    here.ledger.redis.hdel(key, "payload")
    with operating(here) as operator, pytest.raises(WrongSeal):
        operator.registered(id_of(job), {"customer_box_id": 1, "customer_key": "k"}, ACTOR)
    here.ledger.redis.hset(key, mapping={name: before, "payload": payload})
    with operating(here) as operator:
        operator.resend(id_of(job), ACTOR)
    assert here.producer.wait(id_of(job), PATIENCE)["type"] == "registration.registered"


def test_a_sealed_stream_stays_so_whatever_the_ledger_says(here: Installation) -> None:
    """Workers follow their own settings."""
    redis = here.ledger.redis
    before = bytes(redis.hget(STREAMS, "billing"))  # type: ignore[arg-type]
    for said in (b"plain {reg}:billing", b"plain {reg}:results"):
        redis.hset(STREAMS, "billing", said)
        here.run(secret(reply_to=["billing"]))
        stream = said.decode().partition(" ")[2]
        [(_, fields)] = redis.xrevrange(stream, count=1)  # type: ignore[misc]
        assert fields[b"type"] == b"registration.registered"
        assert set(fields) == {b"id", b"type", b"sealed"}
        redis.xtrim(stream, maxlen=0)
    redis.hset(STREAMS, "billing", before)


def test_a_message_goes_back_to_its_own_queue_only(here: Installation) -> None:
    """It may hold a password, and other services may read another queue."""
    redis = here.ledger.redis
    redis.lpush(REQUESTS, json.dumps({"body": PASSWORD}))
    stack.until(lambda: here.ledger(quarantined(9))[0] > 0, "the quarantine", PATIENCE)
    [entry] = here.ledger(quarantined(9))[2]
    redis.hset(f"{QUARANTINE}:{entry.id}", "queue", "others")
    quarantine = Quarantine(Settings.load(redis_url=here.valkey.connection_url, sealing_keys=KEYS))
    try:
        with pytest.raises(WrongSeal, match=r"not for \['others'\]"):
            quarantine.requeue(entry.id, ACTOR)
        quarantine.drop(entry.id, ACTOR)
        with pytest.raises(NotInQuarantine):
            quarantine.get(entry.id)
    finally:
        quarantine.close()
    assert redis.llen("others") == 0

"""The audit log: each act of a person has one entry, written by the script of the act."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from regworker.domain.job import Job
from regworker.ledger import SyncLedger
from regworker.ledger.admin import (
    Limits,
    announce,
    correct,
    hold,
    quarantine,
    redrive,
    resolve,
    stray,
    trust,
    unquarantine,
)
from regworker.ledger.endpoints import enable, endpoint_key, replay, retry
from regworker.ledger.records import Claim, Record
from regworker.ledger.transitions import (
    DEAD,
    Command,
    Decision,
    Publication,
    accept,
    account_key,
    cancel,
    claim,
    delivery_key,
    look,
    settle,
)
from tests.integration.jobs import ACTOR
from tests.integration.ledger_steps import RULES, SETTLE
from worker.operations.audit import AuditFilter, AuditLog


@pytest.fixture(scope="module")
def shop(redis_url: str) -> Iterator[SyncLedger]:
    """A ledger with an account."""
    ledger = SyncLedger(redis_url)
    ledger.redis.flushdb()
    ledger(announce([Limits("acme", "default", 0, 0, 1000)], ["results"]))
    yield ledger
    ledger.redis.flushdb()
    ledger.close()


def publication(job_id: str) -> Publication:
    """An event to publish."""
    return Publication(f"{job_id}.x", "x", b"{}", "sealed", "kept", ("results",))


def queued(shop: SyncLedger, key: str) -> tuple[Job, Record]:
    """A job."""
    job = Job(provider="acme", idempotency_key=key, registration={})
    shop(accept(job, "sealed", ["k:1"], 3600))
    record = shop(look(job.id))
    assert record is not None
    return job, record


def cancelling(shop: SyncLedger, key: str) -> Command[Any]:
    """Cancels a queued job."""
    _, record = queued(shop, key)
    return cancel(record, 86400, publication(record.id), ACTOR)


def resolving(decision: str) -> Callable[[SyncLedger, str], Command[Any]]:
    """Resolves a job in review."""

    def prepare(shop: SyncLedger, key: str) -> Command[Any]:
        job, _ = queued(shop, key)
        held = shop(claim(job.id, RULES, 0.5))
        assert isinstance(held, Claim)
        shop(settle(held, Decision("unresolvable", "who?"), SETTLE, publication(job.id)))
        event = None if decision == "resend" else publication(job.id)
        return resolve(held.record, decision, ACTOR, 3600, 86400, event)

    return prepare


def correcting(shop: SyncLedger, key: str) -> Command[Any]:
    """Corrects a job that a person has settled."""
    shop(resolving("registered")(shop, key))
    job_id = Job(provider="acme", idempotency_key=key, registration={}).id
    return correct(job_id, "rejected", ACTOR, publication(job_id))


def redriving(shop: SyncLedger, key: str) -> Command[Any]:
    """Redrives an abandoned job."""
    job, record = queued(shop, key)
    shop.redis.hset(f"{{reg}}:job:{record.id}", "state", "abandoned")
    return redrive(job, "sealed", ["k:1"], 3600, ACTOR)


def delivery(state: str) -> Callable[[SyncLedger, str], Command[Any]]:
    """A delivery that has not arrived yet, or was given up."""

    def prepare(shop: SyncLedger, key: str) -> Command[Any]:
        member = f"d:{key}:crm"
        fields = {"state": state, "endpoint": "crm", "job": "none", "tries": "1"}
        shop.redis.hset(delivery_key(member), mapping=fields)
        if state == "dead":
            shop.redis.zadd(DEAD, {member: 1})
            return replay([member], ACTOR)
        return retry([member], ACTOR)

    return prepare


def enabling(shop: SyncLedger, key: str) -> Command[Any]:
    """Enables a disabled endpoint."""
    shop.redis.hset(endpoint_key(key), "disabled", "1")
    return enable(key, ACTOR)


def trusting(shop: SyncLedger, key: str) -> Command[Any]:
    """Trusts an account again that sent a stray answer."""
    record = account_key("acme", "default")
    shop(stray(record))
    return trust(record, "account", "acme/default", ACTOR)


def trusting_an_endpoint(shop: SyncLedger, key: str) -> Command[Any]:
    """Trusts an endpoint again that sent a stray answer."""
    record = endpoint_key("crm")
    shop(stray(record))
    return trust(record, "endpoint", "crm", ACTOR)


def leaving(after: str) -> Callable[[SyncLedger, str], Command[Any]]:
    """Removes a message from quarantine."""

    def prepare(shop: SyncLedger, key: str) -> Command[Any]:
        shop(quarantine(key, {"queue": "q", "reason": "r"}, 10))
        return unquarantine(key, ACTOR, after)

    return prepare


def holding(action: str) -> Callable[[SyncLedger, str], Command[Any]]:
    """Pauses or resumes an account."""

    def prepare(shop: SyncLedger, key: str) -> Command[Any]:
        if action == "resume":
            shop.redis.hset(account_key("acme", "default"), "breaker", "refused")
        return hold(("acme", "default"), action, "why", actor=ACTOR)

    return prepare


ACTS: dict[str, Callable[[SyncLedger, str], Command[Any]]] = {
    "job.cancel": cancelling,
    "job.redrive": redriving,
    **{f"review.{one}": resolving(one) for one in ("registered", "rejected", "resend")},
    "review.correct": correcting,
    "delivery.replay": delivery("dead"),
    "delivery.retry": delivery("pending"),
    "endpoint.enable": enabling,
    "account.trust": trusting,
    "endpoint.trust": trusting_an_endpoint,
    "account.pause": holding("pause"),
    "account.resume": holding("resume"),
    "quarantine.drop": leaving("dropped"),
    "quarantine.requeue": leaving("requeued"),
}


@pytest.mark.parametrize("what", ACTS)
def test_an_act_has_one_entry_also_if_its_answer_was_lost(shop: SyncLedger, what: str) -> None:
    """One act is one script: a repeat after a lost answer adds no entry."""
    log = AuditLog(shop)
    command = ACTS[what](shop, what.replace(".", "-"))
    before = log.last()
    shop(command)
    shop(command)
    [entry] = log.entries(AuditFilter(), before)
    assert (entry.what, entry.who, entry.role, entry.where, entry.why) == (
        what,
        "ann",
        "operator",
        "cli",
        "a test",
    )
    assert entry.on
    assert entry.before != entry.after or what == "account.resume"


def test_an_act_that_is_refused_has_no_entry(shop: SyncLedger) -> None:
    """It changed nothing: the job is no longer in review, or the message does not exist."""
    log, before = AuditLog(shop), AuditLog(shop).last()
    found = shop(look(queued(shop, "another")[0].id))
    assert found is not None
    shop(resolve(replace(found, id="nobody"), "resend", ACTOR, 3600, 86400, None))
    shop(unquarantine("nothing", ACTOR, "dropped"))
    shop(replay(["d:nobody:crm"], ACTOR))
    shop(enable("nobody", ACTOR))
    assert not list(log.entries(AuditFilter(), before))

"""A decision on a review counts for that review only, whenever the job changes."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from regworker.domain.actor import Actor
from regworker.domain.errors import NotInReview
from regworker.domain.event import EventType
from regworker.domain.outcome import Code, Fault
from regworker.event_builder import EventBuilder
from regworker.ledger import SyncLedger
from regworker.ledger.records import Claim, Record, Settled
from regworker.ledger.transitions import ClaimRules, Decision, claim, job_key, look, settle
from regworker.producer import Producer
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from tests.gateway.service import serves
from tests.integration.installation import KEYS
from tests.integration.jobs import ACTOR, open2b
from tests.integration.outbox import SETTLE
from worker.operations.admin_actions import AdminActions
from worker.operations.jobs import mark_of

CLAIM = ClaimRules("w", lease=60, settle_delay=0, max_attempts=3, probe=20)

OUTCOME = {"customer_key": "AAAABBBB"}

#: The decisions, each with what the person saw.
DECISIONS: dict[str, Callable[[AdminActions, str, str], Settled]] = {
    "registered": lambda admin, id_, seen: admin.registered(id_, OUTCOME, ACTOR, seen=seen),
    "rejected": lambda admin, id_, seen: admin.rejected(id_, "nobody", ACTOR, seen=seen),
    "resend": lambda admin, id_, seen: admin.resend(id_, ACTOR, seen=seen),
}


class Desk:
    """A job in review, and two people who decide."""

    def __init__(self, ledger: SyncLedger, url: str) -> None:
        self.ledger = ledger
        self.settings = Settings.load(redis_url=url, sealing_keys=KEYS)
        serves(ledger, self.settings)
        with Producer(self.settings) as producer:
            self.job_id = producer.enqueue(open2b()).job_id
        self.review("two customers have this address")

    @property
    def record(self) -> Record:
        """The job's record."""
        found = self.ledger(look(self.job_id))
        assert found is not None
        return found

    def review(self, why: str) -> None:
        """A worker cannot find out what came of the job."""
        self.ledger.redis.hset(job_key(self.job_id), "due_at", 0)
        held = self.ledger(claim(self.job_id, CLAIM, 0))
        assert isinstance(held, Claim)
        builder = EventBuilder(self.settings, Keyring.parse(KEYS))
        faults = (Fault(Code.PROVIDER_ERROR, "", why),)
        event = builder.failed(EventType.REVIEW, held.record, held.at, faults)
        self.ledger(settle(held, Decision("unresolvable", why), SETTLE, event))

    def another_review(self) -> None:
        """Bob has the job tried again, and it comes back with another reason."""
        with AdminActions(self.settings) as bob:
            bob.resend(self.job_id, Actor("bob"))
        self.review("the customer exists now, with an unknown key")

    def published(self) -> list[dict[str, Any]]:
        """The job's events."""
        entries: Any = self.ledger.redis.xrange("{reg}:results")
        return [json.loads(fields[b"event"]) for _, fields in entries]


@pytest.fixture
def desk(ledger: SyncLedger, redis_url: str) -> Desk:
    """One with an empty ledger."""
    return Desk(ledger, redis_url)


@pytest.mark.parametrize("decision", DECISIONS)
def test_what_was_seen_before_decides_nothing(desk: Desk, decision: str) -> None:
    """It does once it was seen."""
    seen = mark_of(desk.record)
    desk.another_review()
    with AdminActions(desk.settings) as ann:
        with pytest.raises(NotInReview, match="has changed since you looked at it; look again"):
            DECISIONS[decision](ann, desk.job_id, seen)
        assert desk.record.state == "review"
        assert len(desk.published()) == 2
        assert DECISIONS[decision](ann, desk.job_id, mark_of(desk.record)).state != "review"


@pytest.mark.parametrize("decision", DECISIONS)
def test_a_job_that_changes_during_a_decision_is_not_decided(
    desk: Desk, decision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the reading of its record and the script."""
    carry, before = SyncLedger.many, [desk.another_review]

    def many(self: SyncLedger, commands: Any, patience: float = 10.0) -> list[Any]:
        commands = list(commands)
        if commands[0].script == "resolve" and before:
            before.pop()()
        return carry(self, commands, patience)

    monkeypatch.setattr(SyncLedger, "many", many)
    with AdminActions(desk.settings) as ann:
        with pytest.raises(NotInReview, match="look again"):
            DECISIONS[decision](ann, desk.job_id, "")
        assert not before
        assert desk.record.state == "review"


def test_a_correction_names_the_published_event(desk: Desk) -> None:
    """Also of a decision that an earlier version has written between two reviews."""
    with AdminActions(desk.settings) as ann:
        ann.rejected(desk.job_id, "nobody", ACTOR)
        desk.ledger.redis.hset(job_key(desk.job_id), "reopened", 1)
        ann.correct(desk.job_id, OUTCOME, ACTOR)
    ids = [one["id"] for one in desk.published()]
    assert ids[1:] == [f"{desk.job_id}.rejected", f"{desk.job_id}.corrected"]
    assert desk.published()[2]["data"]["corrects"] == ids[1]

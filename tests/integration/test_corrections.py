"""A wrong decision on a review is corrected once, with an event that says what is right."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import NullPool, create_engine, select

from regworker import ResultConsumer
from regworker.domain.errors import NotCorrectable, WrongSeal
from regworker.domain.event import Event, EventType
from regworker.ledger.admin import correct
from regworker.ledger.records import Settled, Stale
from regworker.outbox import Outcomes, metadata, outcomes_table
from regworker.settings import Settings
from tests.integration.installation import KEYS, PATIENCE, Installation, installation
from tests.integration.jobs import ACTOR, email_of, skypostal
from tests.integration.test_on_call import refused, regworker
from worker.cli.local import stack
from worker.operations.admin_actions import AdminActions, _fault
from worker.operations.audit import AuditFilter, AuditLog

OUTCOME = {"customer_box_id": 5, "customer_key": "found by hand"}

SCHEMA = json.loads(
    (Path(__file__).parents[2] / "docs/contract/v1/event.schema.json").read_text("utf-8")
)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """One installation for all tests of this file."""
    with installation(tmp_path_factory.mktemp("corrections")) as running:
        yield running


@pytest.fixture(scope="module")
def admin(here: Installation) -> Iterator[AdminActions]:
    """An operator."""
    with AdminActions(
        Settings.load(
            redis_url=here.environment["REGWORKER_REDIS_URL"],
            sealing_keys=KEYS,
            broker_url=here.environment.get("REGWORKER_BROKER_URL"),
        )
    ) as found:
        yield found


def in_review(here: Installation, **job: Any) -> str:
    """Bring a job into review: its e-mail is taken, and its call was lost."""
    first = skypostal()
    here.run(first)
    made = skypostal(email_of(first), **job)
    made["registration"]["customer_password"] = "another"
    rule = {"kind": "drop_before_commit", "email": email_of(made)}
    here.sandbox.faults.configure({"script": [rule]})
    job_id = here.producer.enqueue(made).job_id
    here.wait_for(job_id, "review")
    return job_id


def published(here: Installation, job_id: str) -> list[dict[str, Any]]:
    """The corrections of a job on the results stream."""
    found = [json.loads(one) for one in here.events(job_id)]
    return [one for one in found if one["type"] == "registration.corrected"]


def acts(here: Installation, job_id: str) -> list[tuple[str, str, str, str]]:
    """The corrections of a job in the audit log."""
    found = AuditLog(here.ledger).entries(AuditFilter(what="review.correct", job=job_id))
    return [(one.who, one.why, one.before, one.after) for one in found]


def test_a_wrong_yes_is_corrected_once(here: Installation, admin: AdminActions) -> None:
    """The producer learns that there is no customer; the job's state stays; the audit log has
    it."""
    from jsonschema import Draft202012Validator  # takes two seconds

    job_id = in_review(here, reply_to=["results", "crm"])
    admin.registered(job_id, OUTCOME, ACTOR)
    right = ("--rejected", "it is another shop's", "--why", "ticket 4711", "--json")
    [said] = regworker(here, "review", "correct", job_id, *right)
    assert said == {"job_id": job_id, "corrected": "rejected"}
    [event] = published(here, job_id)
    Draft202012Validator(SCHEMA).validate(event)
    assert event["id"] == f"{job_id}.corrected"
    data = event["data"]
    assert data["corrects"] == f"{job_id}.registered"
    assert [one["message"] for one in data["errors"]] == ["it is another shop's"]
    assert "outcome" not in data
    status = here.producer.status(job_id)
    assert (status.state, status.corrected) == ("registered", "rejected")
    assert status.event == event
    assert data["finished_at"] < event["time"]
    hook = f"{job_id}.corrected"
    stack.until(
        lambda: any(one.event_id == hook and one.status < 300 for one in here.receiver.log),
        "its webhook",
        PATIENCE,
    )
    assert acts(here, job_id) == [("ann", "ticket 4711", "registered", "rejected")]
    assert "was already corrected" in refused(here, "review", "correct", job_id, *right)
    assert len(published(here, job_id)) == len(acts(here, job_id)) == 1


def test_of_two_who_correct_at_once_one_does(here: Installation, admin: AdminActions) -> None:
    """Both saw the job uncorrected: the ledger refuses the second one."""
    job_id = in_review(here)
    admin.registered(job_id, OUTCOME, ACTOR)
    event = admin._event_builder.corrected(
        admin._record(job_id), here.ledger.now(), _fault("it is another shop's")
    )
    first, second = (here.ledger(correct(job_id, "rejected", ACTOR, event)) for _ in range(2))
    assert isinstance(first, Settled)
    assert second == Stale("corrected")
    assert len(published(here, job_id)) == len(acts(here, job_id)) == 1


def test_a_wrong_no_is_corrected_with_an_outcome_that_the_provider_gives(
    here: Installation, admin: AdminActions
) -> None:
    """Any other outcome is refused with its field, and the job can still be corrected."""
    job_id = in_review(here)
    admin.rejected(job_id, "nobody is there", ACTOR)
    right = ("--registered", "--outcome", "-", "--why", "seen in their records")
    regworker(here, "review", "correct", job_id, *right, given='{"customer_key": "k"}', code=1)
    assert published(here, job_id) == []
    regworker(here, "review", "correct", job_id, *right, given=json.dumps(OUTCOME))
    [event] = published(here, job_id)
    assert event["data"]["outcome"] == OUTCOME
    assert event["data"]["corrects"] == f"{job_id}.rejected"
    assert here.producer.wait(job_id) == event


def test_a_correction_of_a_job_that_was_tried_again_has_the_same_id(
    here: Installation, admin: AdminActions
) -> None:
    """A job is corrected once, even if it was redriven."""
    job_id = in_review(here)
    admin.resend(job_id, ACTOR)
    stack.until(lambda: len(here.events(job_id)) == 2, "the second review", PATIENCE)
    admin.rejected(job_id, "no", ACTOR)
    assert admin.correct(job_id, OUTCOME, ACTOR) == "registered"
    [event] = published(here, job_id)
    assert event["id"] == f"{job_id}.corrected"
    assert event["data"]["corrects"] == f"{job_id}.rejected.2"


def test_only_what_a_person_decided_is_corrected(here: Installation, admin: AdminActions) -> None:
    """Neither a provider's answer nor an open job; a correction needs a person's name and a
    reason."""
    made = here.run(skypostal())["subject"]
    waits = in_review(here)
    for job_id in (made, waits):
        with pytest.raises(NotCorrectable, match="no person decided"):
            admin.correct(job_id, "no", ACTOR)
    no = ("review", "correct", waits, "--rejected", "no")
    assert "--why" in refused(here, *no, code=2)
    assert "no person's name" in refused(here, *no, "--why", "x", "--by", "root", code=2)
    assert "say one of" in refused(here, "review", "correct", waits, "--why", "x", code=2)


def test_an_outcome_goes_nowhere_but_where_its_producer_wanted_it(
    here: Installation, admin: AdminActions
) -> None:
    """Changing a finished job's record does not get anybody the customer's key through a
    correction."""
    job_id = in_review(here)
    admin.rejected(job_id, "no", ACTOR)
    here.ledger.redis.hset(f"{{reg}}:job:{job_id}", "reply_to", '["crm"]')
    with pytest.raises(WrongSeal):
        admin.correct(job_id, OUTCOME, ACTOR)
    assert published(here, job_id) == []


@pytest.mark.parametrize("moment", ["as it begins", "as it is done"])
def test_a_correction_that_is_killed_is_made_once(
    here: Installation, admin: AdminActions, moment: str
) -> None:
    """kill -9 before or after the ledger has it; repeating the command adds nothing."""
    job_id = in_review(here)
    admin.rejected(job_id, "no", ACTOR)
    command = [sys.executable, "-m", "worker.cli", "review", "correct", job_id, "--registered"]
    command += ["--outcome", "-", "--why", "x", "--by", "ann"]
    last = AuditLog(here.ledger).last()
    process = subprocess.Popen(
        command, env={**os.environ, **here.environment}, stdin=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    if moment == "as it is done":
        process.stdin.write(json.dumps(OUTCOME))
        process.stdin.close()
        stack.until(lambda: AuditLog(here.ledger).last() != last, "its entry", PATIENCE)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdin.close()
    before = len(published(here, job_id))
    assert before == (moment == "as it is done")
    again = subprocess.run(
        command, env={**os.environ, **here.environment}, input=json.dumps(OUTCOME),
        capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert again.returncode == before, again.stderr
    assert len(published(here, job_id)) == len(acts(here, job_id)) == 1


def test_readers_go_on(here: Installation, admin: AdminActions, tmp_path: Path) -> None:
    """Consumers that know the type read the correction; an older one skips it and continues."""
    job_id = in_review(here)
    admin.registered(job_id, OUTCOME, ACTOR)
    admin.correct(job_id, "somebody else's", ACTOR)
    after = here.run(skypostal())["subject"]
    settings = Settings.load(
        redis_url=here.environment["REGWORKER_REDIS_URL"],
        sealing_keys=KEYS,
        broker_url=here.environment.get("REGWORKER_BROKER_URL"),
    )
    engine = create_engine(f"sqlite:///{tmp_path}/host.db", poolclass=NullPool)
    metadata.create_all(engine)
    seen: list[Event] = []
    with ResultConsumer("host", settings=settings) as consumer:
        outcomes = Outcomes(engine, consumer, lambda _, event: seen.append(event))
        while not any(one.subject == after for one in seen):
            outcomes.turn()
    [event] = [one for one in seen if one.type is EventType.CORRECTED and one.subject == job_id]
    assert event.data.errors
    with engine.connect() as connection:
        rows = connection.execute(select(outcomes_table).where(outcomes_table.c.job_id == job_id))
        assert [one.type for one in rows][-1] == "registration.corrected"

    # A client of the previous version: its models know five types.
    program = (
        "import sys\n"
        "from enum import StrEnum\n"
        "from regworker.domain import event as module\n"
        "types = StrEnum('EventType', {t.name: t.value for t in module.EventType"
        " if t.name != 'CORRECTED'})\n"
        "for model in (module.Event,):\n"
        "    model.model_fields['type'].annotation = types\n"
        "    model.model_rebuild(force=True)\n"
        "from regworker.results import ResultConsumer, UnreadableEvent\n"
        "with ResultConsumer('older') as consumer:\n"
        "    for result in consumer:\n"
        "        try:\n"
        "            print(result.event.type, result.event.subject, flush=True)\n"
        "        except UnreadableEvent:\n"
        "            print('left out', flush=True)\n"
        "        consumer.ack(result)\n"
        f"        if {after!r}.encode() in result.raw: sys.exit()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **here.environment},
        capture_output=True, text=True, timeout=PATIENCE, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert "left out" in lines
    assert not [one for one in lines if "corrected" in one]
    assert lines[-1] == f"registration.registered {after}"

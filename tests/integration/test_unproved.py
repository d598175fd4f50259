"""Refusals that look like "no customer" and prove nothing: the ledger keeps the doubt.

A login that is refused, to a store that cannot be searched; and a refusal by something on the way
to the provider.
"""

import json
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from regworker.domain.errors import JobNotCancellable
from regworker.domain.event import EventType
from regworker.domain.outcome import Absent, Unknown
from regworker.domain.states import FINAL, PARKED, State
from regworker.ledger import SyncLedger
from regworker.ledger.admin import hold, resolve
from regworker.ledger.records import TAKEN, Claim, Record, Settled, Spent, Stale
from regworker.ledger.transitions import abandon, account_key, cancel, claim, job_key, look
from tests.integration.installation import PATIENCE, Installation, installation
from tests.integration.jobs import ACTOR, email_of, open2b, skypostal
from tests.integration.ledger_steps import (
    ANNOUNCER,
    DAY,
    IMPATIENT,
    RULES,
    alarms,
    claimed,
    concluded,
    record,
)
from tests.serving import serving
from worker.cli.local import stack
from worker.execution.decision import asked

# -- the record ------------------------------------------------------------------------------------

#: A job without time, and one without attempts.
SPENT = {
    "deadline": ({"deadline_at": 1}, RULES),
    "attempts": ({}, replace(RULES, max_attempts=1)),
}


def look_up(ledger: SyncLedger, verdict: str) -> Any:
    """A look-up after the settle delay, with this verdict."""
    held = claimed(ledger)
    assert held.asking
    return concluded(ledger, held, verdict)


@pytest.fixture
def unproved(shop: SyncLedger, accepted: Record) -> Record:
    """A job that was sent once, and that only the login has denied since."""
    concluded(shop, claimed(shop), "unknown", IMPATIENT)
    assert look_up(shop, "unproved").state is State.QUEUED
    return record(shop)


@pytest.mark.parametrize("why", SPENT)
def test_a_job_that_only_the_login_denied_is_not_abandoned_but_asked_about(
    shop: SyncLedger, unproved: Record, why: str
) -> None:
    """An abandoned job has no customer, and that is not proved."""
    changes, rules = SPENT[why]
    for name, value in changes.items():
        shop.redis.hset(job_key(unproved.id), name, value)
    event = ANNOUNCER.failed(EventType.ABANDONED, unproved, 0, ())
    most = rules.max_attempts
    assert shop(abandon(unproved, why, most, DAY, event)) == Stale("queued")
    held = shop(claim(unproved.id, rules, 0.5))
    assert isinstance(held, Claim)
    assert held.asking
    assert (held.record.state, held.record.unproved) == (State.UNKNOWN, 1)
    concluded(shop, held, "unresolvable")
    assert record(shop).state is State.REVIEW


@pytest.mark.parametrize("why", SPENT)
def test_proved_absence_ends_the_doubt(shop: SyncLedger, unproved: Record, why: str) -> None:
    """A search that finds nobody lets the job be abandoned."""
    changes, rules = SPENT[why]
    concluded(shop, claimed(shop), "unknown", IMPATIENT)
    assert look_up(shop, "absent").state is State.QUEUED
    for name, value in changes.items():
        shop.redis.hset(job_key(unproved.id), name, value)
    assert isinstance(shop(claim(unproved.id, rules, 0.5)), Spent)
    assert record(shop).unproved == 0


def test_a_job_that_only_the_login_denied_is_not_cancelled(
    shop: SyncLedger, unproved: Record
) -> None:
    """A cancelled job has no customer, and that is not proved."""
    event = ANNOUNCER.failed(EventType.CANCELLED, unproved, 0, ())
    assert shop(cancel(unproved, DAY, event)) == Stale("unknown")
    assert record(shop) == unproved


@pytest.mark.parametrize("verdict", ["retry", "unknown"])
def test_a_repeat_without_a_result_keeps_the_doubt(
    shop: SyncLedger, unproved: Record, verdict: str
) -> None:
    """A provider that asks us to wait says nothing about the customer."""
    held = claimed(shop)
    assert not held.asking
    concluded(shop, held, verdict)
    assert record(shop).unproved == 1


@pytest.fixture
def unsaid(shop: SyncLedger, unproved: Record) -> Record:
    """The same, as version 0.1.0 wrote it: the record does not say what the absence rests on."""
    shop.redis.hdel(job_key(unproved.id), "unproved")
    return record(shop)


def test_an_absence_that_an_older_version_recorded_may_rest_on_the_login(
    shop: SyncLedger, unsaid: Record
) -> None:
    """Such a job is not cancelled, and asked about instead of abandoned."""
    event = ANNOUNCER.failed(EventType.CANCELLED, unsaid, 0, ())
    assert shop(cancel(unsaid, DAY, event)) == Stale("unknown")
    shop.redis.hset(job_key(unsaid.id), "deadline_at", 1)
    held = shop(claim(unsaid.id, RULES, 0.5))
    assert isinstance(held, Claim)
    assert held.asking
    concluded(shop, held, "absent")
    assert isinstance(shop(claim(unsaid.id, RULES, 0.5)), Spent)


def test_a_call_after_it_knows_the_doubt(shop: SyncLedger, unsaid: Record) -> None:
    """Its worker believes no refusal without asking."""
    assert claimed(shop).record.unproved == 1


def test_an_end_keeps_no_doubt(shop: SyncLedger, unproved: Record) -> None:
    """The record of a registered job is as small as any."""
    concluded(shop, claimed(shop), "registered")
    assert not shop.redis.hexists(job_key(unproved.id), "unproved")


BY_STATUS = "refused by status"


def test_a_refusal_that_proves_nothing_stops_the_account_and_spends_no_attempt(
    shop: SyncLedger, accepted: Record
) -> None:
    """The job is unknown, and waits for the operator like any other."""
    concluded(shop, claimed(shop), "unknown", health=BY_STATUS, spends=False)
    found = record(shop)
    assert (found.state, found.attempts, found.unknowns) == (State.UNKNOWN, 0, 1)
    assert shop.redis.hget(account_key("acme", "default"), "breaker") == b"refused"
    assert alarms(shop) == [found.id]


def test_look_ups_before_the_deadline_do_not_count_towards_a_review(
    shop: SyncLedger, accepted: Record
) -> None:
    """Only what is unanswered after the deadline lets a person be asked."""
    concluded(shop, claimed(shop), "unknown", IMPATIENT)
    for _ in range(7):
        look_up(shop, "unknown")
    assert claimed(shop, rules=RULES).record.asks == 7
    key = job_key(accepted.id)
    shop.redis.hset(key, mapping={"claimed_at": 2, "deadline_at": 2, "settle_until": 1})
    shop.redis.hset(key, mapping={"lease_until": 0, "token": ""})
    for asks in range(3):
        held = claimed(shop)
        assert held.record.asks == asks
        concluded(shop, held, "unknown")


def test_look_ups_are_counted_anew_after_each_call(shop: SyncLedger, accepted: Record) -> None:
    """Those after the first call say nothing about the second."""
    concluded(shop, claimed(shop), "unknown", IMPATIENT)
    for _ in range(2):
        look_up(shop, "unknown")
    look_up(shop, "absent")
    concluded(shop, claimed(shop), "unknown", IMPATIENT)
    assert record(shop).asks == 0


@pytest.fixture
def taken(shop: SyncLedger, accepted: Record) -> Record:
    """A job that was refused as a duplicate after an unknown attempt, and then found absent by a
    worker that does not know what that means."""
    concluded(shop, claimed(shop), "unknown", IMPATIENT)
    look_up(shop, "absent")
    concluded(shop, claimed(shop), "taken", IMPATIENT)
    assert record(shop).state is State.UNKNOWN
    return record(shop)


def test_a_duplicate_is_not_forgotten_when_a_look_up_finds_nobody(
    shop: SyncLedger, taken: Record
) -> None:
    """The job is neither cancelled nor abandoned, whoever asks."""
    for verdict in ("unknown", "absent", "unproved"):
        look_up(shop, verdict)
        assert record(shop).unproved == TAKEN
        held = shop(claim(taken.id, SPENT["attempts"][1], 0.5))
        assert isinstance(held, Claim)
        assert held.asking, verdict
        concluded(shop, held, "unknown")


def reviewed_and_sent_again(shop: SyncLedger) -> Claim:
    """The question about a job that a person wants to be sent again."""
    assert shop(resolve(record(shop), "resend", ACTOR, DAY, DAY, None)) == Settled(State.UNKNOWN, 0)
    held = claimed(shop)
    assert held.asking
    return held


def test_a_person_ends_the_doubt(shop: SyncLedger, taken: Record) -> None:
    """The other customer was deleted: the job may be sent again, if the provider agrees."""
    look_up(shop, "unresolvable")
    held = reviewed_and_sent_again(shop)
    assert (held.record.unproved, held.record.refusals) == (0, 0)
    assert asked(held, Absent("nobody"), 3) == Absent("nobody")


def test_a_job_that_is_sent_again_after_a_review_may_have_been_carried_out(
    shop: SyncLedger, accepted: Record
) -> None:
    """The outcome of its first call could not be written, for example."""
    concluded(shop, claimed(shop), "unresolvable")
    assert reviewed_and_sent_again(shop).record.unknowns == 1


def test_a_job_that_waited_long_for_a_person_is_asked_about_as_patiently_as_any(
    shop: SyncLedger, accepted: Record
) -> None:
    """A week without an answer counts from the decision on."""
    concluded(shop, claimed(shop), "unknown", IMPATIENT)
    look_up(shop, "unresolvable")
    shop.redis.hset(job_key(accepted.id), "settle_until", 1)
    held = reviewed_and_sent_again(shop)
    held = replace(held, record=replace(held.record, asks=99))
    assert asked(held, Unknown("away"), 3) == Unknown("away")


def test_calls_that_were_refused_by_status_are_counted(shop: SyncLedger, accepted: Record) -> None:
    """Until the job's end."""
    concluded(shop, claimed(shop), "unknown", IMPATIENT, health=BY_STATUS, spends=False)
    shop(hold(("acme", "default"), "resume", ""))
    held = claimed(shop)
    assert held.record.refusals == 1
    concluded(shop, held, "registered")
    assert not shop.redis.hexists(job_key(accepted.id), "refusals")


def test_calls_that_were_refused_and_had_no_effect_are_counted(
    shop: SyncLedger, accepted: Record
) -> None:
    """A job that may adopt a customer is called again, and must not hold its account again."""
    concluded(shop, claimed(shop), "retry", health=BY_STATUS, spends=False)
    assert (record(shop).state, record(shop).refusals) == (State.QUEUED, 1)


def test_a_refusal_in_the_providers_own_words_is_not_counted(
    shop: SyncLedger, accepted: Record
) -> None:
    """It is the account's. If its job is refused by status later, that may be the account's,
    too."""
    concluded(shop, claimed(shop), "retry", health="refused", spends=False)
    assert shop.redis.hget(account_key("acme", "default"), "breaker") == b"refused"
    assert record(shop).refusals == 0


@pytest.mark.parametrize("health", ["", "ok"])
def test_only_refusals_are_counted_as_refusals(
    shop: SyncLedger, accepted: Record, health: str
) -> None:
    """Otherwise the first one would not hold the account."""
    concluded(shop, claimed(shop), "unknown", IMPATIENT, health=health)
    concluded(shop, claimed(shop), "absent", health=health)
    concluded(shop, claimed(shop), "retry", health=health)
    assert record(shop).refusals == 0


@pytest.mark.parametrize("made", [False, True])
def test_a_look_up_that_this_worker_could_not_make_does_not_count(
    shop: SyncLedger, accepted: Record, made: bool
) -> None:
    """A missing account or key is no silence of the provider's; a refusal is."""
    concluded(shop, claimed(shop), "unknown", IMPATIENT)
    concluded(shop, claimed(shop), "retry", spends=made)
    assert record(shop).asks == int(made)


# -- with workers ----------------------------------------------------------------------------------


@dataclass
class Front:
    """Something in front of the store that passes each request on, and may replace its answer."""

    url: str = ""
    store: str = ""
    replaces: int = 0
    """The status with which it answers the next sign-up, after the store has carried it out."""
    forbids: str = ""
    """A text with which it lets no request through."""
    calls: tuple[str, ...] = ()
    """Of these calls."""
    hides: bool = False
    """The search finds nobody, and the login after a duplicate gets no answer."""
    lengthens: bool = False
    """The next key of a customer is longer than an outcome may be."""
    fails: bool = False
    """The next registration at SkyPostal is carried out, and then answered with an error."""
    _away: bool = False

    def answer(self, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """The store's answer, or its own."""
        if self.forbids and path.endswith(self.calls) and self.forbids.encode() in body:
            return 403, {}, b"<html>"
        if self._away and path.endswith("login"):
            self._away = False
            return 502, {}, b"<html>"
        if self.hides and path.endswith("find"):
            return 200, {}, b'{"status": "ok", "customers": []}'
        kind = {"content-type": "application/json"}
        request = urllib.request.Request(self.store + path, body, kind)
        with urllib.request.urlopen(request) as answer:
            found = answer.status, dict(answer.headers.items()), answer.read()
        self._away = self.hides and b"AlreadyExists" in found[2]
        if self.replaces and path.endswith("sign-up"):
            status, self.replaces = self.replaces, 0
            return status, {"location": "/account"} if status == 302 else {}, b"<html>"
        if self.lengthens and path.endswith("sign-up"):
            self.lengthens = False
            return found[0], {"X-Customer-Key": "k" * 20_000}, found[2]
        if self.fails and path.endswith("customer-registration"):
            self.fails = False
            error = {"error_description": "Timeout expired.", "system_error": False}
            return 200, {}, json.dumps([{"_verify": False, "error": error}]).encode()
        return found


@pytest.fixture(scope="module")
def front() -> Iterator[Front]:
    """The front."""
    found = Front()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status, headers, body = found.answer(self.path, body)
            self.send_response(status)
            for name in {"Location", "X-Customer-Key"} & {one.title() for one in headers}:
                value = next(headers[one] for one in headers if one.title() == name)
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with serving(Handler) as port:
        found.url = f"http://127.0.0.1:{port}"
        yield found


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, front: Front) -> Iterator[Installation]:
    """A store without a secret key, one behind the front, and one with a key."""
    folder = tmp_path_factory.mktemp("unproved")
    with installation(folder, workers=0, max_attempts=3) as running:
        front.store = running.server.url
        others: dict[str, Any] = {
            "accounts__open2b__front__base_url": front.url,
            "accounts__open2b__searched__base_url": front.url,
            "accounts__open2b__searched__secret_key": "secret",
            "accounts__skypostal__front__base_url": front.url,
            "accounts__skypostal__front__user_code": 1,
            "accounts__skypostal__front__app_key": "key",
            "accounts__skypostal__front__copa_id": 1,
            "accounts__open2b__keyed__base_url": running.server.url,
            "accounts__open2b__keyed__secret_key": "a-key",
        }
        stack.wait_for_worker(running.ledger, running.start_worker(**others))
        yield running


@pytest.fixture
def here(installed: Installation, front: Front) -> Iterator[Installation]:
    """The installation; afterwards the providers are as before."""
    before = installed.sandbox.settings()
    yield installed
    front.forbids, front.hides = "", False
    installed.sandbox.configure(before)
    installed.sandbox.faults.configure({"script": []})


@pytest.fixture
def approving(here: Installation) -> Installation:
    """The store's customers cannot log in before somebody approves them."""
    here.sandbox.configure({"open2b": {"customers_disabled_until_approved": True}})
    return here


SIGN_UP = "storefront.sign-up"
LOST = {"kind": "commit_then_drop", "call": SIGN_UP}


def wait(seconds: int = 0) -> dict[str, Any]:
    """The store asks to wait."""
    after = {"retry_after": str(seconds)} if seconds else {}
    return {"kind": "too_many", "call": SIGN_UP, **after}


def fail(here: Installation, job: dict[str, Any], *faults: dict[str, Any]) -> None:
    """Make the provider fail this job's calls in this way, one after another."""
    script = [{"email": email_of(job), **fault} for fault in faults]
    here.sandbox.faults.configure({"script": script})


def reviewed(here: Installation, job: dict[str, Any], job_id: str = "") -> str:
    """Wait for the review of a job that has made a customer; return why."""
    job_id = job_id or here.producer.enqueue(job).job_id
    stack.until(lambda: here.producer.status(job_id).state in FINAL | PARKED, "its end", PATIENCE)
    status = here.producer.status(job_id)
    assert status.state is State.REVIEW, status.timeline
    assert here.made(email_of(job)) == 1
    return status.why


def past(here: Installation, job_id: str, text: str) -> bool:
    """Whether a job's timeline has a step with this text."""
    return any(text in step for _, step in here.producer.status(job_id).timeline)


def in_a_moment(seconds: float) -> str:
    """A deadline."""
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


def test_a_deadline_during_the_question_abandons_no_customer(approving: Installation) -> None:
    """The answer was lost, and the login is refused: the customer waits for approval."""
    job = open2b(deadline=in_a_moment(1.5))
    fail(approving, job, LOST)
    assert "the customer may exist" in reviewed(approving, job)


def test_a_deadline_before_the_repeat_abandons_no_customer(approving: Installation) -> None:
    """The job was to be sent again, and the store asked to wait beyond the deadline."""
    job = open2b(deadline=in_a_moment(6))
    fail(approving, job, LOST, wait(60))
    assert "the customer may exist" in reviewed(approving, job)


def test_the_last_attempt_abandons_no_customer(approving: Installation) -> None:
    """The answer to the last attempt was lost."""
    job = open2b()
    fail(approving, job, wait(), wait(), LOST)
    assert "the customer may exist" in reviewed(approving, job)


def test_a_repeat_that_is_refused_for_another_reason_rejects_no_customer(
    approving: Installation,
) -> None:
    """The first sign-up has used up the verification code."""
    approving.sandbox.configure({"open2b": {"verification_required": True}})
    job = open2b()
    job["registration"]["verificationCode"] = "AT67N3FG"
    fail(approving, job, LOST)
    receipt = approving.producer.enqueue(job)
    stack.until(lambda: approving.made(email_of(job)) == 1, "the customer is made", PATIENCE)
    approving.sandbox.configure({"open2b": {"verification_codes": ["OTHER123"]}})
    why = reviewed(approving, job, receipt.job_id)
    assert "rejected when it was sent again" in why


def test_a_search_that_finds_nobody_lets_the_repeat_be_rejected(here: Installation) -> None:
    """After an upgrade: the older version did not record that the first search had found nobody."""
    here.sandbox.configure({"open2b": {"verification_required": True}})
    job = open2b(account="keyed")
    job["registration"]["verificationCode"] = "AT67N3FG"
    job_id = waiting(here, job, 5, {"kind": "drop_before_commit", "call": SIGN_UP})
    here.ledger.redis.hdel(job_key(job_id), "unproved")
    here.sandbox.configure({"open2b": {"verification_codes": ["OTHER123"]}})
    assert here.producer.wait(job_id, PATIENCE)["type"] == "registration.rejected"
    assert here.made(email_of(job)) == 0


def waiting(
    here: Installation, job: dict[str, Any], seconds: int, lost: Mapping[str, str] = LOST
) -> str:
    """Enqueue a job whose answer is lost, and whose repeat is asked to wait; return its id."""
    fail(here, job, {**lost}, wait(seconds))
    job_id = here.producer.enqueue(job).job_id

    def waits() -> bool:
        status = here.producer.status(job_id)
        return status.state is State.QUEUED and "429" in status.why

    stack.until(waits, "the repeat waits", PATIENCE)
    return job_id


def test_a_repeat_that_waits_cannot_be_cancelled(approving: Installation) -> None:
    """Its producer would take the customer for cancelled."""
    job = open2b()
    job_id = waiting(approving, job, 4)
    with pytest.raises(JobNotCancellable, match="a request may have been sent already"):
        approving.producer.cancel(job_id)
    assert "refused as a duplicate" in reviewed(approving, job, job_id)


def resume(here: Installation, account: str) -> None:
    """Resume an account."""
    here.ledger(hold(("open2b", account), "resume", ""))


def test_a_duplicate_whose_login_is_forbidden_stays_in_doubt(approving: Installation) -> None:
    """The store has refused to sign the address up again, and then refuses our questions."""
    job = open2b()
    job_id = waiting(approving, job, 4)
    forbidden = {"kind": "forbidden", "call": "storefront.login", "email": email_of(job)}
    approving.sandbox.faults.configure({"script": [forbidden]})
    stack.until(lambda: past(approving, job_id, "HTTP 403"), "the login is refused", PATIENCE)
    status = approving.producer.status(job_id)
    assert status.state is State.UNKNOWN
    assert sum("calling by" in step for _, step in status.timeline) == 3, "the repeat came first"
    approving.sandbox.configure({"open2b": {"customers_disabled_until_approved": False}})
    resume(approving, "default")
    event = approving.producer.wait(job_id, PATIENCE)
    assert (event["type"], event["data"]["recovered"]) == ("registration.registered", True)


@pytest.mark.parametrize("status", [302, 403])
def test_a_refusal_after_the_request_was_carried_out_makes_no_second_customer(
    here: Installation, front: Front, status: int
) -> None:
    """The worker asks when the operator has resumed the account; it does not send again."""
    here.sandbox.configure({"open2b": {"unique": False}})
    job = open2b(account="front")
    front.replaces = status
    job_id = here.producer.enqueue(job).job_id
    stack.until(lambda: past(here, job_id, f"HTTP {status}"), "the account is held", PATIENCE)
    resume(here, "front")
    event = here.producer.wait(job_id, PATIENCE)
    assert (event["type"], event["data"]["recovered"]) == ("registration.registered", True)
    assert here.made(email_of(job)) == 1


def refusals(here: Installation, job_id: str) -> int:
    """How often a job was refused by its status."""
    return sum("HTTP 403" in step for _, step in here.producer.status(job_id).timeline)


@pytest.mark.parametrize("forbidden", [("sign-up",), ("sign-up", "login")])
def test_a_job_that_alone_is_refused_closes_its_account_once(
    here: Installation, front: Front, forbidden: tuple[str, ...]
) -> None:
    """A firewall that dislikes one name or password must not hold all others after each resume."""
    job, other = open2b(account="front", deadline=in_a_moment(15)), open2b(account="front")
    front.forbids, front.calls = email_of(job), forbidden
    job_id = here.producer.enqueue(job).job_id
    stack.until(lambda: past(here, job_id, "HTTP 403"), "the account is held", PATIENCE)
    resume(here, "front")
    stack.until(lambda: refusals(here, job_id) > 1, "it is refused again", PATIENCE)
    assert here.run(other)["type"] == "registration.registered"
    stack.until(lambda: here.producer.status(job_id).state in FINAL | PARKED, "its end", PATIENCE)
    assert here.producer.status(job_id).state is State.REVIEW
    assert here.made(email_of(job)) == 0


def test_a_job_that_may_adopt_and_whose_login_alone_is_refused_closes_its_account_once(
    here: Installation, front: Front
) -> None:
    """It is refused as a duplicate each time, and its password must not hold all others."""
    known, other = open2b(account="front"), open2b(account="front")
    assert here.run(known)["type"] == "registration.registered"
    job = open2b(email_of(known), account="front", if_exists="adopt")
    front.forbids, front.calls = email_of(job), ("login",)
    job_id = here.producer.enqueue(job).job_id
    stack.until(lambda: past(here, job_id, "HTTP 403"), "the account is held", PATIENCE)
    resume(here, "front")
    stack.until(lambda: refusals(here, job_id) > 1, "it is refused again", PATIENCE)
    assert here.run(other)["type"] == "registration.registered"
    event = here.producer.wait(job_id, PATIENCE)
    assert event["type"] == "registration.abandoned"
    assert "refused as a duplicate" in event["data"]["errors"][0]["message"]


def test_a_duplicate_whose_look_up_is_lost_abandons_no_customer(
    approving: Installation, front: Front
) -> None:
    """It was the last attempt, and the search finds nobody afterwards."""
    front.hides = True
    job = open2b(account="searched")
    fail(approving, job, wait(), LOST)
    assert "refused as a duplicate" in reviewed(approving, job)


def test_a_review_of_an_outcome_that_cannot_be_written_does_not_end_as_a_duplicate(
    approving: Installation, front: Front
) -> None:
    """A person has the job sent again; the login is refused, since the customer waits for
    approval."""
    front.lengthens = True
    job = open2b(account="front")
    job_id = approving.producer.enqueue(job).job_id
    assert "cannot be written" in reviewed(approving, job, job_id)
    found = approving.ledger(look(job_id))
    assert found is not None
    approving.ledger(resolve(found, "resend", ACTOR, DAY, DAY, None))
    assert "refused as a duplicate" in reviewed(approving, job, job_id)


def test_a_registration_that_skypostal_carried_out_before_it_failed_is_found(
    here: Installation, front: Front
) -> None:
    """The answer is a refusal by its form, and a failure of the service by its text."""
    front.fails = True
    event = here.run(skypostal(account="front"))
    assert (event["type"], event["data"]["recovered"]) == ("registration.registered", True)


@pytest.mark.parametrize(
    ("make", "password", "login"),
    [
        (open2b, ("customer", "password"), "storefront.login"),
        (skypostal, ("customer_password",), "customer-login"),
    ],
)
def test_a_duplicate_of_a_first_attempt_is_rejected_though_the_login_was_lost_once(
    here: Installation, make: Any, password: tuple[str, ...], login: str
) -> None:
    """Nothing was created, so nobody has to find out whose the customer is."""
    first = make()
    here.run(first)
    job = make(email_of(first), if_exists="adopt")
    at = job["registration"]
    for name in password[:-1]:
        at = at[name]
    at[password[-1]] = "another-1"
    fail(here, job, {"kind": "drop_before_commit", "call": login})
    event = here.run(job)
    assert event["type"] == "registration.rejected"
    assert [one["code"] for one in event["data"]["errors"]] == ["already_exists"]

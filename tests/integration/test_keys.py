"""Change to a new sealing key, while everything that can be sealed is in use."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from regworker.domain.errors import IdempotencyConflict, SealingError
from regworker.ledger import SyncLedger
from regworker.ledger.admin import quarantined, reseal
from regworker.ledger.admin import seals as sealed_under
from regworker.ledger.transitions import ALARMS, delivery_key, job_key
from regworker.producer import Producer
from regworker.sealing import seals
from regworker.sealing.keyring import Keyring, kid_of
from regworker.settings import Settings
from tests.integration.brokers import Message
from tests.integration.installation import KEYS, PATIENCE, SECRET, Installation, installation
from tests.integration.jobs import ACTOR, email_of, open2b, skypostal
from tests.integration.ledger_steps import settings_of_a_host
from worker.broker.wakeups import QUEUES
from worker.cli.local import stack
from worker.intake.quarantine import Quarantine
from worker.monitoring import doctor
from worker.operations.admin_actions import AdminActions
from worker.operations.key_rotation import KINDS, Rotation

NEW = Keyring.new("new")
BOTH = f"{NEW},{KEYS}"

#: What `rotate` reseals; it cannot reseal entries of streams, and the content of repeats is gone.
MOVED = set(KINDS) - {"streams", "repeats"}

#: A second endpoint, which will be disabled.
ERP = {
    "endpoints__erp__kind": "webhook",
    "endpoints__erp__secrets": SECRET,
    "endpoints__erp__allow_http": True,
    "endpoints__erp__allow_private": True,
    # Nothing listens here; each installation replaces it with the receiver's address.
    "endpoints__erp__url": "http://127.0.0.1:1/",
}


def regworker(
    here: Installation, keys: str, *arguments: str, code: int = 0
) -> list[dict[str, Any]]:
    """Run a command with a keyring and `--json`; return the objects that it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "worker.cli", *arguments, "--json"],
        env={**os.environ, **here.environment, "REGWORKER_SEALING_KEYS": keys},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    for entry in (KEYS, NEW):
        assert entry.partition(":")[2] not in done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def kept(here: Installation, keys: str) -> dict[str, dict[str, Any]]:
    """The output of `regworker keys list`, by key name."""
    return {row["kid"]: row for row in regworker(here, keys, "keys", "list")}


@contextmanager
def producing(here: Installation, keys: str) -> Iterator[Producer]:
    """A producer with a keyring."""
    changed = {"sealing_keys": SecretStr(keys)}
    with Producer(here.producer.settings.model_copy(update=changed)) as producer:
        yield producer


@contextmanager
def flowing(producer: Producer) -> Iterator[list[str]]:
    """Enqueue jobs continuously; their ids."""
    ids: list[str] = []
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(0.05):
            ids.append(producer.enqueue(skypostal()).job_id)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield ids
    finally:
        stop.set()
        thread.join()


def change_worker(here: Installation, keys: str) -> None:
    """Start a worker with a keyring; then stop the previous one."""
    here.start_worker(sealing_keys=keys)
    here.wait_for_line("ready.", len(here.workers) - 1)
    here.workers[-2].terminate()
    assert here.workers[-2].wait(PATIENCE) == 0


@pytest.fixture
def begun(tmp_path: Path) -> Iterator[tuple[Installation, dict[str, str]]]:
    """An installation with one of everything sealed under the old key; returns the ids."""
    with installation(tmp_path, workers=0, broker_url="", **ERP) as here:
        here.environment["REGWORKER_ENDPOINTS__ERP__URL"] = f"{here.server.url}/hooks/erp"
        stack.wait_for_worker(here.ledger, here.start_worker())
        jobs = {"finished": here.run(skypostal(idempotency_key="finished"))["subject"]}

        known = skypostal()
        here.run(known)
        doubtful = skypostal(email_of(known))
        doubtful["registration"]["customer_password"] = "another"
        rule = {"kind": "drop_before_commit", "email": email_of(doubtful)}
        here.sandbox.faults.configure({"script": [rule]})
        jobs["review"] = here.producer.enqueue(doubtful).job_id
        here.wait_for(jobs["review"], "review")

        here.receiver.behave({"script": [{"status": 410}]})
        jobs["dead"] = here.run(skypostal(reply_to=["erp"]))["subject"]
        here.wait_for_line("endpoint disabled")
        here.receiver.behave({"rate": 1.0})
        jobs["pending"] = here.run(open2b(reply_to=["crm"]))["subject"]
        here.wait_for_line('"endpoint": "crm"')

        malformed = Message(b"malformed")
        here.ledger.redis.lpush(QUEUES["live"], json.dumps(malformed.envelope()))
        stack.until(lambda: here.ledger(quarantined(9))[0] == 1, "the quarantine", PATIENCE)
        [entry] = here.ledger(quarantined(9))[2]
        jobs["quarantine"] = entry.id

        with operating(here) as operator:
            operator.pause("open2b", "default", ACTOR)
        jobs["waiting"] = here.producer.enqueue(WAITING).job_id
        stack.until(
            lambda: here.producer.status(jobs["waiting"]).why == "paused", "the wait", PATIENCE
        )
        yield here, jobs


WAITING = open2b(idempotency_key="waiting", metadata={"order": "A-17", "sum": 1.5})


@contextmanager
def operating(here: Installation, keys: str = KEYS) -> Iterator[AdminActions]:
    """An operator with a keyring."""
    changed = {"sealing_keys": SecretStr(keys)}
    with AdminActions(here.producer.settings.model_copy(update=changed)) as operator:
        yield operator


def test_all_that_is_kept_is_put_under_a_new_key_while_jobs_flow(
    begun: tuple[Installation, dict[str, str]],
) -> None:
    """Jobs, reviews, events, deliveries, quarantine; then the old key is removed, and everything
    opens."""
    here, jobs = begun

    # No worker has the new key yet: nothing may be sealed under it.
    assert kept(here, NEW)["test"]["use"] == "not set"
    assert regworker(here, NEW, "keys", "rotate", code=1) == []

    # The new key is first everywhere, the old one second; jobs arrive all the time.
    change_worker(here, BOTH)
    before = kept(here, BOTH)["test"]
    assert all(before[name] for name in MOVED)
    assert before["advice"] == "after `regworker keys rotate`"
    [dry] = regworker(here, BOTH, "keys", "rotate", "--dry-run")
    assert (dry["resealed"], dry["left"]) == (0, sum(before[name] for name in MOVED))
    with producing(here, BOTH) as producer, flowing(producer) as ids:
        [done] = regworker(here, BOTH, "keys", "rotate")
        assert (done["left"], done["unopened"]) == (0, {})
        assert done["resealed"] >= dry["left"]
    with producing(here, BOTH) as producer:
        for job_id in ids:
            assert producer.wait(job_id, PATIENCE)["type"] == "registration.registered"
        assert producer.enqueue(WAITING).repeat

    # The old key still recognizes repeats of finished jobs, until they expire.
    after = kept(here, BOTH)["test"]
    assert {name for name in KINDS if after[name]} == {"repeats"}
    assert not after["removable"]
    assert after["repeats_until"] is not None
    assert regworker(here, BOTH, "keys", "rotate")[0]["resealed"] == 0

    # Without the old key: everything opens, and jobs continue.
    change_worker(here, NEW)
    with producing(here, NEW) as producer:
        assert producer.status(jobs["finished"]).event is not None
        assert producer.enqueue(WAITING).repeat
        with pytest.raises(IdempotencyConflict):
            producer.enqueue(skypostal(idempotency_key="finished"))

        here.sandbox.accounts.clear()
        with operating(here, NEW) as operator:
            operator.resume("open2b", "default", ACTOR)
            operator.resend(jobs["review"], ACTOR)
        event = producer.wait(jobs["waiting"], PATIENCE)
        assert event["data"]["metadata"] == WAITING["metadata"]
        assert producer.wait(jobs["review"], PATIENCE)["type"] == "registration.registered"

    here.receiver.behave({})
    [member] = [one for one in deliveries(here) if jobs["pending"] in one]
    here.ledger.redis.hset(delivery_key(member), "due_at", 0)
    here.ledger.redis.zadd(ALARMS, {member: 1})
    here.wait_for_hook(jobs["pending"])
    regworker(here, NEW, "deliveries", "enable", "erp")
    here.wait_for_hook(jobs["dead"])
    changed = {"sealing_keys": SecretStr(NEW)}
    store = Quarantine(here.producer.settings.model_copy(update=changed))
    assert store.content(store.get(jobs["quarantine"]))["body"] == b"malformed"
    store.close()

    # Once the records are deleted, nothing uses the old key.
    for key in here.ledger.redis.scan_iter("{reg}:job:*"):
        here.ledger.redis.pexpire(key, 1)
    gone(lambda: here.ledger.redis.exists(job_key(jobs["finished"])))
    last = kept(here, BOTH)["test"]
    assert (last["removable"], last["advice"]) == (True, "now")


def deliveries(here: Installation) -> list[str]:
    """The members of all deliveries in the ledger."""
    prefix = delivery_key("")
    return [key.decode()[len(prefix) :] for key in here.ledger.redis.scan_iter(f"{prefix}*")]


def gone(there: Callable[[], Any]) -> None:
    """Wait until something no longer exists."""
    stack.until(lambda: not there(), "its end", PATIENCE)


def test_what_has_changed_meanwhile_is_left_as_it_is(ledger: SyncLedger) -> None:
    """A job that ended between the look and the write keeps what its end wrote, and expires."""
    ledger.redis.hset("{reg}:job:x", mapping={"event": "second"})
    ledger.redis.pexpire("{reg}:job:x", 60_000)
    changes = [("payload", "old", "new"), ("event", "first", "new")]
    assert ledger(reseal("{reg}:job:x", changes, "k")) == 0
    assert ledger.redis.hgetall("{reg}:job:x") == {b"event": b"second"}
    assert ledger(reseal("{reg}:job:x", [("event", "second", "third")], "k")) == 1
    assert ledger(reseal("{reg}:job:x", [("event", "second", "third")], "k")) == 1, "safe to repeat"
    assert ledger.redis.hget("{reg}:job:x", "event") == b"third"
    assert int(ledger.redis.pttl("{reg}:job:x")) > 0  # type: ignore[arg-type]


def test_a_job_with_a_key_that_is_not_known_here_is_put_under_a_new_key(
    ledger: SyncLedger, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A newer Python accepted it, and may have put its key into another form."""
    own = settings_of_a_host(redis_url, ledger, KEYS)
    with monkeypatch.context() as newer, Producer(own) as producer:
        newer.setattr("regworker.domain.job.category", lambda _: "Mn")
        newer.setattr("regworker.domain.job.normalize", lambda _, key: f"{key}.")
        id_ = producer.enqueue(open2b(idempotency_key="order-\u0378")).job_id
    with Rotation(Settings.load(redis_url=redis_url, sealing_keys=BOTH)) as rotation:
        *_, tally = rotation.turns(writing=True)
    assert (tally.resealed, dict(tally.shut)) == (2, {}), "its content and its fingerprint"
    payload: Any = ledger.redis.hget(job_key(id_), "payload")
    assert kid_of(payload.decode()) == "new"


def test_a_sealed_text_says_its_key_and_what_is_none_says_so() -> None:
    """Without opening it."""
    sealed = Keyring.parse(NEW).seal(b"plain", seals.kept("job"))
    assert kid_of(sealed) == "new"
    for text in ("", "plain", "eyJ", "e30.", sealed[3:]):
        assert kid_of(text) == "?"
    with pytest.raises(SealingError):
        Keyring.parse(KEYS).open(sealed, seals.kept("job"))


def test_seals_under_a_key_are_counted_from_its_first_use(
    ledger: SyncLedger, redis_url: str
) -> None:
    """An upper bound, by purpose; the doctor warns long before the limit."""
    settings = Settings.load(redis_url=redis_url, sealing_keys=BOTH)

    def said() -> doctor.Finding:
        with AdminActions(settings) as operator:
            [found] = [one for one in operator.examine() if one.subject == "seals"]
        return found

    ledger.redis.hset("{reg}:stats", "accepted", doctor.MOST_SEALS)
    assert "sealed under new" in said().found
    assert ledger(sealed_under("new", note=True)) == 0
    assert said().level == "ok"
    ledger.redis.hincrby("{reg}:stats", "accepted", 1000)
    ledger.redis.hincrby("{reg}:stats", "again", 10)
    assert ledger(sealed_under("new", note=True)) == 4020
    ledger.redis.hincrby("{reg}:stats", "accepted", doctor.MOST_SEALS // 4)
    assert (said().level, "keys rotate" in said().advice) == ("warning", True)
    assert ledger(sealed_under("newer", note=True)) == 0

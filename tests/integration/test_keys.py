"""Changing over to a new sealing key, with everything there is that is sealed, under way."""

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

from tests.integration.brokers import Message
from tests.integration.installation import KEYS, PATIENCE, SECRET, Installation, installation
from tests.integration.jobs import email_of, open2b, skypostal
from worker.cli import stack
from worker.errors import IdempotencyConflict, SealingError
from worker.ledger import SyncLedger
from worker.ledger.commands import ALARMS, delivery_key, job_key
from worker.ledger.operations import quarantined, reseal
from worker.operator import Operator
from worker.producer import Producer
from worker.quarantine import Quarantine
from worker.rotation import KINDS
from worker.sealing import Keyring, kid_of
from worker.wakeups import QUEUES

NEW = Keyring.new("new")
BOTH = f"{NEW},{KEYS}"

#: What `rotate` moves; streams' entries can't be, and repeats' content is gone.
MOVED = set(KINDS) - {"streams", "repeats"}

#: A second endpoint, which will be disabled.
ERP = {
    "endpoints__erp__kind": "webhook",
    "endpoints__erp__secrets": SECRET,
    "endpoints__erp__allow_http": True,
    "endpoints__erp__allow_private": True,
    # Nobody is there; the receiver's address takes its place in each installation.
    "endpoints__erp__url": "http://127.0.0.1:1/",
}


def regworker(
    here: Installation, keys: str, *arguments: str, code: int = 0
) -> list[dict[str, Any]]:
    """Run a command with a keyring, and `--json`; the objects it printed."""
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
    """What `regworker keys list` says, by the key's name."""
    return {row["kid"]: row for row in regworker(here, keys, "keys", "list")}


@contextmanager
def producing(here: Installation, keys: str) -> Iterator[Producer]:
    """A producer with a keyring."""
    changed = {"sealing_keys": SecretStr(keys)}
    with Producer(here.producer.settings.model_copy(update=changed)) as producer:
        yield producer


@contextmanager
def flowing(producer: Producer) -> Iterator[list[str]]:
    """Enqueue jobs all the while; their ids."""
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
    """Start a worker with a keyring; then stop the one before."""
    here.start_worker(sealing_keys=keys)
    here.wait_for_line("ready.", len(here.workers) - 1)
    here.workers[-2].terminate()
    assert here.workers[-2].wait(PATIENCE) == 0


@pytest.fixture
def begun(tmp_path: Path) -> Iterator[tuple[Installation, dict[str, str]]]:
    """An installation that holds one of everything, sealed under the old key; their ids."""
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
            operator.pause("open2b", "default", "")
        jobs["waiting"] = here.producer.enqueue(WAITING).job_id
        stack.until(
            lambda: here.producer.status(jobs["waiting"]).why == "paused", "the wait", PATIENCE
        )
        yield here, jobs


WAITING = open2b(idempotency_key="waiting", metadata={"order": "A-17", "sum": 1.5})


@contextmanager
def operating(here: Installation, keys: str = KEYS) -> Iterator[Operator]:
    """An operator with a keyring."""
    changed = {"sealing_keys": SecretStr(keys)}
    with Operator(here.producer.settings.model_copy(update=changed)) as operator:
        yield operator


def test_all_that_is_kept_is_put_under_a_new_key_while_jobs_flow(
    begun: tuple[Installation, dict[str, str]],
) -> None:
    """Jobs, reviews, events, deliveries, quarantine; then the old key goes, and all of it opens."""
    here, jobs = begun

    # With the new key alone nothing of it could be opened, and both commands say so.
    assert kept(here, NEW)["test"]["use"] == "not set"
    [failed] = regworker(here, NEW, "keys", "rotate", code=1)
    assert failed["unopened"]["test"] >= 6

    # The new key is in front everywhere, the old one behind it; jobs come all the time.
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

    # What is left under the old key is what tells repeats of finished jobs, until they expire.
    after = kept(here, BOTH)["test"]
    assert {name for name in KINDS if after[name]} == {"repeats"}
    assert not after["removable"]
    assert after["repeats_until"] is not None
    assert regworker(here, BOTH, "keys", "rotate")[0]["resealed"] == 0

    # Without the old key: everything opens, and goes on.
    change_worker(here, NEW)
    with producing(here, NEW) as producer:
        assert producer.status(jobs["finished"]).event is not None
        assert producer.enqueue(WAITING).repeat
        with pytest.raises(IdempotencyConflict):
            producer.enqueue(skypostal(idempotency_key="finished"))

        here.sandbox.accounts.clear()
        with operating(here, NEW) as operator:
            operator.resume("open2b", "default")
            operator.resend(jobs["review"], "ann")
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

    # And once the records are gone, so is the last use of it.
    for key in here.ledger.redis.scan_iter("{reg}:job:*"):
        here.ledger.redis.pexpire(key, 1)
    gone(lambda: here.ledger.redis.exists(job_key(jobs["finished"])))
    last = kept(here, BOTH)["test"]
    assert (last["removable"], last["advice"]) == (True, "now")


def deliveries(here: Installation) -> list[str]:
    """The members of all deliveries that are kept."""
    prefix = delivery_key("")
    return [key.decode()[len(prefix) :] for key in here.ledger.redis.scan_iter(f"{prefix}*")]


def gone(there: Callable[[], Any]) -> None:
    """Wait until something is not there any more."""
    stack.until(lambda: not there(), "its end", PATIENCE)


def test_what_has_changed_meanwhile_is_left_as_it_is(ledger: SyncLedger) -> None:
    """A job that ended between looking and writing keeps what its end wrote, and expires."""
    ledger.redis.hset("{reg}:job:x", mapping={"event": "second"})
    ledger.redis.pexpire("{reg}:job:x", 60_000)
    changes = [("payload", "old", "new"), ("event", "first", "new")]
    assert ledger(reseal("{reg}:job:x", changes)) == 0
    assert ledger.redis.hgetall("{reg}:job:x") == {b"event": b"second"}
    assert ledger(reseal("{reg}:job:x", [("event", "second", "third")])) == 1
    assert ledger(reseal("{reg}:job:x", [("event", "second", "third")])) == 1, "safe to repeat"
    assert ledger.redis.hget("{reg}:job:x", "event") == b"third"
    assert int(ledger.redis.pttl("{reg}:job:x")) > 0  # type: ignore[arg-type]


def test_a_sealed_text_says_its_key_and_what_is_none_says_so() -> None:
    """Without being opened."""
    sealed = Keyring.parse(NEW).seal(b"plain")
    assert kid_of(sealed) == "new"
    for text in ("", "plain", "eyJ", "e30.", sealed[3:]):
        assert kid_of(text) == "?"
    with pytest.raises(SealingError):
        Keyring.parse(KEYS).open(sealed)

"""This version reads the ledger of each released version, and completes its jobs."""

import base64
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from regworker.domain.errors import IdempotencyConflict
from regworker.ledger.transitions import ALARMS, PREFIX
from regworker.producer import Producer, Status
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings, variable
from tests.integration import installation as installing
from tests.integration.installation import PATIENCE, Installation, installation
from tests.integration.jobs import ACTOR
from tests.upgrade import record as recording
from tests.upgrade.record import KEYS, PROVIDERS, job
from worker.cli.local import stack
from worker.intake.quarantine import Quarantine
from worker.operations.admin_actions import AdminActions
from worker.operations.key_rotation import Rotation

LEDGERS = sorted((Path(__file__).parent / "ledgers").glob("*.rdb"))

#: A new key in front of the recording's key: new texts use it, and the rotation has work to do.
RING = f"{Keyring.new('new')},{KEYS}"

FORM = f"{PREFIX}format"

ENDED = {
    "registered": "registered",
    "registered-open2b": "registered",
    "rejected": "rejected",
    "abandoned": "abandoned",
    "cancelled": "cancelled",
}
"""The jobs that were finished when they were recorded, by their keys."""


def revive(file: Path, folder: Path) -> None:
    """Turn a recording into the files from which a Valkey with an append-only file starts."""
    folder.mkdir()
    shutil.copy(file, folder / "dump.rdb")
    server = stack.start_valkey(folder, appendonly="no", dbfilename="dump.rdb")
    try:
        with server.client() as client:
            client.config_set("appendonly", "yes")
            stack.until(
                lambda: (
                    not int(client.info("persistence")["aof_rewrite_in_progress"])
                    and not int(client.info("persistence")["aof_rewrite_scheduled"])
                ),
                "the append-only file",
                PATIENCE,
            )
    finally:
        server.stop()


@pytest.fixture(scope="module", params=LEDGERS, ids=lambda file: file.stem)
def revived(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    """An installation of this version on a ledger of an earlier one; both accounts are paused."""
    folder = tmp_path_factory.mktemp("revived")
    revive(request.param, folder / "valkey")
    patch = pytest.MonkeyPatch()
    patch.setattr(installing, "KEYS", RING)
    with installation(folder) as here:
        yield here
    patch.undo()


@pytest.fixture(scope="module")
def operator(revived: Installation) -> Iterator[AdminActions]:
    """The operator of this installation."""
    with AdminActions(settings(revived)) as operator:
        yield operator


def settings(here: Installation) -> Settings:
    """The settings for commands of the installation."""
    return Settings.load(redis_url=here.valkey.connection_url, sealing_keys=RING)


def status(here: Installation, key: str) -> Status:
    """The status of a recorded job."""
    provider = "open2b" if key.endswith("open2b") else "skypostal"
    return here.producer.status(key=key, provider=provider)


@pytest.mark.parametrize(("key", "state"), ENDED.items())
def test_what_was_over_keeps_its_outcome(revived: Installation, key: str, state: str) -> None:
    """A finished job keeps its outcome, its timeline and its event."""
    found = status(revived, key)
    assert found.state == state
    assert found.timeline
    assert found.event is not None
    assert found.event["type"] == f"registration.{state}"


def test_a_key_is_still_taken(revived: Installation) -> None:
    """A repeat returns the existing job, and other content is refused."""
    again = revived.producer.enqueue(job("registered", reply_to=["results", "crm"]))
    assert again.repeat
    with pytest.raises(IdempotencyConflict):
        revived.producer.enqueue(job("registered", metadata={"other": "content"}))


@pytest.mark.parametrize("key", ["calling", "unknown"])
def test_what_was_on_the_wire_is_looked_up(
    revived: Installation, operator: AdminActions, key: str
) -> None:
    """Its job is registered once it is certain that no customer exists."""
    operator.resume("skypostal", "default", ACTOR)
    event = revived.producer.wait(status(revived, key).job_id, PATIENCE)
    assert event["type"] == "registration.registered"
    assert revived.made(f"{key}@example.com") == 1
    assert any("unknown" in what for _, what in status(revived, key).timeline)


@pytest.mark.parametrize("key", ["queued", "queued-open2b"])
def test_what_was_queued_is_carried_out(
    revived: Installation, operator: AdminActions, key: str
) -> None:
    """The accounts stay paused; when an operator resumes them, their jobs run."""
    for provider in PROVIDERS:
        operator.resume(provider, "default", ACTOR)
    event = revived.producer.wait(status(revived, key).job_id, PATIENCE)
    assert event["type"] == "registration.registered"


def test_a_review_can_be_resolved(revived: Installation, operator: AdminActions) -> None:
    """It is still listed, and its outcome is published."""
    [one] = operator.reviews()
    assert one.idempotency_key == "review"
    operator.rejected(one.id, "somebody else's address", ACTOR)
    assert revived.producer.wait(one.id)["type"] == "registration.rejected"


def test_a_pending_delivery_arrives(revived: Installation) -> None:
    """Once the receiver works again, the delivery succeeds."""
    revived.wait_for_hook(status(revived, "delivery-pending").job_id)


def test_the_quarantine_is_kept(revived: Installation) -> None:
    """Each entry is still there, with its content."""
    quarantine = Quarantine(settings(revived))
    try:
        [one] = quarantine.all()[2]
        assert quarantine.content(quarantine.get(one.id))["body"] == b"no message of ours"
    finally:
        quarantine.close()


def test_a_rotation_says_of_each_text_what_it_is(revived: Installation) -> None:
    """Afterwards the new key alone opens every text, and every text states its kind."""
    with Rotation(settings(revived)) as rotation:
        *_, tally = rotation.turns(writing=True)
    assert tally.resealed > 0
    assert not tally.shut
    found = 0
    for key in revived.ledger.redis.scan_iter(f"{PREFIX}*"):
        if revived.ledger.redis.type(key) == b"hash":
            values: Any = revived.ledger.redis.hgetall(key)
            for value in values.values():
                if value.startswith(b"eyJ"):
                    found += 1
                    header = json.loads(base64.urlsafe_b64decode(value.split(b".")[0] + b"=="))
                    assert header["kid"] == "new"
                    assert {"typ", "sub"} < set(header)
    assert found  # others are in streams, or were deleted with their jobs
    url = revived.valkey.connection_url
    with Producer(Settings.load(redis_url=url, sealing_keys=RING.partition(",")[0])) as producer:
        assert producer.status(key="registered", provider="skypostal", account="default").event


def test_nothing_is_left_undone(revived: Installation, operator: AdminActions) -> None:
    """Every recorded job reaches its end, and no alarm is left."""
    for provider in PROVIDERS:
        operator.resume(provider, "default", ACTOR)
    stack.until(lambda: not revived.ledger.redis.exists(ALARMS), "no alarm left", PATIENCE)


def test_a_worker_keeps_out_of_a_ledger_of_a_newer_version(revived: Installation) -> None:
    """It refuses to start, because it would misread what it does not know."""
    here = revived
    before = here.ledger.redis.get(FORM)
    here.ledger.redis.set(FORM, 99)
    try:
        worker = here.start_worker("-n", "old@%h")
        assert worker.wait(PATIENCE) != 0
        said = here.log(len(here.workers) - 1).read_text("utf-8")
        assert "a newer version wrote them" in said
    finally:
        here.ledger.redis.set(FORM, before or 1)


def test_this_version_can_be_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recorder works, so that it can be used on the day of a release."""
    monkeypatch.setattr(installing, "KEYS", KEYS)
    # Something that is no message, in a list of Redis.
    monkeypatch.setattr(installing, "BROKER", "redis")
    monkeypatch.setenv(variable("retention"), "1")  # restored, whatever the recording sets
    file = tmp_path / "recorded.rdb"
    recording.record(file)
    assert file.read_bytes()[:6] in {b"VALKEY", b"REDIS0"}

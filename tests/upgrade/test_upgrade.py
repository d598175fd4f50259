"""A ledger that an earlier version has written is read, and carried on, by this one."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration import installation as installing
from tests.integration.installation import PATIENCE, Installation, installation
from tests.upgrade import record as recording
from tests.upgrade.record import KEYS, PROVIDERS, job
from worker.cli import stack
from worker.errors import IdempotencyConflict
from worker.ledger.commands import ALARMS, PREFIX
from worker.operator import Operator
from worker.producer import Status
from worker.quarantine import Quarantine
from worker.settings import Settings, variable

LEDGERS = sorted((Path(__file__).parent / "ledgers").glob("*.rdb"))

FORM = f"{PREFIX}format"

ENDED = {
    "registered": "registered",
    "registered-open2b": "registered",
    "rejected": "rejected",
    "abandoned": "abandoned",
    "cancelled": "cancelled",
}
"""Jobs that were over when they were recorded, by their keys."""


def revive(file: Path, folder: Path) -> None:
    """Make of a recording what a Valkey with an append-only file starts on."""
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
    patch.setattr(installing, "KEYS", KEYS)
    with installation(folder) as here:
        yield here
    patch.undo()


@pytest.fixture(scope="module")
def operator(revived: Installation) -> Iterator[Operator]:
    """Its operator."""
    with Operator(settings(revived)) as operator:
        yield operator


def settings(here: Installation) -> Settings:
    """What commands of the installation go by."""
    return Settings.load(redis_url=here.valkey.connection_url, sealing_keys=KEYS)


def status(here: Installation, key: str) -> Status:
    """Where a recorded job stands."""
    provider = "open2b" if key.endswith("open2b") else "skypostal"
    return here.producer.status(key=key, provider=provider)


@pytest.mark.parametrize(("key", "state"), ENDED.items())
def test_what_was_over_keeps_its_outcome(revived: Installation, key: str, state: str) -> None:
    """With its timeline and its event."""
    found = status(revived, key)
    assert found.state == state
    assert found.timeline
    assert found.event is not None
    assert found.event["type"] == f"registration.{state}"


def test_a_key_is_still_taken(revived: Installation) -> None:
    """A repeat gets the job that is there, and other content is refused."""
    again = revived.producer.enqueue(job("registered", reply_to=["results", "crm"]))
    assert again.repeat
    with pytest.raises(IdempotencyConflict):
        revived.producer.enqueue(job("registered", metadata={"other": "content"}))


@pytest.mark.parametrize("key", ["calling", "unknown"])
def test_what_was_on_the_wire_is_asked_after(
    revived: Installation, operator: Operator, key: str
) -> None:
    """And registered once it is sure that nobody is there."""
    operator.resume("skypostal", "default")
    event = revived.producer.wait(status(revived, key).job_id, PATIENCE)
    assert event["type"] == "registration.registered"
    assert revived.made(f"{key}@example.com") == 1
    assert any("unknown" in what for _, what in status(revived, key).timeline)


@pytest.mark.parametrize("key", ["queued", "queued-open2b"])
def test_what_was_queued_is_carried_out(
    revived: Installation, operator: Operator, key: str
) -> None:
    """The accounts were paused, and still are, until an operator resumes them."""
    for provider in PROVIDERS:
        operator.resume(provider, "default")
    event = revived.producer.wait(status(revived, key).job_id, PATIENCE)
    assert event["type"] == "registration.registered"


def test_a_review_can_be_resolved(revived: Installation, operator: Operator) -> None:
    """It is still listed, and its outcome is published."""
    [one] = operator.reviews()
    assert one.idempotency_key == "review"
    operator.rejected(one.id, "somebody else's address", "tests")
    assert revived.producer.wait(one.id)["type"] == "registration.rejected"


def test_a_pending_delivery_arrives(revived: Installation) -> None:
    """The receiver is well again."""
    revived.wait_for_hook(status(revived, "delivery-pending").job_id)


def test_the_quarantine_is_kept(revived: Installation) -> None:
    """With what was put there."""
    quarantine = Quarantine(settings(revived))
    try:
        [one] = quarantine.all()[2]
        assert quarantine.content(quarantine.get(one.id))["body"] == b"no message of ours"
    finally:
        quarantine.close()


def test_nothing_is_left_undone(revived: Installation, operator: Operator) -> None:
    """Every recorded job comes to its end, and no alarm is left."""
    for provider in PROVIDERS:
        operator.resume(provider, "default")
    stack.until(lambda: not revived.ledger.redis.exists(ALARMS), "no alarm left", PATIENCE)


def test_a_worker_keeps_out_of_a_ledger_of_a_newer_version(revived: Installation) -> None:
    """It would get wrong what it does not know."""
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
    """On the day of a release, when it is wanted."""
    monkeypatch.setattr(installing, "KEYS", KEYS)
    # What is no message of anybody's is put on a list of Redis.
    monkeypatch.setattr(installing, "BROKER", "redis")
    monkeypatch.setenv(variable("retention"), "1")  # put back, whatever the recording sets
    file = tmp_path / "recorded.rdb"
    recording.record(file)
    assert file.read_bytes()[:6] in {b"VALKEY", b"REDIS0"}

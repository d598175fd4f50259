"""Settings in files: a running worker loads changes, and keeps what worked until then."""

import dataclasses
import json
import os
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from regworker.domain.errors import InvalidJob, SettingsError
from regworker.domain.event import EventType
from regworker.ledger.admin import look_into_quarantine, quarantined
from regworker.producer import Producer
from regworker.sealing.keyring import Keyring, kid_of
from regworker.settings import Settings
from sandbox.receiver import Receiver
from tests.integration.brokers import Message
from tests.integration.installation import (
    KEYS,
    PATIENCE,
    ROOT,
    SECRET,
    Installation,
    installation,
)
from tests.integration.jobs import skypostal
from tests.serving import serving
from tests.tls import Authority, Front, fronts
from worker.broker.wakeups import QUEUES
from worker.cli.local import stack
from worker.providers import check

NEW_KEYS = Keyring.new("next")
NEW_SECRET = "whsec_YW5vdGhlciBzZWNyZXQgb2YgdGhlIHRlc3RzLi4u"


@dataclasses.dataclass
class Mounted:
    """A worker whose secrets are files, as Kubernetes mounts them: behind a symbolic link."""

    here: Installation
    folder: Path
    files: dict[str, str]

    def write(self, **files: str) -> None:
        """Change files, all at the same moment."""
        self.files |= files
        version = self.folder / f"version-{len(list(self.folder.iterdir()))}"
        version.mkdir()
        for name, text in self.files.items():
            (version / name).write_text(text)
        link = self.folder / "new"
        link.symlink_to(version)
        link.rename(self.folder / "now")

    def lines(self, event: str) -> list[dict[str, Any]]:
        """The log lines of one event."""
        lines = self.here.log().read_text("utf-8", "replace").splitlines()
        found = [json.loads(line) for line in lines if line.startswith("{")]
        return [one for one in found if one.get("event") == event]

    def reloaded(self, **files: str) -> None:
        """Change files, and wait until the worker has read them."""
        before = len(self.lines("settings reloaded"))
        self.write(**files)
        stack.until(lambda: len(self.lines("settings reloaded")) > before, "a reload", PATIENCE)


def accounts(server: str, *names: str) -> str:
    """The file of accounts."""
    return "\n".join(
        f"""
        [accounts.skypostal.{name}]
        base_url = "{server}"
        user_code = 396
        copa_id = 616
        app_key_file = "REPLACED"
        """
        for name in names
    )


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """The worker, and the files that it reads."""
    with installation(tmp_path_factory.mktemp("files"), workers=0, broker_url="") as here:
        folder = here.folder / "mounted"
        folder.mkdir()
        made = Mounted(here, folder, {})
        variables = {
            "REGWORKER_SEALING_KEYS": KEYS,
            "REGWORKER_ENDPOINTS__CRM__SECRETS": here.environment[
                "REGWORKER_ENDPOINTS__CRM__SECRETS"
            ],
            "REGWORKER_ACCOUNTS__SKYPOSTAL__DEFAULT__APP_KEY": "first",
        }
        for name in variables:
            del here.environment[name]
            here.environment[f"{name}_FILE"] = str(folder / "now" / name)
        here.environment["REGWORKER_CONFIG"] = str(folder / "now" / "config.toml")
        made.write(**variables, **{CONFIG: ""})
        stack.wait_for_worker(here.ledger, here.start_worker())
        yield made


APP_KEY = "REGWORKER_ACCOUNTS__SKYPOSTAL__DEFAULT__APP_KEY"
CONFIG = "config.toml"


@pytest.fixture
def key_of_the_provider(mounted: Mounted) -> Iterator[Callable[[str | None], None]]:
    """Set the only key that the provider accepts."""
    sandbox = mounted.here.sandbox

    def set_to(app_key: str | None) -> None:
        sandbox.skypostal = dataclasses.replace(sandbox.skypostal, app_key=app_key)

    yield set_to
    set_to(None)


def registered(here: Installation, **job: Any) -> bool:
    """Whether a new job is registered."""
    return here.run(skypostal(**job))["type"] == EventType.REGISTERED


def test_a_credential_that_does_not_work_is_not_used(
    mounted: Mounted, key_of_the_provider: Callable[[str | None], None]
) -> None:
    """The old one stays in use; the new one is used once the provider accepts it."""
    here = mounted.here
    key_of_the_provider("first")
    assert registered(here)
    mounted.reloaded(**{APP_KEY: "second\n"})
    assert mounted.lines("new credential not used")[-1]["account"] == "skypostal/default"
    assert registered(here)
    key_of_the_provider("second")
    mounted.reloaded()
    assert mounted.lines("account changed")[-1]["account"] == "skypostal/default"
    assert registered(here)
    assert not here.sandbox.accounts.find(email=check.EMAIL)


def test_accounts_come_and_go(mounted: Mounted) -> None:
    """A producer may use the account as soon as a worker serves it."""
    here = mounted.here
    with pytest.raises(InvalidJob):
        here.producer.enqueue(skypostal(account="eu"))
    file = accounts(here.server.url, "eu").replace(
        "REPLACED", str(mounted.folder / "now" / APP_KEY)
    )
    mounted.reloaded(**{CONFIG: file})
    assert registered(here, account="eu")
    mounted.reloaded(**{CONFIG: ""})
    # Accepted, since the account is still announced.
    job_id = here.producer.enqueue(skypostal(account="eu")).job_id
    here.wait_for_line("is not configured at this worker")
    mounted.reloaded(**{CONFIG: file})
    assert here.producer.wait(job_id, PATIENCE)["type"] == EventType.REGISTERED


def test_a_webhook_signs_with_its_new_secret(mounted: Mounted) -> None:
    """Both secrets sign while the receiver rotates them."""
    here = mounted.here
    secret = "REGWORKER_ENDPOINTS__CRM__SECRETS"
    old, new = here.receiver._webhooks, Receiver([NEW_SECRET])._webhooks
    mounted.reloaded(**{secret: f"{SECRET},{NEW_SECRET}"})
    here.receiver._webhooks = new
    event = here.run(skypostal(reply_to=["crm"]))
    assert here.wait_for_hook(event["subject"])[-1].status < 300
    here.receiver._webhooks = old


def test_a_sealing_key_is_added(mounted: Mounted) -> None:
    """Jobs sealed under it are accepted and opened without a restart."""
    here = mounted.here
    settings = Settings.load(
        redis_url=here.environment["REGWORKER_REDIS_URL"], sealing_keys=NEW_KEYS
    )
    with Producer(settings) as producer:
        with pytest.raises(SettingsError, match="no worker has the first key"):
            producer.enqueue(skypostal())
        mounted.reloaded(REGWORKER_SEALING_KEYS=f"{KEYS},{NEW_KEYS}")
        job_id = producer.enqueue(skypostal()).job_id
        assert here.producer.wait(job_id, PATIENCE)["type"] == EventType.REGISTERED


def test_a_message_is_set_aside_under_the_new_sealing_key(mounted: Mounted) -> None:
    """The keys of the worker's start may be gone when somebody wants to read it."""
    here = mounted.here
    mounted.reloaded(REGWORKER_SEALING_KEYS=f"{NEW_KEYS},{KEYS}")
    here.ledger.redis.lpush(QUEUES["live"], json.dumps(Message(b"malformed").envelope()))
    stack.until(lambda: here.ledger(quarantined(9))[0] == 1, "the quarantine", PATIENCE)
    [entry] = here.ledger(quarantined(9))[2]
    kept = here.ledger(look_into_quarantine(entry.id))
    assert kept is not None
    assert kid_of(kept.content) == "next"
    mounted.reloaded(REGWORKER_SEALING_KEYS=f"{KEYS},{NEW_KEYS}")


@dataclasses.dataclass
class Receiving:
    """A receiver of webhooks that requires a client certificate; keeps their serial numbers."""

    port: int
    seen: list[str]


@pytest.fixture
def receiving(tmp_path: Path) -> Iterator[tuple[Receiving, Authority]]:
    """It runs until the end of the test."""
    authority = Authority(tmp_path)
    found = Receiving(0, [])

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert isinstance(self.connection, ssl.SSLSocket)
            shown: Any = self.connection.getpeercert()
            found.seen.append(shown["serialNumber"])
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(204)
            self.end_headers()

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority.file))
    context.load_cert_chain(authority.certificate("good"))
    context.verify_mode = ssl.CERT_REQUIRED
    with serving(Handler, context) as found.port:
        yield found, authority


def test_a_changed_client_certificate_is_loaded_again(
    mounted: Mounted, receiving: tuple[Receiving, Authority]
) -> None:
    """The receiver sees the new one with the next event, from the same path."""
    receiver, authority = receiving
    files = [authority.certificate(kind) for kind in ("good", "other host")]
    certificates = [file.read_text() for file in files]
    config = f"""
        [endpoints.bank]
        kind = "webhook"
        url = "https://localhost:{receiver.port}/"
        secrets = ["{SECRET}"]
        allow_private = true
        ca_file = "{authority.file}"
        client_cert_file = "{mounted.folder / "now" / "client.pem"}"
    """
    for number, certificate in enumerate(certificates, 1):
        mounted.reloaded(**{CONFIG: config, "client.pem": certificate})
        job = skypostal(reply_to=["results", "bank"])
        mounted.here.run(job)
        stack.until(lambda number=number: len(receiver.seen) >= number, "the webhook", PATIENCE)
    mounted.reloaded(**{CONFIG: ""})
    wanted = [x509.load_pem_x509_certificate(one.encode()) for one in certificates]
    assert [int(one, 16) for one in receiver.seen] == [one.serial_number for one in wanted]


def test_a_changed_certificate_of_an_account_is_tested_before_it_is_used(
    mounted: Mounted, tmp_path: Path
) -> None:
    """Calls continue with the old one until the new one works, though the file has changed."""
    here = mounted.here
    folders = [tmp_path / name for name in ("right", "wrong")]
    for folder in folders:
        folder.mkdir()
    right, wrong = map(Authority, folders)
    front = Front(right.certificate("good"), int(here.server.url.rpartition(":")[2]))
    with fronts(front):
        config = accounts(f"https://localhost:{front.port}", "tls").replace(
            "REPLACED", str(mounted.folder / "now" / APP_KEY)
        )
        config += f'\nca_file = "{mounted.folder / "now" / "ca.pem"}"\n'
        mounted.reloaded(**{CONFIG: config, "ca.pem": right.file.read_text()})
        assert registered(here, account="tls")
        before = len(mounted.lines("new credential not used"))
        mounted.reloaded(**{"ca.pem": wrong.file.read_text()})
        [found] = mounted.lines("new credential not used")[before:]
        assert found["account"] == "skypostal/tls"
        assert "certificate" in found["reason"]
        assert registered(here, account="tls")
        mounted.reloaded(**{"ca.pem": right.file.read_text() + "\n"})
        assert mounted.lines("account changed")[-1]["account"] == "skypostal/tls"
        assert registered(here, account="tls")
        mounted.reloaded(**{CONFIG: ""})


@pytest.mark.parametrize(
    "broken", ["[accounts.nobody.eu]", "[accounts.skypostal.eu]\nuser_code = 1", "x = ["]
)
def test_a_file_that_cannot_be_used_changes_nothing(mounted: Mounted, broken: str) -> None:
    """The error is logged without the file's content; the worker continues with the old
    settings."""
    here = mounted.here
    before = len(mounted.lines("settings not reloaded"))
    mounted.write(**{CONFIG: broken})
    stack.until(lambda: len(mounted.lines("settings not reloaded")) > before, "a report", PATIENCE)
    assert registered(here)
    mounted.reloaded(**{CONFIG: ""})


def test_accounts_are_checked_by_a_command(
    mounted: Mounted, key_of_the_provider: Callable[[str | None], None]
) -> None:
    """Connection and credentials, with a worker's settings; nothing is created at the provider."""
    patient = {"REGWORKER_CALL_BUDGET": "20", "REGWORKER_SETTLE_DELAY": "60"}

    def checked(*names: str) -> tuple[int, dict[str, str]]:
        done = subprocess.run(
            [sys.executable, "-m", "worker.cli", "providers", "check", "--json", *names],
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(ROOT),
                **mounted.here.environment,
                **patient,
            },
            cwd=mounted.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        lines = map(json.loads, done.stdout.splitlines())
        return done.returncode, {
            f"{one['provider']}/{one['account']}": one["state"] for one in lines
        }

    key_of_the_provider("right")
    mounted.write(**{APP_KEY: "right"})
    assert checked() == (0, {"skypostal/default": "works", "open2b/default": "works"})
    mounted.write(**{APP_KEY: "wrong"})
    assert checked("skypostal/default") == (1, {"skypostal/default": "refused"})
    assert checked("skypostal/nobody")[0] != 0
    assert not mounted.here.sandbox.accounts.find(email=check.EMAIL)
    mounted.write(**{APP_KEY: "right"})


def test_no_secret_of_a_file_is_logged(mounted: Mounted) -> None:
    """Whatever the tests above read."""
    log = here = mounted.here.log().read_text()
    for secret in (SECRET, NEW_SECRET, KEYS.partition(":")[2], NEW_KEYS.partition(":")[2]):
        assert secret not in log, here

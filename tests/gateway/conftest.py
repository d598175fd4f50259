"""A real gateway for each test file: `regworker serve` on a free port, with its own Valkey."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from regworker.ledger import SyncLedger
from regworker.settings import Settings
from tests.chaos.proxy import free_port
from tests.gateway.service import KEYS, Gateway, serves, start
from worker.cli.local import stack

__all__ = ["KEYS", "Gateway"]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One gateway for all tests of a file."""
    folder = tmp_path_factory.mktemp("gateway")
    with ExitStack() as running:
        valkey = running.enter_context(stack.valkey(folder / "valkey", fsync="always"))
        values: dict[str, Any] = {"redis_url": valkey.connection_url, "sealing_keys": KEYS}
        environment = {f"REGWORKER_{name.upper()}": value for name, value in values.items()}
        environment["REGWORKER_METRICS_PORT"] = str(free_port())
        settings = Settings.load(**values)
        ledger = SyncLedger(valkey.connection_url)
        running.callback(ledger.close)
        serves(ledger, settings)
        url, process, log = start(running, folder, environment, "--port", "0")
        http = running.enter_context(httpx.Client(base_url=url, timeout=60))
        yield Gateway(url, process, log, settings, environment, valkey, ledger, http)


@pytest.fixture(scope="module")
def shop(gateway: Gateway) -> Iterator[httpx.Client]:
    """A client that enqueues jobs and reads its own."""
    with gateway.client("--rate", "100000") as client:
        yield client

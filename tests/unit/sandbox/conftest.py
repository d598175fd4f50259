"""A sandbox for the tests of each file."""

from collections.abc import Iterator

import pytest

from sandbox.server import SandboxServer


@pytest.fixture(scope="module")
def running() -> Iterator[SandboxServer]:
    """One sandbox for this file."""
    with SandboxServer() as server:
        yield server


@pytest.fixture
def server(running: SandboxServer) -> SandboxServer:
    """The sandbox, freshly reset."""
    running.sandbox.reset()
    return running

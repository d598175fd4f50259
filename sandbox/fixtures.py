"""pytest fixtures for whoever tests against the providers: `pytest_plugins = ["sandbox.fixtures"]`.

def test_signs_up(providers: SandboxServer) -> None:
    call(providers.url)
    [account] = providers.sandbox.accounts.find(email="holmes@example.com")
"""

from collections.abc import Iterator

import pytest

from sandbox.server import SandboxServer


@pytest.fixture
def providers() -> Iterator[SandboxServer]:
    """Both providers, empty, on a free port of this machine, until the test is over."""
    with SandboxServer() as server:
        yield server

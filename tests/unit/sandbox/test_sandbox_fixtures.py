"""The sandbox as a pytest fixture, for tests of code that calls the providers."""

import httpx

from sandbox.documented import OPEN2B_SIGN_UP
from sandbox.server import SandboxServer

pytest_plugins = ["sandbox.fixtures"]


def test_a_test_that_asks_for_the_providers_gets_both(providers: SandboxServer) -> None:
    """Both are empty, have their own port, and show their accounts."""
    assert providers.sandbox.accounts.find() == []
    httpx.post(f"{providers.url}/api/v10/storefront.sign-up", json=OPEN2B_SIGN_UP)
    assert len(providers.sandbox.accounts.find()) == 1

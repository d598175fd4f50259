"""Only what a test sets is in the environment."""

from typing import Any

import pytest

from tests.unit.client.settings.loading import KEYS


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the settings that every installation needs are set."""
    monkeypatch.delenv("REGWORKER_CONFIG", raising=False)
    monkeypatch.setenv("REGWORKER_SEALING_KEYS", KEYS)


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets variables: `env(LEASE=9)`."""

    def put(**values: Any) -> None:
        for name, value in values.items():
            monkeypatch.setenv(f"REGWORKER_{name}", str(value))

    return put

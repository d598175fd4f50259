"""What the tests of settings share."""

from typing import Any

import pytest

from regworker.domain.errors import SettingsError
from regworker.settings import Settings

KEYS = "test:" + "A" * 43


SECRET = "whsec_canary12000000000000000000000000"


WEBHOOK = {"KIND": "webhook", "URL": "https://crm.example.com/hook", "SECRETS": SECRET}


def problems(**values: Any) -> dict[str, str]:
    """The problems of the settings, by variable."""
    with pytest.raises(SettingsError) as caught:
        Settings.load(**values)
    assert "canary" not in str(caught.value)
    assert caught.value.__cause__ is None
    return dict(caught.value.problems)

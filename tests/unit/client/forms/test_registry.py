"""What a client knows of a provider without loading the provider's code."""

import json

import pytest

from regworker.domain.errors import InvalidJob
from regworker.domain.request import Origin, read
from regworker.forms.registry import Forms
from regworker.settings import Settings
from worker.providers.registry import Registry

PATHS = Settings.model_fields["providers"].get_default(call_default_factory=True)


@pytest.mark.parametrize("path", PATHS)
def test_a_client_knows_the_form_and_the_fields_of_an_account(path: str) -> None:
    """They are the same as in the provider's class, which only a worker loads."""
    [name] = forms = Forms([path])
    provider = Registry([path])[name]
    assert forms.form(name) is provider.Registration
    assert forms._of_accounts[name] == set(provider.Account.model_fields)


#: What is no name, whatever it begins with.
NO_NAMES = ["a" * 64 + " password=Unforgettable-7", "a" * 65, "a" * 50_000, "a\n", "A", ""]


@pytest.mark.parametrize("name", NO_NAMES, ids=range(len(NO_NAMES)))
def test_only_a_whole_name_is_shown(name: str) -> None:
    """An unknown provider or endpoint is named if it could be one; anything else may be a secret,
    and as long as it likes."""
    with pytest.raises(InvalidJob) as caught:
        Forms(PATHS).form(name)
    assert "the name given is none of" in str(caught.value)
    assert len(str(caught.value)) < 200
    with pytest.raises(InvalidJob, match=r"'acme' is none of"):
        Forms(PATHS).form("acme")
    body = json.dumps({"idempotency_key": "k", "reply_to": [name, "crm"]}).encode()
    assert read("register", body, Origin("stream", "1-0")).echo.reply_to == ("crm",)

"""What a client knows of a provider without loading the provider's code."""

import pytest

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

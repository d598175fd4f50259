"""Names of variables: a misspelt one is an error that names the one meant."""

from typing import Any

import pytest

from regworker.domain.errors import SettingsError
from regworker.settings import Settings, variable
from tests.unit.client.settings.loading import KEYS, WEBHOOK, problems
from worker.providers.registry import Accounts, Registry


def test_an_unknown_setting_is_refused() -> None:
    """A misspelt setting would silently have no effect."""
    assert problems(colour="canary") == {"REGWORKER_COLOUR": "is not a setting"}


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("LEASE_RENEWEL", "LEASE_RENEWAL"),
        ("CALL_BUDGETS", "CALL_BUDGET"),
        ("REQUIRE_SEALING", "REQUIRE_SEALED"),
        ("SEALING_KEY", "SEALING_KEYS"),
        ("REDIS_ULR", "REDIS_URL"),
        ("LEASE__RENEWAL", "LEASE_RENEWAL"),
        ("ENDPOINT__CRM__URL", "ENDPOINTS__..."),
        ("ENDPOINTS_CRM__URL", "ENDPOINTS__..."),
        ("ACCOUNTS_SKYPOSTAL__DEFAULT__APP_KEY", "ACCOUNTS__..."),
        ("ENDPOINTS__CRM__SECRET", "ENDPOINTS__CRM__SECRETS"),
        ("ENDPOINTS__CRM__ALOW_HTTP", "ENDPOINTS__CRM__ALLOW_HTTP"),
    ],
)
def test_a_misspelt_variable_is_an_error_that_names_the_likeliest_one_meant(
    env: Any, name: str, meant: str
) -> None:
    """A misspelt setting would silently have no effect."""
    env(**{f"ENDPOINTS__CRM__{field}": value for field, value in WEBHOOK.items()})
    env(**{name: "canary"})
    assert problems() == {f"REGWORKER_{name}": f"is not a setting; did you mean REGWORKER_{meant}?"}


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("ACCOUNTS__OPEN2B__BASE_URL", "ACCOUNTS__<PROVIDER>__<ACCOUNT>__<FIELD>"),
        ("ACCOUNTS__BASE_URL", "ACCOUNTS__<PROVIDER>__<ACCOUNT>__<FIELD>"),
        ("ENDPOINTS__KIND", "ENDPOINTS__<NAME>__<FIELD>"),
        ("LEDGERS__REDIS_URL", "LEDGERS__<NAME>__<FIELD>"),
    ],
)
def test_a_variable_without_a_name_in_it_is_told_its_form(env: Any, name: str, form: str) -> None:
    """Somebody forgot the name of the account, the endpoint or the ledger."""
    env(**{name: "canary"})
    said = problems()[f"REGWORKER_{name}"]
    assert said == f"is not a setting; the form is REGWORKER_{form}"


def test_every_misspelt_variable_is_named_beside_every_wrong_one(env: Any) -> None:
    """An operator can fix all of them in one go."""
    env(COLOUR="canary", TINT="canary", LEASE=0)
    assert set(problems()) == {"REGWORKER_COLOUR", "REGWORKER_TINT", "REGWORKER_LEASE"}


def test_an_account_field_that_is_misspelt_names_the_likeliest_one_meant(env: Any) -> None:
    """The provider knows the fields of its accounts."""
    for field, value in {"BASE_URL": "https://x", "APPKEY": "canary", "USER_CODE": "1"}.items():
        env(**{f"ACCOUNTS__SKYPOSTAL__DEFAULT__{field}": value})
    settings = Settings.load()
    with pytest.raises(SettingsError) as caught:
        Accounts(Registry(settings.providers), settings.accounts)
    account = "REGWORKER_ACCOUNTS__SKYPOSTAL__DEFAULT"
    found = dict(caught.value.problems)
    assert found[f"{account}__APPKEY"] == f"is not a setting; did you mean {account}__APP_KEY?"
    assert found[f"{account}__APP_KEY"] == "is required"


def test_variables_that_are_read_elsewhere_are_no_error(env: Any) -> None:
    """Variables of the command, of Compose, of the tests, and of a Kubernetes service
    `regworker-x` are allowed."""
    env(CONFIG="", DEBUG="1", IMAGE="registry/image:1", TEST_BROKER="redis")
    env(EXPORTER_SERVICE_HOST="10.0.0.1", EXPORTER_SERVICE_PORT_METRICS="9808")
    env(EXPORTER_PORT_9808_TCP_ADDR="10.0.0.1")
    assert Settings.load().lease == 12


@pytest.mark.parametrize("blank", ["", " ", "\t"])
def test_a_blank_variable_counts_as_unset(
    env: Any, blank: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compose and Kubernetes set some variables to nothing; an unknown one is no error then."""
    for name in Settings.model_fields:
        env(**{name.upper(): blank})
    for name in ("ACCOUNTS__SKYPOSTAL__EU__APP_KEY", "ENDPOINTS__CRM__URL", "COLOUR", "CONFIG"):
        env(**{name: blank})
    assert list(problems()) == ["REGWORKER_SEALING_KEYS"], "which is required, and not set"
    monkeypatch.setenv("REGWORKER_SEALING_KEYS", KEYS)
    settings = Settings.load()
    for name, field in Settings.model_fields.items():
        if not field.is_required():
            assert getattr(settings, name) == field.get_default(call_default_factory=True)


def test_a_variable_is_named_by_its_path() -> None:
    """A path of field names gives the variable's name in messages."""
    assert variable("accounts", "skypostal") == "REGWORKER_ACCOUNTS__SKYPOSTAL"

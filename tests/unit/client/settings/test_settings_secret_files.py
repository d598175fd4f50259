"""Single settings in files (`REGWORKER_..._FILE`)."""

from pathlib import Path
from typing import Any

import pytest

from regworker.domain.errors import SettingsError
from regworker.named_files import NO_FILE
from regworker.settings import Settings, WebhookEndpoint
from tests.unit.client.settings.loading import KEYS, SECRET, problems
from worker.providers.registry import Accounts, Registry

#: Values that may be in a setting where a file's path belongs: some with slashes, as in base64.
NO_PATHS = [
    "canary",
    "canary/a+b==",
    "/canary+a/b",
    "canary" * 100,
    "\u00e9canary",
    "./canary\\",
]


@pytest.mark.parametrize("secret", NO_PATHS)
@pytest.mark.parametrize(
    "name",
    [
        *("CONFIG", "REDIS_URL_FILE", "SEALING_KEYS_FILE", "CA_FILE", "CLIENT_CERT_FILE"),
        *("ACCOUNTS__OPEN2B__EU__SECRET_KEY_FILE", "ENDPOINTS__CRM__SECRETS_FILE"),
        *("ENDPOINTS__CRM__CA_FILE", "ENDPOINTS__CRM__CLIENT_CERT_FILE"),
    ],
)
def test_a_secret_in_the_place_of_a_files_path_is_not_shown(
    env: Any, monkeypatch: pytest.MonkeyPatch, name: str, secret: str
) -> None:
    """The setting is named, and what it must hold."""
    env(ENDPOINTS__CRM__KIND="webhook", ENDPOINTS__CRM__URL="https://crm.example.com/hook")
    env(ENDPOINTS__CRM__SECRETS=SECRET)
    monkeypatch.delenv(f"REGWORKER_{name.removesuffix('_FILE')}", raising=False)
    env(**{name: secret})
    found = problems()
    assert found[f"REGWORKER_{name}"] == NO_FILE
    assert "canary" not in str(found)


@pytest.mark.parametrize("name", ["CA_FILE", "CLIENT_CERT_FILE", "APP_KEY_FILE"])
def test_a_secret_in_the_place_of_an_accounts_file_is_not_shown(env: Any, name: str) -> None:
    """Accounts are checked by the worker, with their provider's own fields."""
    env(ACCOUNTS__SKYPOSTAL__EU__USER_CODE="1", ACCOUNTS__SKYPOSTAL__EU__COPA_ID="1")
    env(ACCOUNTS__SKYPOSTAL__EU__BASE_URL="https://a.example")
    if name != "APP_KEY_FILE":
        env(ACCOUNTS__SKYPOSTAL__EU__APP_KEY="key")
    env(**{f"ACCOUNTS__SKYPOSTAL__EU__{name}": "canary/x"})

    def start() -> None:
        settings = Settings.load()
        Accounts(Registry(settings.providers), settings.accounts, settings.way_out)

    with pytest.raises(SettingsError) as caught:
        start()
    assert caught.value.problems == ((f"REGWORKER_ACCOUNTS__SKYPOSTAL__EU__{name}", NO_FILE),)


@pytest.fixture
def secret_file(tmp_path: Path) -> Any:
    """Writes a file and returns its path: `secret_file("text")`."""

    def write(content: str | bytes, name: str = "secret") -> str:
        file = tmp_path / name
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(file)

    return write


def test_every_setting_may_stand_in_a_file(
    env: Any, secret_file: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Top-level settings and account fields, from variables and from the settings file; the last
    line end is removed."""
    monkeypatch.delenv("REGWORKER_SEALING_KEYS")
    key = secret_file("\ufeffcanary \r\n", "key")
    config = f'[accounts.skypostal.eu]\napp_key_file = "{key}"\nca_file = "/ca"\n'
    env(
        SEALING_KEYS_FILE=secret_file(f"{KEYS}\n", "keys"),
        REDIS_URL_FILE=secret_file("redis://:canary@h:6379/0", "url"),
        CONFIG=secret_file(config, "config"),
        ENDPOINTS__CRM__KIND="webhook",
        ENDPOINTS__CRM__URL="https://crm.example.com/hook",
        ENDPOINTS__CRM__SECRETS_FILE=secret_file(f"{SECRET},{SECRET}\n", "secrets"),
    )
    settings = Settings.load()
    assert settings.sealing_keys.get_secret_value() == KEYS
    assert settings.redis_url == "redis://:canary@h:6379/0"
    assert settings.accounts == {"skypostal": {"eu": {"app_key": "canary ", "ca_file": "/ca"}}}
    assert isinstance(crm := settings.endpoints["crm"], WebhookEndpoint)
    assert len(crm.secrets) == 2
    assert {file.name for file in settings.files} == {"config", "key", "keys", "url", "secrets"}


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("", "is empty: "),
        (" \n", "is empty: "),
        (b"\xffcanary", "is not UTF-8: "),
        ("canary" * 20000, "is larger than 64 KiB: "),
    ],
)
def test_a_file_that_holds_no_setting_is_named(
    env: Any, secret_file: Any, content: str | bytes, what: str
) -> None:
    """The error names the variable and the file, and shows no content."""
    file = secret_file(content, "file")
    env(REDIS_URL_FILE=file, ACCOUNTS__OPEN2B__EU__SECRET_KEY_FILE=file)
    found = problems()
    assert found == dict.fromkeys(
        ("REGWORKER_REDIS_URL_FILE", "REGWORKER_ACCOUNTS__OPEN2B__EU__SECRET_KEY_FILE"),
        f"{what}{file}",
    )


def test_a_setting_that_stands_twice_is_named(env: Any, secret_file: Any) -> None:
    """It is not clear which of the two is right."""
    env(SEALING_KEYS_FILE=secret_file(KEYS))
    assert problems() == {
        "REGWORKER_SEALING_KEYS_FILE": "is set together with SEALING_KEYS: set only one of them"
    }


def test_a_file_for_what_is_no_setting_is_named(env: Any, secret_file: Any) -> None:
    """The error suggests the most likely setting."""
    env(REDIS_ULR_FILE=secret_file("canary"))
    assert "REGWORKER_REDIS_URL" in problems()["REGWORKER_REDIS_ULR_FILE"]

"""Settings: read once, from variables or a file; an error names the variable and shows no value."""

import re
from pathlib import Path
from typing import Any

import pytest

import worker
from worker.errors import SettingsError
from worker.settings import LEDGER_WORDS, Settings, StreamEndpoint, WebhookEndpoint, variable

KEYS = "test:" + "A" * 43
SECRET = "whsec_canary12"
WEBHOOK = {"KIND": "webhook", "URL": "https://crm.example.com/hook", "SECRETS": SECRET}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is set but what every installation needs."""
    monkeypatch.delenv("REGWORKER_CONFIG", raising=False)
    monkeypatch.setenv("REGWORKER_SEALING_KEYS", KEYS)


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets variables: `env(LEASE=9)`."""

    def put(**values: Any) -> None:
        for name, value in values.items():
            monkeypatch.setenv(f"REGWORKER_{name}", str(value))

    return put


def problems(**values: Any) -> dict[str, str]:
    """What is wrong with the settings, by variable."""
    with pytest.raises(SettingsError) as caught:
        Settings.load(**values)
    assert "canary" not in str(caught.value)
    assert caught.value.__cause__ is None
    return dict(caught.value.problems)


def test_the_defaults_need_nothing_but_keys() -> None:
    """Everything else is safe as it comes."""
    settings = Settings.load()
    assert settings.redis_url == "redis://127.0.0.1:6379/0"
    assert settings.settle_delay > settings.call_budget


def test_keys_are_required_and_the_error_says_how_to_make_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without them nothing can be sealed."""
    monkeypatch.delenv("REGWORKER_SEALING_KEYS")
    assert "regworker keys new" in problems()["REGWORKER_SEALING_KEYS"]


def test_the_broker_is_the_ledgers_server_unless_named(env: Any) -> None:
    """One server is enough."""
    env(REDIS_URL="redis://one:6379/0")
    assert Settings.load().broker == "redis://one:6379/0"
    env(BROKER_URL="amqp://two")
    assert Settings.load().broker == "amqp://two"


def test_an_account_is_set_field_by_field(env: Any) -> None:
    """Names in variables are of upper case, in jobs of lower case."""
    env(ACCOUNTS__SKYPOSTAL__DEFAULT__USER_CODE=396, ACCOUNTS__SKYPOSTAL__EU__COPA_ID="616")
    assert Settings.load().accounts["skypostal"] == {
        "default": {"user_code": "396"},
        "eu": {"copa_id": "616"},
    }


@pytest.mark.parametrize("key", ["1656e7", "012345", "true", "null", "1.50", '"quoted"', "a,b"])
def test_a_key_stays_the_text_it_is(env: Any, key: str) -> None:
    """What looks like a number to a JSON reader is somebody's key."""
    env(ACCOUNTS__SKYPOSTAL__DEFAULT__APP_KEY=key)
    assert Settings.load().accounts["skypostal"]["default"]["app_key"] == key


def test_results_is_an_endpoint_without_being_configured() -> None:
    """The stream is always there."""
    endpoint = Settings.load().endpoint("results")
    assert endpoint == StreamEndpoint(kind="stream", stream="{reg}:results")
    assert Settings.load().endpoint("crm") is None


def test_results_may_be_configured_to_be_something_else(env: Any) -> None:
    """A name is what the operator says it is."""
    env(ENDPOINTS__RESULTS__KIND="stream", ENDPOINTS__RESULTS__STREAM="{reg}:mine")
    endpoint = Settings.load().endpoint("results")
    assert isinstance(endpoint, StreamEndpoint)
    assert endpoint.stream == "{reg}:mine"


def test_a_webhook_takes_several_secrets(env: Any) -> None:
    """So that a receiver can change over."""
    env(**{f"ENDPOINTS__CRM__{name}": value for name, value in WEBHOOK.items()})
    env(ENDPOINTS__CRM__SECRETS="whsec_canary11, whsec_canary22")
    endpoint = Settings.load().endpoint("crm")
    assert isinstance(endpoint, WebhookEndpoint)
    assert [one.get_secret_value() for one in endpoint.secrets] == [
        "whsec_canary11",
        "whsec_canary22",
    ]
    assert "canary" not in repr(Settings.load())


def test_a_webhook_is_encrypted_unless_allowed_otherwise(env: Any) -> None:
    """Events hold keys."""
    env(**{f"ENDPOINTS__CRM__{name}": value for name, value in WEBHOOK.items()})
    env(ENDPOINTS__CRM__URL="http://crm.example.com/hook")
    assert "https://" in problems()["REGWORKER_ENDPOINTS__CRM"]
    env(ENDPOINTS__CRM__ALLOW_HTTP="true")
    assert Settings.load().endpoint("crm") is not None


@pytest.mark.parametrize(
    "url",
    [
        "https://crm.example.com",
        "https://crm.example.com.:8443/a/b?c=d",
        "https://192.0.2.1/hook",
        "https://[2001:db8::1]:8443/hook",
        "https://3com.example/hook",
        "https://bücher.example/hook",
    ],
)
def test_an_url_that_all_read_alike_is_taken(env: Any, url: str) -> None:
    """Names, and addresses in their usual form; where they lead is checked when they are used."""
    env(**{f"ENDPOINTS__CRM__{name}": value for name, value in (WEBHOOK | {"URL": url}).items()})
    endpoint = Settings.load().endpoint("crm")
    assert isinstance(endpoint, WebhookEndpoint)
    assert endpoint.url == url
    assert url not in repr(endpoint), "a path may hold a secret"


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"KIND": "webhook", "URL": "https://x"}, "ENDPOINTS__CRM__SECRETS"),
        ({"KIND": "webhook", "SECRETS": SECRET}, "ENDPOINTS__CRM__URL"),
        ({**WEBHOOK, "URL": "ftp://canary"}, "ENDPOINTS__CRM__URL"),
        ({**WEBHOOK, "COLOR": "canary"}, "ENDPOINTS__CRM__COLOR"),
        ({**WEBHOOK, "SECRETS": "whsec_canary"}, "ENDPOINTS__CRM__SECRETS"),
        ({**WEBHOOK, "SECRETS": f"{SECRET},whsec_-_canary"}, "ENDPOINTS__CRM__SECRETS"),
        ({**WEBHOOK, "SECRETS": "whsec_"}, "ENDPOINTS__CRM__SECRETS"),
        ({**WEBHOOK, "URL": "https://canary:canary@x/hook"}, "ENDPOINTS__CRM__URL"),
        ({**WEBHOOK, "URL": "https://x\\@canary/hook"}, "ENDPOINTS__CRM__URL"),
        ({**WEBHOOK, "URL": "https://2130706433/canary"}, "ENDPOINTS__CRM__URL"),
        ({**WEBHOOK, "URL": "https://0x7f.0.0.1/canary"}, "ENDPOINTS__CRM__URL"),
        ({**WEBHOOK, "URL": "https://canary.0x7f/"}, "ENDPOINTS__CRM__URL"),
        ({**WEBHOOK, "URL": "https://0177.0.0.1./canary"}, "ENDPOINTS__CRM__URL"),
        ({**WEBHOOK, "URL": "https://127.1/canary"}, "ENDPOINTS__CRM__URL"),
        ({**WEBHOOK, "URL": "https://[::1/canary"}, "ENDPOINTS__CRM__URL"),
        ({**WEBHOOK, "URL": "https://x:canary/"}, "ENDPOINTS__CRM__URL"),
        ({**WEBHOOK, "URL": "https://:443/canary"}, "ENDPOINTS__CRM__URL"),
        ({**WEBHOOK, "MAX_IN_FLIGHT": "0"}, "ENDPOINTS__CRM__MAX_IN_FLIGHT"),
        ({"KIND": "queue"}, "ENDPOINTS__CRM__QUEUE"),
        ({"KIND": "queue", "QUEUE": "{reg}:jobs"}, "ENDPOINTS__CRM__QUEUE"),
        ({"KIND": "queue", "QUEUE": "registrations.live"}, "ENDPOINTS__CRM__QUEUE"),
        ({"KIND": "stream", "STREAM": "elsewhere"}, "ENDPOINTS__CRM__STREAM"),
        ({"KIND": "pigeon"}, "ENDPOINTS__CRM"),
        ({"URL": "https://x"}, "ENDPOINTS__CRM"),
    ],
    ids=str,
)
def test_an_endpoint_that_is_wrong_is_named(env: Any, fields: dict[str, str], name: str) -> None:
    """By the variable that is to be mended."""
    env(**{f"ENDPOINTS__CRM__{field}": value for field, value in fields.items()})
    assert list(problems()) == [f"REGWORKER_{name}"]


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"LEASE": 0}, "LEASE"),
        ({"LEASE": "canary"}, "LEASE"),
        ({"RETENTION": 60}, "RETENTION"),
        ({"MAX_ATTEMPTS": 0}, "MAX_ATTEMPTS"),
        ({"POOL": "gevent"}, "POOL"),
        ({"LOG_LEVEL": "loud"}, "LOG_LEVEL"),
    ],
    ids=str,
)
def test_a_value_that_is_wrong_is_named(env: Any, values: dict[str, Any], name: str) -> None:
    """By its variable, without the value."""
    env(**values)
    assert list(problems()) == [f"REGWORKER_{name}"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"CALL_BUDGET": 60, "SETTLE_DELAY": 60}, "settle_delay must be longer than call_budget"),
        ({"LEASE": 7.9, "LEASE_RENEWAL": 4}, "lease must be at least twice lease_renewal"),
    ],
)
def test_settings_that_break_the_promise_together_are_refused(
    env: Any, values: dict[str, Any], words: str
) -> None:
    """The settle delay outlasts a call; a lease outlives a renewal that is missed."""
    env(**values)
    assert words in " ".join(problems().values())


def test_an_unknown_setting_is_refused() -> None:
    """A name that is misspelt has no effect, and should say so."""
    assert problems(colour="canary") == {"REGWORKER_COLOUR": "is not a setting"}


def test_a_file_is_read_and_variables_win(
    env: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is set in the environment overrides the file; accounts are put together."""
    file = tmp_path / "worker.toml"
    file.write_text(
        'lease = 20\nlease_renewal = 5\nproviders = ["a:B"]\n'
        '[accounts.skypostal.default]\nuser_code = "396"\n'
    )
    env(CONFIG=file, LEASE=30, ACCOUNTS__SKYPOSTAL__DEFAULT__COPA_ID="616")
    settings = Settings.load()
    assert (settings.lease, settings.lease_renewal, settings.providers) == (30, 5, ["a:B"])
    assert settings.accounts["skypostal"]["default"] == {"user_code": "396", "copa_id": "616"}


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "no such file"), ("lease = [canary", "is no TOML"), ("lease = 0", "greater than 0")],
)
def test_a_file_that_cannot_be_used_is_an_error_of_ours(
    env: Any, tmp_path: Path, text: str | None, words: str
) -> None:
    """Missing, unreadable or wrong: the operator gets a sentence."""
    file = tmp_path / "worker.toml"
    if text is not None:
        file.write_text(text)
    env(CONFIG=file)
    assert words in " ".join(problems().values())


@pytest.mark.parametrize("name", ["ACCOUNTS", "ENDPOINTS"])
def test_a_list_or_object_that_is_no_json_is_an_error_of_ours(env: Any, name: str) -> None:
    """And does not show what it holds."""
    env(**{name: '{"canary": '})
    assert name.lower() in " ".join(problems().values())


def test_providers_are_named_with_commas_or_as_json(env: Any) -> None:
    """Both ways of writing a list."""
    env(PROVIDERS="a:B, c:D")
    assert Settings.load().providers == ["a:B", "c:D"]
    env(PROVIDERS='["a:B"]')
    assert Settings.load().providers == ["a:B"]


def test_settings_do_not_change() -> None:
    """They are read once."""
    with pytest.raises(ValueError, match="frozen"):
        Settings.load().lease = 1  # type: ignore[misc]


def test_secrets_are_not_shown() -> None:
    """Settings that get into a log give nothing away."""
    settings = Settings.load(accounts={"a": {"b": {"app_key": "canary"}}}, sentry_dsn="canary")
    assert "canary" not in repr(settings)
    assert "A" * 43 not in repr(settings)


def test_a_variable_is_named_by_its_path() -> None:
    """As messages name it."""
    assert variable("accounts", "skypostal") == "REGWORKER_ACCOUNTS__SKYPOSTAL"


@pytest.mark.parametrize("word", sorted(LEDGER_WORDS))
def test_a_stream_is_none_of_the_ledgers_own_keys(env: Any, word: str) -> None:
    """It would break the ledger at the first result."""
    env(ENDPOINTS__CRM__KIND="stream", ENDPOINTS__CRM__STREAM=f"{{reg}}:{word}")
    assert "ledger's own" in problems()["REGWORKER_ENDPOINTS__CRM__STREAM"]


def test_every_key_of_the_ledger_is_known_by_its_first_word() -> None:
    """Whatever the scripts and the commands name; a script may name `results`."""
    named = re.compile(r"(?:PREFIX \.\. '|\{PREFIX\}|\{reg\}:)([a-z]+)")
    found = set()
    for file in Path(worker.__file__).parent.rglob("*"):
        if file.suffix in {".py", ".lua"}:
            found |= set(named.findall(file.read_text("utf-8")))
    assert found - {"results"} == LEDGER_WORDS

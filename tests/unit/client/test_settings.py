"""Settings are read once, from variables or a file; an error names the variable and shows no
value."""

import functools
import re
import sys
import tomllib
import unicodedata
from base64 import b64encode
from pathlib import Path
from typing import Any, get_args
from urllib.parse import parse_qsl, urlsplit

import hypothesis
import pytest
from hypothesis import strategies as st

import regworker
import worker
from regworker import tls
from regworker.domain.errors import SettingsError
from regworker.named_files import NO_FILE
from regworker.settings import (
    LEDGER_WORDS,
    Settings,
    StreamEndpoint,
    WebhookEndpoint,
    files,
    variable,
)
from tests.ambiguous import AMBIGUOUS
from tests.tls import Authority
from worker.monitoring import doctor
from worker.providers.registry import Accounts, Registry

KEYS = "test:" + "A" * 43
SECRET = "whsec_canary12000000000000000000000000"
WEBHOOK = {"KIND": "webhook", "URL": "https://crm.example.com/hook", "SECRETS": SECRET}


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


def problems(**values: Any) -> dict[str, str]:
    """The problems of the settings, by variable."""
    with pytest.raises(SettingsError) as caught:
        Settings.load(**values)
    assert "canary" not in str(caught.value)
    assert caught.value.__cause__ is None
    return dict(caught.value.problems)


def test_the_defaults_need_nothing_but_keys() -> None:
    """All other settings have safe defaults."""
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
    """One server can do both."""
    env(REDIS_URL="redis://one:6379/0")
    assert Settings.load().broker == "redis://one:6379/0"
    env(BROKER_URL="amqp://two")
    assert Settings.load().broker == "amqp://two"


@pytest.mark.parametrize(
    "url",
    [
        *("http://canary/", "sqs://", "memory://", "filesystem://", "canary"),
        "redis://h:6379/0;sqs://canary:1",
    ],
)
def test_a_broker_that_cannot_be_worked_with_is_named(env: Any, url: str) -> None:
    """Transports other than Redis and RabbitMQ do not check messages; the error comes before any
    connection."""
    env(BROKER_URL=url)
    with pytest.raises(SettingsError, match="REGWORKER_BROKER_URL: is not of the form") as caught:
        Settings.load()
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        *("redis://h/0", "rediss://u:p@h:6380/1", "amqp://h", "amqps://h/v", "pyamqp://h//"),
        *("redis+socket:///run/redis.sock", "amqp://one//;amqp://two//"),
    ],
)
def test_brokers_that_can_be_worked_with(env: Any, url: str) -> None:
    """Redis and RabbitMQ, in all forms of their URLs."""
    env(BROKER_URL=url)
    usual = url.replace("pyamqp:", "amqp:").replace("redis+socket:", "unix:")
    assert Settings.load().broker.startswith(usual)


def test_an_account_is_set_field_by_field(env: Any) -> None:
    """Variables have names in upper case, jobs in lower case."""
    env(ACCOUNTS__SKYPOSTAL__DEFAULT__USER_CODE=396, ACCOUNTS__SKYPOSTAL__EU__COPA_ID="616")
    assert Settings.load().accounts["skypostal"] == {
        "default": {"user_code": "396"},
        "eu": {"copa_id": "616"},
    }


@pytest.mark.parametrize("key", ["1656e7", "012345", "true", "null", "1.50", '"quoted"', "a,b"])
def test_a_key_stays_the_text_it_is(env: Any, key: str) -> None:
    """A key that looks like a JSON number stays a text."""
    env(ACCOUNTS__SKYPOSTAL__DEFAULT__APP_KEY=key)
    assert Settings.load().accounts["skypostal"]["default"]["app_key"] == key


def test_results_is_an_endpoint_without_being_configured() -> None:
    """The results stream always exists."""
    endpoint = Settings.load().endpoint("results")
    assert endpoint == StreamEndpoint(kind="stream", stream="{reg}:results")
    assert Settings.load().endpoint("crm") is None


def test_results_may_be_configured_to_be_something_else(env: Any) -> None:
    """An operator can give the name to another stream."""
    env(ENDPOINTS__RESULTS__KIND="stream", ENDPOINTS__RESULTS__STREAM="{reg}:mine")
    endpoint = Settings.load().endpoint("results")
    assert isinstance(endpoint, StreamEndpoint)
    assert endpoint.stream == "{reg}:mine"


def test_a_webhook_takes_several_secrets(env: Any) -> None:
    """A receiver can change its secret without a gap."""
    env(**{f"ENDPOINTS__CRM__{name}": value for name, value in WEBHOOK.items()})
    env(ENDPOINTS__CRM__SECRETS=f"{SECRET}, {SECRET.replace('12', '22')}")
    endpoint = Settings.load().endpoint("crm")
    assert isinstance(endpoint, WebhookEndpoint)
    assert [one.get_secret_value() for one in endpoint.secrets] == [
        SECRET,
        SECRET.replace("12", "22"),
    ]
    assert "canary" not in repr(Settings.load())


def test_a_webhook_is_encrypted_unless_allowed_otherwise(env: Any) -> None:
    """Events contain customers' keys."""
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
    """Host names, and addresses in their usual form; the address itself is checked when it is
    used."""
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
        ({**WEBHOOK, "SECRETS": "whsec_canary12"}, "ENDPOINTS__CRM__SECRETS"),
        (
            {**WEBHOOK, "SECRETS": f"whsec_{b64encode(b'x' * 23).decode()}"},
            "ENDPOINTS__CRM__SECRETS",
        ),
        ({**WEBHOOK, "SECRETS": f"{SECRET},whsec_canary12"}, "ENDPOINTS__CRM__SECRETS"),
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
        ({"KIND": "pigeon"}, "ENDPOINTS__CRM__KIND"),
        ({"URL": "https://x"}, "ENDPOINTS__CRM__KIND"),
        ({**WEBHOOK, "URL": "https://canary:0/"}, "ENDPOINTS__CRM__URL"),
    ],
    ids=str,
)
def test_an_endpoint_that_is_wrong_is_named(env: Any, fields: dict[str, str], name: str) -> None:
    """The error names the variable to fix."""
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
        ({"SOURCE": "/canary x"}, "SOURCE"),
        ({"SOURCE": "/canary\n"}, "SOURCE"),
        ({"SERVE_USER_HEADER": "X-User canary"}, "SERVE_USER_HEADER"),
        ({"SERVE_USER_HEADER": "X-User: canary"}, "SERVE_USER_HEADER"),
        ({"SERVE_GROUPS_HEADER": "X-Groups, canary"}, "SERVE_GROUPS_HEADER"),
    ],
    ids=str,
)
def test_a_value_that_is_wrong_is_named(env: Any, values: dict[str, Any], name: str) -> None:
    """The error names the variable, and does not show the value."""
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
    """The settle delay must be longer than a call, and a lease longer than a missed renewal."""
    env(**values)
    assert words in " ".join(problems().values())


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


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"KIND": "webhok"}, "is none of stream, webhook, queue"),
        ({"KIND": " ", "URL": "https://x"}, "is required: one of stream, webhook, queue"),
        ({"URL": "https://x"}, "is required: one of stream, webhook, queue"),
    ],
)
def test_a_kind_that_is_missing_is_told_from_a_wrong_one(
    env: Any, fields: dict[str, str], said: str
) -> None:
    """The error lists the kinds."""
    env(**{f"ENDPOINTS__CRM__{field}": value for field, value in fields.items()})
    assert problems() == {"REGWORKER_ENDPOINTS__CRM__KIND": said}


@pytest.mark.parametrize("path", ["os:path", "json:JSONDecoder", "pathlib:Path"])
def test_what_is_no_provider_is_named(path: str) -> None:
    """An import path that leads to something else is an error of the setting."""
    with pytest.raises(SettingsError, match=f"REGWORKER_PROVIDERS: {path}: is no provider"):
        Registry([path])


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


@pytest.mark.parametrize(
    "dsn",
    [
        "canary",
        "https://canary/1",
        "https://canary@/1",
        "https://canary@host",
        "https://canary@host/",
        "https://canary@host/project",
        "https://canary@host:port/1",
        "https://canary@[::1/1",
        "ftp://canary@host/1",
    ],
)
def test_a_sentry_dsn_that_its_library_would_refuse_is_named_by_its_variable(
    env: Any, dsn: str
) -> None:
    """Sentry's own error names neither the variable nor the fault, and shows the key."""
    env(SENTRY_DSN=dsn)
    assert "https://<key>@<host>/" in problems()["REGWORKER_SENTRY_DSN"]


@pytest.mark.parametrize(
    "dsn", ["https://key@o1.ingest.sentry.io/42", "http://key:secret@127.0.0.1:9000/prefix/1"]
)
def test_a_sentry_dsn_is_taken_as_its_library_takes_it(env: Any, dsn: str) -> None:
    """A DSN of sentry.io, and one of a self-hosted server under a path."""
    env(SENTRY_DSN=dsn)
    found = Settings.load().sentry_dsn
    assert found is not None
    assert found.get_secret_value() == dsn


def test_a_file_is_read_and_variables_win(
    env: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment overrides the file; the fields of an account may come from both."""
    file = tmp_path / "worker.toml"
    file.write_text(
        'lease = 20\nlease_renewal = 5\nproviders = ["a:B"]\n'
        '[accounts.skypostal.default]\nuser_code = "396"\n'
    )
    env(CONFIG=file, LEASE=30, ACCOUNTS__SKYPOSTAL__DEFAULT__COPA_ID="616")
    settings = Settings.load()
    assert (settings.lease, settings.lease_renewal, settings.providers) == (30, 5, ["a:B"])
    assert settings.accounts["skypostal"]["default"] == {"user_code": "396", "copa_id": "616"}


STORES = """
lease = 20

[endpoints.crm]
kind = "stream"  # [accounts.open2b.no]

[accounts.open2b.one]
base_url = "https://one.example.com/[x]"
secret_key = 'it # is'  # a note
rate = 50

# between
[accounts.open2b.two]
base_url = "https://two.example.com"
secret_key_file = "/no/such/file"

[endpoints.shop]
kind = "stream"
stream = "{reg}:shop"
"""


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_a_client_does_not_read_the_accounts_of_a_file(
    env: Any, tmp_path: Path, line_end: str
) -> None:
    """Nor the files with their keys; the settings around them are as they are for a worker."""
    file = tmp_path / "settings.toml"
    file.write_bytes(STORES.replace("\n", line_end).encode())
    env(CONFIG=file)
    found = Settings.load_for_client()
    assert (found.accounts, found.lease) == ({}, 20)
    assert list(found.streams()) == ["crm", "results", "shop"]
    assert problems() == {"REGWORKER_ACCOUNTS__OPEN2B__TWO__SECRET_KEY_FILE": NO_FILE}


@pytest.mark.parametrize(
    "table",
    [
        '[accounts.open2b.one]\nnotes = """\n[accounts.open2b.two]\na = 1\n"""\n',
        "[accounts.open2b.one]\nnotes = [\n[1],\n[2]\n]\n",
        '[accounts.open2b."one"]\na = 1\n',
        '[accounts.open2b.one]\na = "\\""\n',
        "[accounts.open2b]\none = {a = 1}\n",
        "[accounts.open2b.one]\n[accounts.open2b.one.more]\na = 1\n",
    ],
)
def test_a_table_of_another_form_is_parsed(table: str) -> None:
    """No guess where it ends: what comes after it is read by the same rules as at a worker."""
    text = f'lease = 20\n{table}[endpoints.crm]\nkind = "stream"\n'
    left = tomllib.loads(files.without_accounts(text.encode()).decode())
    whole = tomllib.loads(text)
    assert left["endpoints"] == whole["endpoints"] == {"crm": {"kind": "stream"}}
    assert "one" in left["accounts"]["open2b"]


def test_a_file_is_read_again_when_it_changed(env: Any, tmp_path: Path) -> None:
    """Also at once, with as many characters; and what is read before stays as it was."""
    file = tmp_path / "settings.toml"
    env(CONFIG=file)
    found = []
    for number in (20, 30, 20):
        file.write_text(f"lease = {number}\n[accounts.open2b.one]\nrate = {number}\n")
        found.append(Settings.load())
        found[-1].accounts["open2b"]["one"]["more"] = 1
    assert [one.lease for one in found] == [20, 30, 20]
    assert Settings.load().accounts == {"open2b": {"one": {"rate": 20}}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"lease = [canary", "is not TOML"),
        (b'lease = "sch\xf6n canary"', "is not UTF-8"),
        (b"canary = " + b"[" * 5000 + b"]" * 5000, "has too many brackets inside brackets"),
        (b"canary = " + b"{a=" * 5000 + b"1" + b"}" * 5000, "has too many brackets inside"),
        (None, "is not a file"),
    ],
)
def test_a_file_that_cannot_be_used_is_an_error_of_ours(
    env: Any, tmp_path: Path, text: bytes | None, words: str
) -> None:
    """The message names the setting and the file, and shows nothing of its content."""
    file = tmp_path / "worker.toml"
    file.mkdir() if text is None else file.write_bytes(text)
    env(CONFIG=file)
    for load in (Settings.load, Settings.load_for_client):
        with pytest.raises(SettingsError) as caught:
            load()
        [(name, what)] = caught.value.problems
        assert name == "REGWORKER_CONFIG"
        assert what.startswith(words)
        assert what.endswith(str(file))


def test_a_setting_in_a_file_that_is_wrong_is_named(env: Any, tmp_path: Path) -> None:
    """As one in a variable."""
    file = tmp_path / "worker.toml"
    file.write_text("lease = 0")
    env(CONFIG=file)
    assert "greater than 0" in problems()["REGWORKER_LEASE"]


def test_a_file_that_cannot_be_read_is_named(env: Any) -> None:
    """With the reason. (Root reads every file but this one.)"""
    file = "/proc/self/mem"
    env(CONFIG=file)
    assert problems() == {"REGWORKER_CONFIG": f"cannot be read (Input/output error): {file}"}


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


@pytest.mark.parametrize("name", ["ACCOUNTS", "ENDPOINTS"])
def test_a_list_or_object_that_is_no_json_is_an_error_of_ours(env: Any, name: str) -> None:
    """The message does not show the content."""
    for text in ('{"canary": ', '{"canary":' * 100_000):
        env(**{name: text})
        assert problems() == {f"REGWORKER_{name}": "is not JSON"}


def test_providers_are_named_with_commas_or_as_json(env: Any) -> None:
    """Commas and JSON both work."""
    env(PROVIDERS="a:B, c:D")
    assert Settings.load().providers == ["a:B", "c:D"]
    env(PROVIDERS=" a:B,, c:D ,")
    assert Settings.load().providers == ["a:B", "c:D"]
    env(PROVIDERS='["a:B"]')
    assert Settings.load().providers == ["a:B"]


def test_settings_do_not_change() -> None:
    """A settings object cannot be modified."""
    with pytest.raises(ValueError, match="frozen"):
        Settings.load().lease = 1  # type: ignore[misc]


def test_secrets_are_not_shown() -> None:
    """Settings in a log show no secrets."""
    settings = Settings.load(
        accounts={"a": {"b": {"app_key": "canary"}}}, sentry_dsn="https://canary@host/1"
    )
    assert "canary" not in repr(settings)
    assert "A" * 43 not in repr(settings)


def test_a_variable_is_named_by_its_path() -> None:
    """A path of field names gives the variable's name in messages."""
    assert variable("accounts", "skypostal") == "REGWORKER_ACCOUNTS__SKYPOSTAL"


@pytest.mark.parametrize("word", sorted(LEDGER_WORDS))
def test_a_stream_is_none_of_the_ledgers_own_keys(env: Any, word: str) -> None:
    """Such a stream would break the ledger at the first result."""
    env(ENDPOINTS__CRM__KIND="stream", ENDPOINTS__CRM__STREAM=f"{{reg}}:{word}")
    assert "a key of the ledger itself" in problems()["REGWORKER_ENDPOINTS__CRM__STREAM"]


def test_every_key_of_the_ledger_is_known_by_its_first_word() -> None:
    """`LEDGER_WORDS` has the first word of every key in scripts and commands; `results` may be
    used."""
    named = re.compile(r"(?:PREFIX \.\. '|\{PREFIX\}|\{reg\}:)([a-z]+)")
    found = set()
    folders = [Path(one.__file__).parent for one in (regworker, worker)]
    for file in (one for folder in folders for one in folder.rglob("*")):
        if file.suffix in {".py", ".lua"}:
            found |= set(named.findall(file.read_text("utf-8")))
    assert found - {"results"} == LEDGER_WORDS


@pytest.mark.parametrize("pool", ["prefork", "solo", "threads"])
def test_another_pool_is_refused_with_what_to_do_instead(env: Any, pool: str) -> None:
    """Celery's prefork pool would start a process for each of a hundred slots."""
    env(POOL=pool)
    assert "start more workers" in problems()["REGWORKER_POOL"]
    env(POOL="loop")
    assert Settings.load().pool == "loop"


LENGTHS = [name for name, field in Settings.model_fields.items() if field.annotation is float]


@pytest.mark.parametrize("value", ["inf", "1e400", "nan", "1e300", "-inf", "4000000000"])
@pytest.mark.parametrize("name", LENGTHS)
def test_a_length_of_time_that_no_clock_can_count_is_refused_by_name(name: str, value: str) -> None:
    """With an infinite deadline no job could be accepted, and with an infinite retention none
    could end."""
    assert f"REGWORKER_{name.upper()}" in problems(**{name: value})


COUNTS = [
    name
    for name, field in Settings.model_fields.items()
    if int in {field.annotation, *get_args(field.annotation)}
]


@pytest.mark.parametrize("value", ["1000000001", "1" + "0" * 30, "1" + "0" * 400, "1e308"])
@pytest.mark.parametrize("name", COUNTS)
def test_a_number_that_lua_would_round_is_refused_by_name(name: str, value: str) -> None:
    """Such a count is a mistake, and its product with another would be infinite."""
    assert f"REGWORKER_{name.upper()}" in problems(**{name: value})


@pytest.mark.parametrize("value", ["inf", "nan", "1e300"])
def test_an_endpoints_length_of_time_has_an_end(value: str) -> None:
    """A stream must be trimmed some day, and a call to a webhook must end."""
    hook = {"kind": "webhook", "url": "https://a.example", "secrets": [SECRET], "timeout": value}
    named = problems(endpoints={"results": {"kind": "stream", "retention": value}, "crm": hook})
    assert set(named) == {
        "REGWORKER_ENDPOINTS__RESULTS__RETENTION",
        "REGWORKER_ENDPOINTS__CRM__TIMEOUT",
    }


@pytest.mark.parametrize("url", ["rediss://h:1/0", "amqps://h:1//", "redis://h:1/0"])
@pytest.mark.parametrize("name", ["REDIS_URL", "BROKER_URL"])
@pytest.mark.parametrize(
    "option",
    [
        *("ssl_cert_reqs=none", "ssl_cert_reqs=optional", "ssl_cert_reqs=CERT_NONE"),
        *("ssl_cert_reqs=", "ssl_check_hostname=false", "ssl_check_hostname=0", "ssl=canary"),
        *("ssl_min_version=769", "ssl_ciphers=canary", "ssl_exclude_verify_flags=canary"),
        "ssl_ca_certs=/a&ssl_cert_reqs=none",
    ],
)
def test_an_option_that_would_verify_less_is_refused_by_name(
    env: Any, url: str, name: str, option: str
) -> None:
    """In any URL, also in the second one of a list."""
    if name == "REDIS_URL" and url.startswith("amqp"):
        url = "rediss://h:1/0"
    lists = [f"{url};{url}?{option}"] if name == "BROKER_URL" else []
    for given in (f"{url}?{option}", *lists):
        env(**{name: given})
        [(variable_, what)] = problems().items()
        assert variable_ == f"REGWORKER_{name}"
        assert option.split("&")[-1].split("=")[0] in what
        assert "always verified" in what


@functools.cache
def like_separators() -> list[str]:
    """Characters that `urlsplit` takes for separators; its error would show the password."""
    return [
        one
        for one in map(chr, range(0x80, sys.maxunicode + 1))
        if not set(unicodedata.normalize("NFKC", one)).isdisjoint("/?#@:")
    ]


@pytest.mark.parametrize("name", ["REDIS_URL", "BROKER_URL"])
@pytest.mark.parametrize(
    "url",
    [
        *("redis://u:canary{}kanari@h:1/0", "rediss://canary{}kanari@h/0", "amqp://u:canary{}@h/v"),
        *("amqps://u:canary@kanari{}h/v", "sentinel://:canary{}kanari@h:1,g:2/main/0"),
        *("amqp://u:canary@h;amqp://u:kanari{}@h", "unix://u:canary{}@/kanari"),
    ],
)
def test_a_character_that_looks_like_a_separator_is_refused_without_the_password(
    env: Any, name: str, url: str
) -> None:
    """Each such character of Unicode, in any place of the URL."""
    assert len(like_separators()) > 10
    for one in like_separators():
        env(**{name: url.format(one)})
        [(variable_, what)] = problems().items()
        assert variable_ == f"REGWORKER_{name}"
        assert not [part for part in ("canary", "kanari") if part in what]


@hypothesis.given(
    start=st.sampled_from(["redis://", "rediss://", "amqp://", "sentinels://u", "unix://", ""]),
    parts=st.lists(
        st.sampled_from([*"/?#@:;&=,[]% \\", "ssl", "db=", "h", "1", "canary", "sslcanary"])
        | st.deferred(lambda: st.sampled_from(like_separators())),
        max_size=9,
    ),
)
@hypothesis.settings(max_examples=400, deadline=None)
def test_no_part_of_a_url_is_in_what_is_said_of_it(start: str, parts: list[str]) -> None:
    """Neither messages nor `repr` show it, whatever the URL contains."""
    url = start + "".join(parts)
    said: list[Any] = [tls.is_plain(url)]
    for name in ("redis_url", "broker_url"):
        values: dict[str, Any] = {"sealing_keys": KEYS, name: url}
        try:
            said.append(repr(Settings.load(**values)))
        except SettingsError as error:
            said += [str(error), error.__cause__]
    assert "canary" not in str(said)


def test_a_url_says_in_full_what_its_library_has_to_verify(env: Any, tmp_path: Path) -> None:
    """kombu verifies nothing by default; a file that the URL names has priority over the
    setting."""
    file = Authority(tmp_path).file
    env(REDIS_URL="rediss://h/0", BROKER_URL="amqps://h//?ssl_ca_certs=/own", CA_FILE=file)
    settings = Settings.load()
    options = dict(parse_qsl(urlsplit(settings.redis_url).query))
    assert options == {
        "ssl_cert_reqs": "required",
        "ssl_check_hostname": "true",
        "ssl_ca_certs": str(file),
    }
    assert dict(parse_qsl(urlsplit(settings.broker).query))["ssl_ca_certs"] == "/own"
    assert (
        Settings.load(**settings.model_dump(include={"redis_url"})).redis_url == settings.redis_url
    )


@pytest.mark.parametrize(("text", "words"), [(None, "no such file"), ("canary", "(PEM)")])
def test_a_file_of_authorities_that_holds_none_is_named(
    env: Any, tmp_path: Path, text: str | None, words: str
) -> None:
    """The process fails at its start, not at its first connection."""
    file = tmp_path / "ca.pem"
    if text is not None:
        file.write_text(text)
    env(CA_FILE=file)
    assert words in problems()["REGWORKER_CA_FILE"]


@pytest.mark.parametrize(
    ("url", "plain"),
    [
        *(("redis://ledger.example/0", True), ("amqp://broker.example", True)),
        *(("http://shop.example/x", True), ("HTTP://shop.example", True)),
        *(("redis://127.0.0.1:6379/0", False), ("redis://[::1]/0", False), ("redis:///0", False)),
        *(("redis://localhost/0", False), ("rediss://ledger.example/0", False)),
        *(("amqps://one;amqp://two", True), ("https://shop.example", False)),
        *(("unix:///run/valkey.sock", False), ("http://localhost.example", True)),
    ],
)
def test_what_others_can_read_is_known(url: str, plain: bool) -> None:
    """A connection is readable if it is not encrypted and leads to another machine."""
    assert tls.is_plain(url) is plain


def test_the_doctor_names_each_connection_that_is_not_encrypted(env: Any) -> None:
    """Of ledger, broker, account and webhook; if there is none, it says so."""
    env(REDIS_URL="redis://ledger.example/0", BROKER_URL="amqp://broker.example")
    env(ACCOUNTS__OPEN2B__EU__BASE_URL="http://shop.example", ENDPOINTS__CRM__ALLOW_HTTP="true")
    env(**{f"ENDPOINTS__CRM__{field}": value for field, value in WEBHOOK.items()})
    env(ENDPOINTS__CRM__URL="http://crm.example/hook")
    found = doctor.encryption(Settings.load())
    subjects = ["the ledger", "the broker", "account open2b/eu", "endpoint crm"]
    assert [(one.level, one.subject) for one in found] == [("warning", one) for one in subjects]
    env(REDIS_URL="rediss://ledger.example/0", BROKER_URL="amqps://broker.example")
    env(ACCOUNTS__OPEN2B__EU__BASE_URL="http://127.0.0.1:1", ENDPOINTS__CRM__URL="https://x/")
    [well] = doctor.encryption(Settings.load())
    assert well.level == "ok"


@pytest.mark.parametrize("host", AMBIGUOUS)
def test_a_webhooks_host_that_some_read_as_an_address_is_refused(env: Any, host: str) -> None:
    """In whatever letters it is written: the address check could see another host."""
    env(**{f"ENDPOINTS__CRM__{field}": value for field, value in WEBHOOK.items()})
    env(ENDPOINTS__CRM__URL=f"https://{host}/hook")
    assert list(problems()) == ["REGWORKER_ENDPOINTS__CRM__URL"]


@pytest.mark.parametrize(
    "host",
    [
        *("crm.example.com", "192.0.2.1", "[2001:db8::1]", "m\u00fcnchen.example", "0x7f.example"),
        *("\u043f\u0440\u0438\u043c\u0435\u0440.\u0440\u0444", "xn--p1ai.example", "3com.example"),
        *("\u0909\u0926\u093e\u0939\u0930\u0923.example", "mu\u0308nchen.example", "1.2.3.x4"),
    ],
)
def test_a_webhooks_host_may_be_in_any_language(env: Any, host: str) -> None:
    """Names with digits and with marks, too."""
    env(**{f"ENDPOINTS__CRM__{field}": value for field, value in WEBHOOK.items()})
    env(ENDPOINTS__CRM__URL=f"https://{host}/hook")
    assert "crm" in Settings.load().endpoints


# ── settings in files ─────────────────────────────────────────────────────────────────────────


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


@pytest.mark.parametrize("quotes", ['"""', "'''"])
def test_a_text_of_several_lines_that_looks_like_an_account_is_kept(quotes: str) -> None:
    """A client omits accounts only where it is clear that these are tables."""
    text = "[accounts.open2b.a]\nkey = 1\n[more]\n"
    content = f"note = {quotes}\n{text}{quotes}\n[accounts.open2b.b]\nkey = 2\n"
    assert tomllib.loads(files.without_accounts(content.encode()).decode())["note"] == text

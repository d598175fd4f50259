"""Settings are read once; an error names the variable and shows no value."""

from typing import Any, get_args

import pytest

from regworker.domain.errors import SettingsError
from regworker.settings import Settings
from tests.unit.client.settings.loading import problems
from worker.providers.registry import Registry


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


@pytest.mark.parametrize("path", ["os:path", "json:JSONDecoder", "pathlib:Path"])
def test_what_is_no_provider_is_named(path: str) -> None:
    """An import path that leads to something else is an error of the setting."""
    with pytest.raises(SettingsError, match=f"REGWORKER_PROVIDERS: {path}: is no provider"):
        Registry([path])


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

"""The settings of several ledgers, and the rules by which a producer finds a job's."""

from pathlib import Path
from typing import Any

import pytest

from regworker.domain.errors import LedgerUnavailable, SettingsError
from regworker.ledger.steps import carry
from regworker.settings import Settings
from regworker.several_ledgers import producer_shells as module
from regworker.several_ledgers.producer_shells import Routes

KEYS = "test:" + "A" * 43


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets variables: `env(LEDGER="b")`. Three ledgers are set, and three accounts."""
    monkeypatch.delenv("REGWORKER_CONFIG", raising=False)

    def put(**values: str) -> None:
        for name, value in values.items():
            monkeypatch.setenv(f"REGWORKER_{name}", value)

    put(
        SEALING_KEYS=KEYS,
        REDIS_URL="redis://one:6379/0",
        LEDGERS__B__REDIS_URL="redis://two:6379/0",
        LEDGERS__C__REDIS_URL="rediss://three:6379/0",
        LEDGERS__C__BROKER_URL="amqp://rabbit/c",
        ACCOUNT_LEDGERS="open2b/store7=c, open2b/store*=b",
        ACCOUNTS__OPEN2B__DEFAULT__BASE_URL="https://shop.example.com",
        ACCOUNTS__OPEN2B__STORE7__BASE_URL="https://seven.example.com",
        ACCOUNTS__OPEN2B__STORE8__BASE_URL="https://eight.example.com",
    )
    return put


def problems() -> dict[str, str]:
    """The problems of the settings, by variable."""
    with pytest.raises(SettingsError) as caught:
        Settings.load()
    assert "canary" not in str(caught.value)
    return dict(caught.value.problems)


@pytest.mark.parametrize(
    ("ledger", "server", "broker", "account"),
    [
        ("main", "redis://one:6379/0", "redis://one:6379/0", "default"),
        ("b", "redis://two:6379/0", "redis://two:6379/0", "store8"),
        ("c", "rediss://three:6379/0?", "amqp://rabbit/c", "store7"),
    ],
)
def test_a_process_has_the_servers_and_the_accounts_of_its_ledger(
    env: Any, ledger: str, server: str, broker: str, account: str
) -> None:
    """So everything in it uses that ledger alone; TLS is verified in each."""
    env(LEDGER=ledger)
    settings = Settings.load()
    assert settings.redis_url.startswith(server)
    assert settings.broker.startswith(broker)
    assert list(settings.accounts["open2b"]) == [account]
    each = settings.each_ledger()
    assert next(iter(each)) == ledger
    assert {name: one.redis_url.partition("?")[0] for name, one in each.items()} == {
        "main": "redis://one:6379/0",
        "b": "redis://two:6379/0",
        "c": "rediss://three:6379/0",
    }
    assert "ssl_cert_reqs=required" in each["c"].redis_url
    assert all(one.ledger == name and not one.ledgers for name, one in each.items())


def test_a_file_holds_them_too(env: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a URL may be in a file of its own."""
    for name in ("LEDGERS__B__REDIS_URL", "ACCOUNT_LEDGERS"):
        monkeypatch.delenv(f"REGWORKER_{name}")
    (tmp_path / "url").write_text("redis://four:6379/0\n")
    config = tmp_path / "regworker.toml"
    config.write_text(
        f'account_ledgers = ["open2b/*=b"]\n[ledgers.b]\nredis_url_file = "{tmp_path / "url"}"\n'
    )
    env(CONFIG=str(config), LEDGER="b")
    settings = Settings.load()
    assert settings.redis_url == "redis://four:6379/0"
    assert list(settings.accounts["open2b"]) == ["default", "store7", "store8"]
    assert tmp_path / "url" in settings.files


@pytest.mark.parametrize(
    ("values", "variable", "what"),
    [
        ({"LEDGER": "d"}, "LEDGER", "there is no ledger 'd' (there are: main, b, c)"),
        ({"ACCOUNT_LEDGERS": "a/*=d"}, "ACCOUNT_LEDGERS", "REGWORKER_LEDGERS__D__REDIS_URL"),
        ({"ACCOUNT_LEDGERS": "store7=b"}, "ACCOUNT_LEDGERS", "<provider>/<account>=<ledger>"),
        ({"LEDGERS__D__BROKER_URL": "amqp://x"}, "LEDGERS__D__REDIS_URL", "is required"),
        ({"LEDGERS__B__REDIS_URL": "http://canary"}, "LEDGERS__B__REDIS_URL", "redis://user"),
        ({"LEDGERS__B__BROKR_URL": "amqp://x"}, "LEDGERS__B__BROKR_URL", "did you mean REGWORKER"),
        ({"LEDGERS__MAIN__REDIS_URL": "redis://x"}, "LEDGERS", "REGWORKER_REDIS_URL"),
        ({"LEDGERS__A-__REDIS_URL": "redis://x"}, "LEDGERS", "'a-' is no name"),
        ({"REDIS_URL": "redis://two:6379/0"}, "LEDGERS", "main and b are the same database"),
        ({"BROKER_URL": "amqp://rabbit/c"}, "LEDGERS", "main and c use the same broker"),
        ({"LEDGER__B__REDIS_URL": "redis://x"}, "LEDGER__B__REDIS_URL", "REGWORKER_LEDGERS__"),
    ],
)
def test_an_error_names_the_setting(
    env: Any, values: dict[str, str], variable: str, what: str
) -> None:
    """And no URL, which may hold a password."""
    env(**values)
    assert what in problems()[f"REGWORKER_{variable}"]


def test_a_server_that_the_caller_names_is_the_only_ledger(env: Any) -> None:
    """Also if it is one of several in the environment: so a demonstration stays on its own."""
    env(LEDGER="b")
    settings = Settings.load(redis_url="redis://two:6379/0")
    assert (settings.redis_url, settings.ledger) == ("redis://two:6379/0", "main")
    assert not settings.ledgers
    assert list(settings.accounts["open2b"]) == ["default", "store7", "store8"]


def test_a_jobs_ledger_is_asked_for_once(env: Any) -> None:
    """Then it is remembered, as after an `enqueue`."""
    routes = Routes(Settings.load())
    asked: list[str] = []

    def ask(question: Any) -> bool:
        asked.append(question[0])
        return bool(question[0] == "b")

    assert carry(routes.find("job", 10), ask) == "b"
    assert carry(routes.find("job", 10), ask) == "b"
    assert asked == ["main", "b"]
    asked.clear()
    assert carry(routes.find("another", 10), lambda question: asked.append(question[0])) == "main"
    assert asked == ["main", "b", "c"]


def test_a_ledger_that_is_away_does_not_hide_the_job_in_another(env: Any) -> None:
    """The others are asked before it is asked for longer; in the end, its error is raised."""
    routes = Routes(Settings.load())
    asked: list[tuple[str, float]] = []

    def ask(question: Any) -> bool | LedgerUnavailable:
        asked.append(question)
        return LedgerUnavailable("away") if question[0] == "main" else question[0] == "c"

    assert carry(routes.find("job", 2), ask) == "c"
    assert asked == [("main", 0.5), ("b", 0.5), ("c", 0.5)]
    asked.clear()
    with pytest.raises(LedgerUnavailable, match="away"):
        carry(routes.find("another", 2), lambda one: ask(one) if one[0] != "c" else False)
    assert [name for name, _ in asked] == ["main", "b", "main", "main"]


def test_a_producer_remembers_a_fixed_number_of_jobs(
    env: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The latest."""
    monkeypatch.setattr(module, "REMEMBERED", 10)
    routes = Routes(Settings.load())
    for number in range(100):
        routes.remember(f"job-{number}", "b")
    assert 5 <= len({**routes._old, **routes._young}) <= 10
    assert carry(routes.find("job-99", 1), lambda _: False) == "b"

"""The addresses of ledger and broker: every client verifies, and no message shows a password."""

import functools
import sys
import unicodedata
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import hypothesis
import pytest
from hypothesis import strategies as st

from regworker import tls
from regworker.domain.errors import SettingsError
from regworker.settings import Settings
from tests.tls import Authority
from tests.unit.client.settings.loading import KEYS, WEBHOOK, problems
from worker.monitoring import doctor


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

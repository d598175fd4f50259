"""An account's settings: values that can never work are refused by name when a worker starts."""

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from regworker.domain.errors import SettingsError
from worker.providers.base import Account
from worker.providers.http import url_of
from worker.providers.registry import Accounts, Registry

REGISTRY = Registry(["worker.providers.skypostal:SkyPostal", "worker.providers.open2b:Open2b"])

GOOD: dict[str, dict[str, Any]] = {
    "skypostal": {
        "base_url": "https://api.example",
        "user_code": 1,
        "app_key": "a",
        "copa_id": 2,
    },
    "open2b": {"base_url": "https://shop.example"},
}


def problems(provider: str, **changed: Any) -> list[tuple[str, str]]:
    """The problems of an account of a provider."""
    try:
        Accounts(REGISTRY, {provider: {"main": {**GOOD[provider], **changed}}})
    except SettingsError as error:
        return list(error.problems)
    return []


KEYS = [
    ("open2b", "public_key"),
    ("open2b", "secret_key"),
    ("skypostal", "app_key"),
]

#: Characters that no key contains: they come from a file, a mail or a terminal.
IN_NO_KEY = {
    "a newline at its end": "hunter2\n",
    "a newline inside": "hun\nter2",
    "a carriage return": "hunter2\r",
    "a tab": "hunter2\t",
    "spaces around": " hunter2 ",
    "NUL": "hun\0ter2",
    "escape": "\x1bhunter2",
    "delete": "hunter2\x7f",
    "a space of no width": "hunter2\u200b",
    "a no-break space": "hunter2\xa0",
    "a lone surrogate": "hunter2\ud800",
}


@pytest.mark.parametrize(("provider", "field"), KEYS)
@pytest.mark.parametrize("key", IN_NO_KEY.values(), ids=IN_NO_KEY)
def test_a_key_that_cannot_be_one_is_refused_by_name(provider: str, field: str, key: str) -> None:
    """The error names the variable, and shows nothing of the key."""
    [(name, what)] = problems(provider, **{field: key})
    assert name == f"REGWORKER_ACCOUNTS__{provider.upper()}__MAIN__{field.upper()}"
    assert "hun" not in what
    assert "ter2" not in what


@pytest.mark.parametrize("key", ["clé-hunter2", "hunter2€", "hunter2“", "ключ-hunter2"])
def test_a_key_that_no_header_can_carry_is_refused(key: str) -> None:
    """Open2b's keys are sent in headers; SkyPostal's is in the body, where any text is possible."""
    for field in ("public_key", "secret_key"):
        [(name, what)] = problems("open2b", **{field: key})
        assert name.endswith(field.upper())
        assert "header" in what
        assert "hunter2" not in what
    assert problems("skypostal", app_key=key) == []


NO_URLS = [
    *("https://shop.example:99999", "https://shop.example:0", "https://shop.example:x"),
    *("https://shop..example", "https://.", "https://:443", "https://[::1", "https://::1"),
    *("https://shop.exämple", "https://☃", "https://a\u200b.example", "https://shop.example/€"),
    *("https://a b", "https://shop.example/\x7f", "https://shop\0.example", "https://a\\b"),
    *("https://-shop.example", "https://shop-.example", f"https://{'a' * 64}.example"),
    *("https://256.1.1.1", "https://1.2.3.4.5", "https://a<b", "https://*.example"),
    *(f"https://shop.example/{'a' * 3000}", "https://" + ".".join(["a" * 50] * 6)),
    *("https://shop.exam\nple", "https://shop .example", "https://shop.example\n/x"),
]


@pytest.mark.parametrize("url", NO_URLS)
@pytest.mark.parametrize("provider", GOOD)
def test_a_base_url_that_no_client_can_call_is_refused_by_name(provider: str, url: str) -> None:
    """Otherwise every job would fail."""
    [(name, _)] = problems(provider, base_url=url)
    assert name == f"REGWORKER_ACCOUNTS__{provider.upper()}__MAIN__BASE_URL"


GOOD_URLS = [
    *("https://shop.example", "http://127.0.0.1:8080/mounted", "http://[::1]:80", "https://a."),
    *("https://xn--mnchen-3ya.example", "http://sandbox:8080", "http://reg_worker:1/a%20b"),
    *("https://user:p%40ss@shop.example:443/x",),
]


@pytest.mark.parametrize("url", GOOD_URLS)
def test_a_base_url_that_can_be_called_is_taken(url: str) -> None:
    """Names of containers, addresses, ports, a path and a user are allowed."""
    assert problems("open2b", base_url=url, allow_http=True) == []


@pytest.mark.parametrize("url", ["{}\n", " {}", "'{}'", ' "{}" '])
def test_what_surrounds_a_url_in_a_file_is_no_part_of_it(url: str) -> None:
    """White space, and the quotes of a `.env` file, are removed, as from every URL in the
    settings."""
    fields = {**GOOD["open2b"], "base_url": url.format("https://shop.example")}
    [(_, _, account)] = Accounts(REGISTRY, {"open2b": {"main": fields}})
    assert account.at("x") == "https://shop.example/x"


@pytest.mark.parametrize("provider", GOOD)
def test_a_provider_is_called_encrypted_unless_allowed_otherwise(provider: str) -> None:
    """Each call contains its key and the customer's password; a loopback address may be plain."""
    [(name, what)] = problems(provider, base_url="http://shop.example")
    assert name == f"REGWORKER_ACCOUNTS__{provider.upper()}__MAIN"
    assert "https://" in what
    assert "ALLOW_HTTP=true" in what
    assert problems(provider, base_url="http://shop.example", allow_http=True) == []
    for here in ("http://127.0.0.1:8900", "http://[::1]/x", "http://localhost:1"):
        assert problems(provider, base_url=here) == []


@settings(max_examples=500, deadline=None)
@given(
    st.one_of(
        st.text(min_size=1, max_size=30),
        st.text(st.sampled_from("aZ0-_.:/@[]%~€ü\\ \n"), min_size=1, max_size=20),
        st.from_regex(r"\A[a-z0-9_-]{1,3}(\.[a-z0-9_-]{0,3}){0,3}(:[0-9]{1,6})?(/.{0,5})?\Z"),
    )
)
@example("a..b")
@example("1.2.3.4.5")
def test_each_base_url_that_is_taken_can_be_called(rest: str) -> None:
    """The HTTP client accepts every URL that the settings accept."""
    try:
        account = Account(base_url=f"http://{rest}", allow_http=True)
    except ValidationError:
        return

    url = url_of(account.at("x"))
    assert url.host
    assert url.port
    assert url.host.encode("idna")  # the form that is looked up


@pytest.mark.parametrize("value", [10**10, 10**400, "1e308", float("inf"), float("nan")])
@pytest.mark.parametrize("field", ["rate", "rate_period", "max_in_flight"])
@pytest.mark.parametrize("provider", GOOD)
def test_a_limit_that_the_ledger_cannot_count_is_refused_by_name(
    provider: str, field: str, value: Any
) -> None:
    """Workers publish the limits in the ledger, and divide one by another."""
    variable = f"REGWORKER_ACCOUNTS__{provider.upper()}__MAIN__{field.upper()}"
    assert [name for name, _ in problems(provider, **{field: value})] == [variable]

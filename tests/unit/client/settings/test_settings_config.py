"""The settings file that `REGWORKER_CONFIG` names."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from regworker.domain.errors import SettingsError
from regworker.named_files import NO_FILE
from regworker.settings import Settings, files
from tests.unit.client.settings.loading import problems


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


@pytest.mark.parametrize("quotes", ['"""', "'''"])
def test_a_text_of_several_lines_that_looks_like_an_account_is_kept(quotes: str) -> None:
    """A client omits accounts only where it is clear that these are tables."""
    text = "[accounts.open2b.a]\nkey = 1\n[more]\n"
    content = f"note = {quotes}\n{text}{quotes}\n[accounts.open2b.b]\nkey = 2\n"
    assert tomllib.loads(files.without_accounts(content.encode()).decode())["note"] == text

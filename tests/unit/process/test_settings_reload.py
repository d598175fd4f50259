"""Changed settings count as read only once they are applied."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
import structlog

from regworker.domain.errors import LedgerUnavailable
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from regworker.way_out import WayOut, versions
from tests.tls import Authority
from worker.gateway.reload import KeysReload
from worker.process.settings_reload import SettingsReload
from worker.providers.check import Checked
from worker.providers.registry import Accounts, Registry


def test_a_change_that_could_not_be_applied_is_applied_at_the_next_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger was away when the worker announced the new rate."""
    keys = tmp_path / "keys"
    config = tmp_path / "config.toml"

    def write(rate: int) -> None:
        config.write_text(
            "[accounts.skypostal.default]\nbase_url = 'http://127.0.0.1:9'\n"
            f"user_code = 396\ncopa_id = 616\napp_key = 'k'\nrate = {rate}\n"
        )

    keys.write_text(Keyring.new("a"))
    write(100)
    monkeypatch.setenv("REGWORKER_SEALING_KEYS_FILE", str(keys))
    monkeypatch.setenv("REGWORKER_CONFIG", str(config))
    settings = Settings.load()
    registry = Registry(settings.providers)
    rates: list[float] = []

    async def apply(_: Settings, accounts: Accounts, __: Keyring) -> None:
        [(_, _, account)] = accounts
        rates.append(account.rate)
        if len(rates) == 1:
            raise LedgerUnavailable("away")

    async def check(*_: Any) -> Any:
        raise AssertionError("no credential was changed")

    reload = SettingsReload(
        settings, registry, Accounts(registry, settings.accounts, settings.way_out), check, apply
    )
    write(5)

    async def turns() -> None:
        with pytest.raises(LedgerUnavailable):
            await reload.reload_once()
        await reload.reload_once()
        await reload.reload_once()

    asyncio.run(turns())
    assert rates == [5, 5]


@pytest.mark.parametrize(
    ("kind", "said"), [(SettingsReload, []), (KeysReload, ["REGWORKER_ENDPOINTS"])]
)
def test_what_is_not_used_needs_a_restart(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[SettingsReload],
    said: list[str],
) -> None:
    """A worker uses changed endpoints at once, the HTTP gateway only changed keys."""
    config = tmp_path / "config.toml"
    config.write_text("[endpoints.crm]\nkind = 'stream'\nstream = '{reg}:crm'\n")
    monkeypatch.setenv("REGWORKER_SEALING_KEYS", Keyring.new("a"))
    monkeypatch.setenv("REGWORKER_CONFIG", str(config))
    settings = Settings.load()
    registry = Registry(())

    async def apply(*_: Any) -> None:
        pass

    async def check(*_: Any) -> Any:
        raise AssertionError("there is no account")

    accounts = Accounts(registry, {}, settings.way_out)
    reload = kind(settings, registry, accounts, check, apply)
    config.write_text("[endpoints.crm]\nkind = 'stream'\nstream = '{reg}:crm'\nsealed = true\n")
    with structlog.testing.capture_logs() as lines:
        asyncio.run(reload.reload_once())
    found = [one["settings"] for one in lines if one["event"] == "settings that need a restart"]
    assert found == [said] * bool(said)


class Reloaded:
    """The reload of settings from files, with an account whose check has a given result."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str) -> None:
        self.config = tmp_path / "config.toml"
        self.config.write_text(config)
        keys = tmp_path / "keys"
        keys.write_text(Keyring.new("a"))
        monkeypatch.setenv("REGWORKER_SEALING_KEYS_FILE", str(keys))
        monkeypatch.setenv("REGWORKER_CONFIG", str(self.config))
        self.works = True
        self.tested: list[WayOut] = []
        self.settings = Settings.load()
        registry = Registry(self.settings.providers)
        self.accounts = Accounts(registry, self.settings.accounts, self.settings.way_out)
        self.loaded = SettingsReload(
            self.settings, registry, self.accounts, self._check, self._apply
        )

    async def _check(self, accounts: Accounts, name: tuple[str, str]) -> Checked:
        self.tested.append(accounts.way(name))
        return Checked("works" if self.works else "unreached", "said the test")

    async def _apply(self, settings: Settings, accounts: Accounts, _: Keyring) -> None:
        self.settings, self.accounts = settings, accounts

    @property
    def way(self) -> WayOut:
        """The account's route."""
        return self.accounts.way(("open2b", "main"))

    def turn(self, *, works: bool = True) -> None:
        """Read the files once more."""
        self.works = works
        asyncio.run(self.loaded.reload_once())


def test_the_route_of_all_accounts_needs_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the log says; changed accounts take effect, and use the route of the start."""
    authority = Authority(tmp_path).file
    account = "[accounts.open2b.main]\nbase_url = 'https://store.example'\n"
    here = Reloaded(tmp_path, monkeypatch, account)
    changed = "proxy = 'http://127.0.0.1:9'\nca_file = '{}'\nretention = 777777.0\n"
    here.config.write_text(changed.format(authority) + account + "rate = 7\n")
    with structlog.testing.capture_logs() as logs:
        here.turn()
    assert here.way == WayOut()
    assert here.settings.way_out == WayOut()
    assert here.settings.retention != 777777
    assert here.settings.accounts["open2b"]["main"]["rate"] == 7
    assert not here.tested
    names = ["REGWORKER_CA_FILE", "REGWORKER_PROXY", "REGWORKER_RETENTION"]
    [found] = [one["settings"] for one in logs if one["event"] == "settings that need a restart"]
    assert sorted(found) == names


@pytest.mark.parametrize("whose", ["its own", "that of all"])
def test_a_changed_certificate_is_tested_before_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    """As a changed credential: until it works, the old one stays in use."""
    file = tmp_path / "ca.pem"
    file.write_bytes(Authority(tmp_path).file.read_bytes())
    account = "[accounts.open2b.main]\nbase_url = 'https://store.example'\n"
    named = f"ca_file = '{file}'\n"
    config = account + named if whose == "its own" else named + account
    here = Reloaded(tmp_path, monkeypatch, config)
    before = here.way
    here.config.write_text(config + "rate = 7\n")
    here.turn()
    assert (here.tested, here.way) == ([], before), "the same certificate"
    os.utime(file, ns=(1, 1))
    here.turn(works=False)
    [new] = here.tested
    assert new != before
    assert here.way == before
    os.utime(file, ns=(2, 2))
    here.turn()
    assert here.way == here.tested[-1] not in {before, new}


BROKEN: dict[str, bytes | None] = {
    "not UTF-8": b"# sch\xf6n\n",
    "not TOML": b"x = [",
    "nested too deep": b"x = " + b"[" * 5000,
    "a directory": None,
    "a wrong setting": b"lease = 0",
    "a wrong account": b"[accounts.open2b.main]\nbase_url = 1\n",
    "wrong keys": b"sealing_keys = 'x'\n",
}


@pytest.mark.parametrize("waits", [False, True], ids=["", "while a credential is tested again"])
@pytest.mark.parametrize("broken", BROKEN)
def test_a_file_that_cannot_be_used_is_reported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, waits: bool
) -> None:
    """By its setting's name, until it changes again; then it is used."""
    monkeypatch.setattr("worker.process.settings_reload.AGAIN", 0.0)
    account = "[accounts.open2b.main]\nbase_url = 'https://store.example'\n"
    here = Reloaded(tmp_path, monkeypatch, account)
    if waits:
        here.config.write_text(account + "public_key = 'new'\n")
        here.turn(works=False)
    if broken == "wrong keys":
        monkeypatch.delenv("REGWORKER_SEALING_KEYS_FILE")
    content = BROKEN[broken]
    here.config.unlink()
    here.config.mkdir() if content is None else here.config.write_bytes(content)
    with structlog.testing.capture_logs() as lines:
        for _ in range(3):
            here.turn(works=False)
    [line] = lines
    assert (line["event"], line["alert"]) == ("settings not reloaded", "settings")
    assert "REGWORKER_" in line["problems"]
    here.config.rmdir() if content is None else here.config.unlink()
    here.config.write_text(account + "rate = 7\n")
    monkeypatch.setenv("REGWORKER_SEALING_KEYS_FILE", str(tmp_path / "keys"))
    here.turn()
    assert here.settings.accounts["open2b"]["main"]["rate"] == 7


def test_an_unexpected_fault_is_reported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop logs it with its traceback; the same files are not read again."""
    here = Reloaded(tmp_path, monkeypatch, "")

    def fails() -> Settings:
        raise KeyError("x")

    monkeypatch.setattr(here.loaded, "_load", fails)
    here.config.write_text("lease = 20\n")
    with pytest.raises(KeyError):
        here.turn()
    here.turn()


def test_a_file_that_may_be_read_again_is_read(tmp_path: Path) -> None:
    """Its content and its time are the same, only its rights changed."""
    file = tmp_path / "key"
    file.write_text("key")
    found = set()
    for mode in (0o600, 0o000, 0o640):
        file.chmod(mode)
        found.add(versions([file]))
    assert len(found) == 3

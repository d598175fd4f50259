"""Changed settings count as read only once they are applied."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import structlog

from regworker.domain.errors import LedgerUnavailable
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from worker.gateway.reload import LIVE as LIVE_KEYS
from worker.process.settings_reload import LIVE, SettingsReload
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


@pytest.mark.parametrize(("live", "said"), [(LIVE, []), (LIVE_KEYS, ["REGWORKER_ENDPOINTS"])])
def test_what_is_not_used_needs_a_restart(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    live: frozenset[str],
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
    reload = SettingsReload(settings, registry, accounts, check, apply, live=live)
    config.write_text("[endpoints.crm]\nkind = 'stream'\nstream = '{reg}:crm'\nsealed = true\n")
    with structlog.testing.capture_logs() as lines:
        asyncio.run(reload.reload_once())
    found = [one["settings"] for one in lines if one["event"] == "settings that need a restart"]
    assert found == [said] * bool(said)

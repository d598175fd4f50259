"""Reads the sealing keys again when their file changes, as a worker does.

With old keys, a gateway would take the repeat of an accepted job for another job once `regworker
keys rotate` has written the job's fingerprint under a new key.
"""

import asyncio

import structlog
from fastapi import FastAPI

from regworker.results import reader_settings
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from worker.gateway import pages
from worker.process.settings_reload import PERIOD, SettingsReload
from worker.providers.check import Checked
from worker.providers.registry import Accounts, Registry

log = structlog.get_logger(__name__)


class KeysReload(SettingsReload):
    """Applies changed keys; accounts are not used here."""

    live = frozenset({"accounts", "sealing_keys"})


async def follow(app: FastAPI, settings: Settings) -> None:
    """Apply changed keys to the application until it is cancelled. All other settings keep the
    values of the process's start."""
    if not settings.sealing_keys.get_secret_value():
        return  # a service without keys works in another way

    async def apply(new: Settings, _: Accounts, keyring: Keyring) -> None:
        now = settings.model_copy(update={"sealing_keys": new.sealing_keys})
        app.state.services.use(now, keyring)
        pages.use(app, now, keyring)

    registry = Registry(())
    start = _without_accounts(settings)
    accounts = Accounts(registry, {}, settings.way_out)
    reload = KeysReload(start, registry, accounts, _no, apply, _load)
    while reload.has_files:
        try:
            pause = await reload.reload_once()
        except Exception:
            log.exception("a loop's turn failed", loop="SettingsReload")
            pause = PERIOD
        await asyncio.sleep(pause)


def _load() -> Settings:
    return _without_accounts(reader_settings())


def _without_accounts(settings: Settings) -> Settings:
    """Only workers need them: a wrong one must not prevent that keys are read."""
    return settings.model_copy(update={"accounts": {}})


async def _no(_: Accounts, __: tuple[str, str]) -> Checked:
    raise AssertionError("there is no account to be checked")

"""Reads settings again when their files change, without a restart.

Accounts, endpoints and sealing keys take effect at once. A changed credential is first tested with
a harmless call; until it works, the old one stays in use. All other settings keep the values of the
process's start.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import structlog

from regworker.domain.errors import SettingsError
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings, WebhookEndpoint, variable
from worker.providers.base import Account
from worker.providers.check import Checked
from worker.providers.registry import Accounts, Registry
from worker.telemetry import alert

log = structlog.get_logger(__name__)

#: Seconds between checks of the files.
PERIOD = 2.0

#: Seconds until a credential that failed is tested again.
AGAIN = 30.0

#: Settings that take effect while a worker runs, unless its owner says otherwise.
LIVE = frozenset({"accounts", "account_ledgers", "endpoints", "sealing_keys"})

#: Settings of an account that its provider does not see.
_OURS = {"rate", "rate_period", "max_in_flight"}

Name = tuple[str, str]
Check = Callable[[Accounts, Name], Awaitable[Checked]]
Signature = tuple[tuple[object, ...], ...]
Apply = Callable[[Settings, Accounts, Keyring], Awaitable[None]]


class SettingsReload:
    """Checks whether the files of the settings changed, and applies the new settings."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        accounts: Accounts,
        check: Check,
        apply: Apply,
        load: Callable[[], Settings] = Settings.load,
        live: frozenset[str] = LIVE,
    ) -> None:
        """`accounts`: those in use. `check`: tests one of the given accounts. `apply`: applies all
        settings; it is repeated if it fails. `load`: reads them. `live`: the settings that take
        effect without a restart."""
        self._live = live
        self._settings = settings
        self._registry = registry
        self._check = check
        self._apply = apply
        self._load = load
        self._accounts = accounts
        self._files = _files(settings, self._accounts)
        self._seen: Signature | None = _signature(self._files)
        self._retry_at: float | None = None
        self._waits: list[str] = []

    @property
    def has_files(self) -> bool:
        """Whether the settings name any file."""
        return bool(self._files)

    async def reload_once(self) -> float:
        """Read the files again if they changed; return the seconds until the next check."""
        seen = await asyncio.to_thread(_signature, self._files)
        now = asyncio.get_running_loop().time()
        changed = seen != self._seen
        if not changed and (self._retry_at is None or now < self._retry_at):
            return PERIOD
        try:
            new = await asyncio.to_thread(self._load)
            accounts = Accounts(self._registry, new.accounts, new.way_out)
            keyring = Keyring.parse(new.sealing_keys.get_secret_value())
        except SettingsError as error:
            self._seen = seen
            alert("settings not reloaded", kind="settings", problems=str(error))
            return PERIOD
        # A file that changed after it was read has another signature now, and is read again.
        if (files := _files(new, accounts)) != self._files:
            self._files, seen = files, await asyncio.to_thread(_signature, files)
        waits = await self._keep_untried(accounts)
        self._retry_at = now + AGAIN if waits else None
        if not changed and waits == self._waits:
            self._seen = seen
            return PERIOD
        self._waits, self._accounts = waits, accounts
        # Not seen until it is applied: the next turn repeats what fails here.
        self._seen = None
        await self._apply(new, accounts, keyring)
        self._seen = seen
        _report(self._settings, new, waits, self._live)
        self._settings = new
        return PERIOD

    async def _keep_untried(self, accounts: Accounts) -> list[str]:
        """Restore the old credentials of accounts whose new ones do not work yet; return these
        accounts."""
        waits: list[str] = []
        for provider, name, new in accounts:
            old = self._accounts.get((provider, name))
            if old is None or _to_provider(old) == _to_provider(new):
                continue
            checked = await self._check(accounts, (provider, name))
            if checked.state in {"works", "unchecked"}:
                log.info("account changed", account=f"{provider}/{name}", check=checked.words)
                continue
            alert(
                "new credential not used",
                kind="settings",
                account=f"{provider}/{name}",
                reason=checked.words,
            )
            accounts.keep((provider, name), old)
            waits.append(f"{provider}/{name}")
        return waits


def _files(settings: Settings, accounts: Accounts) -> frozenset[Path]:
    """All files that matter: those of the settings themselves, and those that routes name."""
    hooks = [one for one in settings.endpoints.values() if isinstance(one, WebhookEndpoint)]
    ways = [settings.way_out.to(one).files for one in hooks]
    return frozenset({*settings.files, *accounts.files, *(file for way in ways for file in way)})


def _to_provider(account: Account) -> dict[str, object]:
    return account.model_dump(exclude=_OURS)


def _report(old: Settings, new: Settings, waits: list[str], live: frozenset[str]) -> None:
    at_start = [
        variable(name)
        for name in Settings.model_fields
        if name not in live and getattr(old, name) != getattr(new, name)
    ]
    if at_start:
        log.warning("settings that need a restart", settings=at_start)
    log.info(
        "settings reloaded",
        accounts=sum(map(len, new.accounts.values())),
        endpoints=len(new.endpoints),
        waits=waits,
    )


def _signature(files: Iterable[Path]) -> Signature:
    """Changes with a file, also if a symbolic link points to another file."""
    found: list[tuple[object, ...]] = []
    for file in sorted(files):
        try:
            stat = file.stat()
        except OSError:
            found.append((file,))
        else:
            found.append((file, stat.st_ino, stat.st_mtime_ns, stat.st_size))
    return tuple(found)

"""Reads settings again when their files change, without a restart.

Accounts, endpoints and sealing keys take effect at once. A changed credential, proxy or certificate
of an account is first tested with a harmless call; until it works, the old one stays in use. All
other settings keep the values of the process's start, such as the proxy of all accounts; but their
files are read again, such as the certificate that is used with all of them.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import structlog

from regworker.domain.errors import SettingsError
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings, WebhookEndpoint, variable
from regworker.way_out import Versions, versions
from worker.providers.check import Checked
from worker.providers.registry import Accounts, Registry
from worker.telemetry import alert

log = structlog.get_logger(__name__)

#: Seconds between checks of the files.
PERIOD = 2.0

#: Seconds until a credential that failed is tested again.
AGAIN = 30.0

#: Accounts that are tested at a time.
TESTS = 10

Name = tuple[str, str]
Check = Callable[[Accounts, Name], Awaitable[Checked]]
Apply = Callable[[Settings, Accounts, Keyring], Awaitable[None]]


class SettingsReload:
    """Checks whether the files of the settings changed, and applies the new settings."""

    live = frozenset({"accounts", "account_ledgers", "endpoints", "sealing_keys"})
    """The settings that take effect without a restart."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        accounts: Accounts,
        check: Check,
        apply: Apply,
        load: Callable[[], Settings] = Settings.load,
    ) -> None:
        """`accounts`: those in use. `check`: tests one of the given accounts. `apply`: applies all
        settings; it is repeated if it fails. `load`: reads them."""
        self._start = settings
        self._registry = registry
        self._check = check
        self._apply = apply
        self._load = load
        self._accounts = accounts
        self._files = _files(settings.files, settings, self._accounts)
        self._seen: Versions | None = versions(self._files)
        self._retry_at: float | None = None
        self._waits: list[str] = []

    @property
    def has_files(self) -> bool:
        """Whether the settings name any file."""
        return bool(self._files)

    async def reload_once(self) -> float:
        """Read the files again if they changed; return the seconds until the next check."""
        seen = await asyncio.to_thread(versions, self._files)
        now = asyncio.get_running_loop().time()
        changed = seen != self._seen
        if not changed and (self._retry_at is None or now < self._retry_at):
            return PERIOD
        try:
            read = await asyncio.to_thread(self._load)
            new = self._start.model_copy(update={name: getattr(read, name) for name in self.live})
            accounts = Accounts(self._registry, new.accounts, new.way_out)
            keyring = Keyring.parse(new.sealing_keys.get_secret_value())
        except Exception as error:
            # Reported once for each content of the files.
            self._seen, self._retry_at = seen, None
            if not isinstance(error, SettingsError):
                raise
            alert("settings not reloaded", kind="settings", problems=str(error))
            return PERIOD
        # A file that changed after it was read has another signature now, and is read again.
        if (files := _files(read.files, new, accounts)) != self._files:
            self._files, seen = files, await asyncio.to_thread(versions, files)
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
        _report(self._start, read, waits, self.live)
        return PERIOD

    async def _keep_untried(self, accounts: Accounts) -> list[str]:
        """Restore the old credentials of accounts whose new ones do not work yet; return these
        accounts."""
        old = self._accounts
        changed = [
            (provider, name)
            for provider, name, _ in accounts
            if old.get((provider, name)) and not old.same((provider, name), accounts)
        ]
        places = asyncio.Semaphore(TESTS)

        async def test(one: Name) -> Checked:
            async with places:
                return await self._check(accounts, one)

        waits: list[str] = []
        tested = await asyncio.gather(*map(test, changed))
        for (provider, name), checked in zip(changed, tested, strict=True):
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


def _files(read: Iterable[Path], settings: Settings, accounts: Accounts) -> frozenset[Path]:
    """All files that matter: those that were read, and those that routes name."""
    hooks = [one for one in settings.endpoints.values() if isinstance(one, WebhookEndpoint)]
    ways = [settings.way_out.to(one).files for one in hooks]
    return frozenset({*read, *accounts.files, *(file for way in ways for file in way)})


def _report(start: Settings, new: Settings, waits: list[str], live: frozenset[str]) -> None:
    at_start = [
        variable(name)
        for name in Settings.model_fields
        if name not in live and getattr(start, name) != getattr(new, name)
    ]
    if at_start:
        log.warning("settings that need a restart", settings=at_start)
    log.info(
        "settings reloaded",
        accounts=sum(map(len, new.accounts.values())),
        endpoints=len(new.endpoints),
        waits=waits,
    )

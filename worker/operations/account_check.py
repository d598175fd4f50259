"""Tests accounts for a command: the connection and the credentials."""

import asyncio
from collections.abc import Sequence

from regworker.domain.errors import UnknownJob
from regworker.settings import Settings
from worker.providers.check import Checked, check
from worker.providers.http import HttpTransport
from worker.providers.registry import NO_JOB, Accounts, Registry

Name = tuple[str, str]


def check_accounts(settings: Settings, names: Sequence[Name]) -> dict[Name, Checked]:
    """Test the accounts with these names, or all; several at a time."""
    accounts = Accounts(Registry(settings.providers), settings.accounts, settings.way_out)
    wanted = names or [(provider, name) for provider, name, _ in accounts]
    for name in wanted:
        if accounts.get(name) is None:
            known = ", ".join(f"{one}/{other}" for one, other, _ in accounts) or "none"
            raise UnknownJob(
                f"account {name[0]}/{name[1]} is not configured here; there are: {known}"
            )
    return asyncio.run(_check(settings, accounts, wanted))


async def _check(
    settings: Settings, accounts: Accounts, names: Sequence[Name]
) -> dict[Name, Checked]:
    transport = HttpTransport(settings.call_budget)
    few = asyncio.Semaphore(AT_A_TIME)

    async def one(name: Name) -> Checked:
        async with few:
            send = transport.sender(lambda: True, settings.call_budget, way=accounts.way(name))
            return await check(accounts.open(*name, send, NO_JOB))

    try:
        return dict(zip(names, await asyncio.gather(*map(one, names)), strict=True))
    finally:
        await transport.aclose()


#: Checks at the same time.
AT_A_TIME = 8

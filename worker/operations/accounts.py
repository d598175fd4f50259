"""The announced accounts: finding them by name, and their state."""

from dataclasses import dataclass
from fnmatch import fnmatchcase

from regworker.announced import accounts_of
from regworker.ledger import SyncLedger
from regworker.ledger.snapshot import AccountSnapshot, parts
from regworker.ledger.transitions import account_key, account_name, announced


@dataclass(frozen=True, slots=True)
class FoundAccounts:
    """Some of the accounts that match. `matching`: the number of all that do; `unreadable`: keys of
    records that are left out; `after`: the name after which more of them follow, '' if none do."""

    accounts: tuple[AccountSnapshot, ...]
    matching: int
    unreadable: tuple[str, ...]
    after: str


def find_accounts(
    ledger: SyncLedger,
    provider: str = "*",
    account: str = "*",
    limit: int | None = None,
    *,
    contains: str = "",
    after: str = "",
) -> FoundAccounts:
    """Read the accounts whose names match two patterns (`*`, `?`, `[...]`), in order.

    `contains`, `after`: parts of, and names like `provider/account`. The records of those that are
    not asked for are not read.
    """
    names = [
        one
        for one in accounts_of(ledger.ask(announced))
        if fnmatchcase(one[0], provider) and fnmatchcase(one[1], account)
        if contains in "/".join(one)
    ]
    rest = [one for one in names if one > tuple(after.split("/", 1))]
    read = rest[:limit]
    found = parts(ledger, [account_name(*one) for one in read])
    prefix = account_key("", "")[:-1]
    unreadable = {key for key in found.unreadable if key.startswith(prefix)}
    readable = [
        one for one in found.accounts if account_key(one.provider, one.account) not in unreadable
    ]
    more = "/".join(read[-1]) if len(rest) > len(read) else ""
    return FoundAccounts(tuple(readable), len(names), tuple(sorted(unreadable)), more)

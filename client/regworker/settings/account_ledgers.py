"""Which ledger an account's jobs are in, where an installation has several."""

import re
from collections.abc import Iterable
from fnmatch import translate

MAIN = "main"
"""The ledger of `REGWORKER_REDIS_URL`."""

#: A ledger's name becomes a part of environment variables.
NAME = re.compile(r"[a-z0-9]+([_-][a-z0-9]+)*")

#: `<provider>/<account>=<ledger>`.
_RULE = re.compile(r"([a-z0-9_*?!\[\]-]+/[a-z0-9_*?!\[\]-]+)=([a-z0-9_-]+)")


def parts(rule: str) -> tuple[str, str]:
    """A rule's pattern for `<provider>/<account>`, and its ledger."""
    if not (found := _RULE.fullmatch(rule)):
        raise ValueError(f"{rule!r} is not of the form <provider>/<account>=<ledger>")
    return found[1], found[2]


class AccountLedgers:
    """The rules of `REGWORKER_ACCOUNT_LEDGERS`: the first that matches counts."""

    def __init__(self, rules: Iterable[str]) -> None:
        self._rules = [
            (re.compile(translate(pattern)).match, ledger) for pattern, ledger in map(parts, rules)
        ]

    def of(self, provider: str, account: str) -> str:
        """The ledger of an account; without a rule it is `main`."""
        name = f"{provider}/{account}"
        return next((ledger for matches, ledger in self._rules if matches(name)), MAIN)

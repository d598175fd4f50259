"""The providers, by name; and, in a worker, the accounts that are configured for them.

A producer needs only the providers' forms. Credentials stay with the workers.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ValidationError

from regworker.domain.errors import InvalidJob, InvalidOutcome, Problem, SettingsError, problems_of
from regworker.domain.portable import flaw
from regworker.forms.registry import Forms, load
from regworker.settings import no_setting, variable
from regworker.way_out import NOT_PLAIN, WayOut
from worker.providers.base import Account, JobReference, Provider, Send

#: Settings of an account that its provider does not see.
_OURS = {"rate", "rate_period", "max_in_flight"}

#: For a call that belongs to no job.
NO_JOB = JobReference("check", "check")


class Registry(Forms):
    """The providers of this process. Their classes are named by import path."""

    def __init__(self, paths: Sequence[str]) -> None:
        super().__init__(paths)
        providers: list[type[Provider]] = list(map(load, self.paths))
        self._providers = {one.name: one for one in providers}
        self._for_jobs = {one.name for one in providers if "job" in signature(one).parameters}

    def __getitem__(self, provider: str) -> type[Provider]:
        """The class of a provider; `InvalidJob` if the name is unknown."""
        self.form(provider)
        return self._providers[provider]

    def made(self, provider: str, account: Account, send: Send, job: JobReference) -> Provider:
        """A provider with an account, and with the job if its constructor takes one."""
        made: Any = self[provider]
        if provider in self._for_jobs:
            return cast(Provider, made(account, send, job))
        return cast(Provider, made(account, send))

    def outcome(self, provider: str, outcome: Any) -> dict[str, Any]:
        """Check a provider's outcome that a person entered; raises `InvalidOutcome`.

        By the provider's model. A provider without one accepts any non-empty JSON object.
        """
        model: type[BaseModel] | None = getattr(self[provider], "Gives", None)
        if model is None:
            if not isinstance(outcome, dict) or not outcome:
                what = "is required: the provider's data, as a JSON object"
                raise InvalidOutcome([Problem("missing", "outcome", what)])
            if what := flaw(outcome, path="outcome"):
                raise InvalidOutcome([Problem("invalid", "", what)])
            return outcome
        try:
            return model.model_validate(outcome).model_dump(mode="json", by_alias=True)
        except ValidationError as error:
            takes = f"an outcome of {provider} has the fields {', '.join(model.model_fields)}"
            problems = [*problems_of(error, prefix="outcome"), Problem("invalid", "", takes)]
            raise InvalidOutcome(problems) from None


class Accounts:
    """The accounts a worker may use, with their credentials."""

    def __init__(
        self,
        registry: Registry,
        values: dict[str, dict[str, dict[str, Any]]],
        way: WayOut = WayOut(),  # noqa: B008 -- nothing changes it
    ) -> None:
        """`way`: the route of all connections, unless an account has its own."""
        self._registry = registry
        self._way = way
        self._accounts: dict[tuple[str, str], Account] = {}
        self._ways: dict[tuple[str, str], WayOut] = {}
        dated = cache(WayOut.dated)  # most accounts share their files
        problems: list[tuple[str, str]] = []
        for provider, accounts in values.items():
            try:
                model = registry[provider].Account
            except InvalidJob as error:
                what = error.problems[0].message
                problems.append((variable("accounts", provider), f"the provider {what}"))
                continue
            for name, fields in accounts.items():
                try:
                    made = self._accounts[provider, name] = model(**fields)
                    self._ways[provider, name] = dated(way.to(made))
                    if not way.to(made).carries(made.base_url):
                        url = variable("accounts", provider, name, "base_url")
                        problems.append((url, NOT_PLAIN))
                except ValidationError as error:
                    where = ("accounts", provider, name)
                    for problem in problems_of(error):
                        path = (*where, problem.field) if problem.field else where
                        known = (
                            not problem.field
                            or problem.field.partition(".")[0] in model.model_fields
                        )
                        what = problem.message if known else no_setting(path, model.model_fields)
                        problems.append((variable(*path), what))
        if problems:
            raise SettingsError(problems)

    def __iter__(self) -> Iterator[tuple[str, str, Account]]:
        for (provider, name), account in self._accounts.items():
            yield provider, name, account

    def __getitem__(self, name: tuple[str, str]) -> Account:
        """An account's settings, by provider and account; `KeyError` if it is not configured
        here."""
        return self._accounts[name]

    def get(self, name: tuple[str, str]) -> Account | None:
        """An account's settings, or None."""
        return self._accounts.get(name)

    def way(self, name: tuple[str, str]) -> WayOut:
        """How connections to an account's provider are made."""
        return self._ways.get(name, self._way)

    @property
    def ways(self) -> frozenset[WayOut]:
        """The routes of all accounts."""
        return frozenset(self._ways.values())

    @property
    def files(self) -> frozenset[Path]:
        """The files that the routes of all accounts name."""
        return frozenset(file for way in self.ways for file in way.files)

    def open(self, provider: str, account: str, send: Send, job: JobReference) -> Provider:
        """A provider with one of its accounts; `KeyError` if it is not configured here."""
        return self._registry.made(provider, self[provider, account], send, job)

    def use(self, others: "Accounts") -> None:
        """From now on, use other accounts. Calls under way keep theirs."""
        self._accounts, self._way, self._ways = others._accounts, others._way, others._ways

    def keep(self, name: tuple[str, str], others: "Accounts") -> None:
        """Restore an account's previous settings, and its route."""
        self._accounts[name], self._ways[name] = others[name], others.way(name)

    def same(self, name: tuple[str, str], others: "Accounts") -> bool:
        """Whether an account and its route are the same to its provider."""
        one, other = self[name], others[name]
        return self.way(name) == others.way(name) and _to_provider(one) == _to_provider(other)


def _to_provider(account: Account) -> dict[str, object]:
    return account.model_dump(exclude=_OURS)

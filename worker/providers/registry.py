"""Which providers there are, by name; and, in a worker, which accounts are configured at them.

A producer needs the providers' models only. Credentials stay with the workers.
"""

import importlib
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from worker.errors import InvalidJob, Problem, SettingsError, problems_of
from worker.job import canonical
from worker.providers.base import Account, Provider, Send
from worker.settings import variable


class Registry:
    """The providers this process knows. Their classes are named by import path."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._providers = dict(map(_load, paths))

    def __getitem__(self, provider: str) -> type[Provider]:
        """The class of a provider; `InvalidJob` where there is none of that name."""
        found = self._providers.get(provider)
        if found is None:
            what = f"{provider!r} is none of: {', '.join(sorted(self._providers))}"
            raise InvalidJob([Problem("invalid", "provider", what)])
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._providers)

    def validate(self, provider: str, registration: Any) -> bytes:
        """Check a registration with its provider's model; give it back as canonical JSON.

        As it was given: what was left out stays left out. `InvalidJob` names every field at once,
        as the provider spells it.
        """
        checked = self.read(provider, registration)
        return canonical(checked.model_dump(mode="json", exclude_unset=True, by_alias=True))

    def read_json(self, provider: str, text: bytes) -> BaseModel:
        """A registration from the JSON that `validate` gave; `InvalidJob` where it doesn't fit."""
        try:
            return self[provider].Registration.model_validate_json(text)
        except ValidationError as error:
            raise InvalidJob(problems_of(error, prefix="registration")) from None

    def read(self, provider: str, registration: Any) -> BaseModel:
        """A registration as its provider's model; `InvalidJob` where it doesn't fit."""
        model = self[provider].Registration
        try:
            return model.model_validate(registration)
        except ValidationError as error:
            raise InvalidJob(problems_of(error, prefix="registration")) from None


class Accounts:
    """The accounts a worker may use, with their credentials."""

    def __init__(self, registry: Registry, values: dict[str, dict[str, dict[str, Any]]]) -> None:
        self._registry = registry
        self._accounts: dict[tuple[str, str], Account] = {}
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
                    self._accounts[provider, name] = model(**fields)
                except ValidationError as error:
                    problems.extend(
                        (variable("accounts", provider, name, problem.field), problem.message)
                        for problem in problems_of(error)
                    )
        if problems:
            raise SettingsError(problems)

    def __iter__(self) -> Iterator[tuple[str, str, Account]]:
        for (provider, name), account in self._accounts.items():
            yield provider, name, account

    def open(self, provider: str, account: str, send: Send) -> Provider:
        """A provider at one of its accounts; `KeyError` where it is not configured here."""
        settings = self._accounts[provider, account]
        return self._registry[provider](settings, send)


def _load(path: str) -> tuple[str, type[Provider]]:
    module, _, attribute = path.partition(":")
    try:
        found: type[Provider] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingsError([(variable("providers"), f"{path}: {error}")]) from None
    return found.name, found

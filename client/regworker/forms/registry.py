"""The forms of this process, by their provider's name."""

import importlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from regworker.domain.errors import (
    NO_FIELD,
    UNTOLD,
    InvalidJob,
    Problem,
    SettingsError,
    problems_of,
)
from regworker.domain.job import canonical, is_name
from regworker.domain.portable import flaw
from regworker.settings import variable

#: The fields of every account.
_ACCOUNT = (
    *("base_url", "allow_http", "rate", "rate_period", "max_in_flight"),
    *("proxy", "ca_file", "client_cert_file", "client_key_file"),
)

#: Providers whose class is only in a worker, and whose form is here: by the class's path, the name,
#: the form, and the account's fields, which do not belong into a registration.
_FORMS: Mapping[str, tuple[str, str, frozenset[str]]] = {
    "worker.providers.skypostal:SkyPostal": (
        "skypostal",
        "regworker.forms.skypostal:SkyPostalRegistration",
        frozenset(
            [*_ACCOUNT, "user_code", "app_key", "copa_id", "copa_ids", "credentials", "look_up"]
        ),
    ),
    "worker.providers.open2b:Open2b": (
        "open2b",
        "regworker.forms.open2b:Open2bRegistration",
        frozenset([*_ACCOUNT, "public_key", "secret_key"]),
    ),
}


class Forms:
    """The registrations' models. A further provider is named by the import path of its class."""

    def __init__(self, paths: Sequence[str]) -> None:
        """`paths`: of the providers' classes, or names of entry points (`ENTRY_POINTS`)."""
        self.paths = list(map(_path, paths))
        found = list(map(_load, self.paths))
        self._forms = {name: form for name, form, _ in found}
        self._of_accounts = {name: fields for name, _, fields in found}

    def form(self, provider: str) -> type[BaseModel]:
        """A provider's form; `InvalidJob` if the name is unknown."""
        found = self._forms.get(provider)
        if found is None:
            named = repr(provider) if is_name(provider) else "the name given"
            what = f"{named} is none of: {', '.join(sorted(self._forms))}"
            raise InvalidJob([Problem("invalid", "provider", what)])
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._forms)

    def validate(self, provider: str, registration: Any) -> bytes:
        """Check a registration with its provider's form; return it as canonical JSON.

        As given: omitted fields stay omitted. `InvalidJob` names every wrong field at once, in the
        provider's spelling.
        """
        checked = self.read(provider, registration)
        if not checked.model_config.get("allow_inf_nan", True):
            return canonical(checked.model_dump(mode="json", exclude_unset=True, by_alias=True))
        # A plugin's model may allow NaN, which pydantic silently writes as null.
        try:
            json.dumps(registration, allow_nan=False, default=str)
        except (ValueError, TypeError, RecursionError):
            what = flaw(registration, path="registration")
            path, _, rest = what.partition(" ")
            if what:
                raise InvalidJob([Problem("invalid", path, rest)]) from None
        return canonical(checked.model_dump(mode="json", exclude_unset=True, by_alias=True))

    def read_json(self, provider: str, text: bytes) -> BaseModel:
        """A registration from the JSON of `validate`; `InvalidJob` if it does not fit."""
        return _checked(self.form(provider).model_validate_json, text)

    def read(self, provider: str, registration: Any) -> BaseModel:
        """A registration as its provider's form; `InvalidJob` if it does not fit."""
        try:
            return _checked(self.form(provider).model_validate, registration)
        except InvalidJob as error:
            problems = error.problems
        raise InvalidJob(self._explained(provider, one) for one in problems)

    def _explained(self, provider: str, problem: Problem) -> Problem:
        """The error for an account's field in a registration: where it belongs."""
        name = problem.field.removeprefix("registration.")
        if problem.message != NO_FIELD or name not in self._of_accounts[provider]:
            return problem
        setting = variable("accounts", provider, "<ACCOUNT>", name)
        what = f"is a credential: it belongs to the account, not to a job; set {setting}"
        return Problem(problem.code, problem.field, f"{what} at the workers")


#: What a plugin's validator may raise by mistake; its text may quote the value. Nothing wider: a
#: host's own exception, such as a task's soft time limit, must reach the host.
_MISTAKES = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, NameError),
    *(RuntimeError, TypeError, ValueError),
)


def _checked(check: Callable[[Any], BaseModel], given: Any) -> BaseModel:
    try:
        return check(given)
    except ValidationError as error:
        problems = problems_of(error, prefix="registration")
    except _MISTAKES:
        problems = (Problem("invalid", "registration", UNTOLD),)
    raise InvalidJob(problems)


#: The entry points with which a package names its provider, so that the setting takes just the
#: name.
ENTRY_POINTS = "regworker.providers"


def _path(name: str) -> str:
    """The import path of a provider, given directly or by the name of an entry point."""
    if ":" in name:
        return name
    for path in _FORMS:
        if _FORMS[path][0] == name:
            return path
    from importlib.metadata import entry_points

    found = {one.name: one.value for one in entry_points(group=ENTRY_POINTS)}
    if name not in found:
        names = sorted({*found, *(form[0] for form in _FORMS.values())})
        what = f"{name}: no installed package has a provider of this name ({', '.join(names)})"
        raise SettingsError([(variable("providers"), what)])
    return found[name]


def load(path: str) -> Any:
    """The object of an import path (`module:attribute`); `SettingsError` if there is none."""
    module, _, attribute = path.partition(":")
    try:
        found: Any = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        # An exception of the module itself may contain anything.
        why = type(error).__name__ if isinstance(error, ValueError) else str(error)
        raise SettingsError([(variable("providers"), f"{path}: {why}")]) from None
    return found


def _load(path: str) -> tuple[str, type[BaseModel], frozenset[str]]:
    if path in _FORMS:
        name, form, of_account = _FORMS[path]
        return name, load(form), of_account
    found = load(path)
    try:
        return found.name, found.Registration, frozenset(found.Account.model_fields)
    except AttributeError as error:
        what = f"{path}: is no provider: it has no {error.name}"
        raise SettingsError([(variable("providers"), what)]) from None

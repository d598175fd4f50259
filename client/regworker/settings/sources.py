"""Where settings come from: the environment, and the file in `REGWORKER_CONFIG`."""

import os
import tomllib
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
)

from regworker.domain.errors import SettingsError
from regworker.named_files import not_a_file, unreadable
from regworker.settings import files
from regworker.settings.variables import PREFIX

#: Whether the accounts at the providers are read from the file.
ACCOUNTS_TOO: ContextVar[bool] = ContextVar("ACCOUNTS_TOO", default=True)


#: Whether the caller names the only ledger.
ONE_LEDGER: ContextVar[bool] = ContextVar("ONE_LEDGER", default=False)


#: Settings that are not read then.
_OF_SEVERAL = ("ledgers", "account_ledgers", "ledger")


class _Environment(EnvSettingsSource):
    """The environment, where a value is JSON only if it looks like a list or an object.

    By itself the library reads an application key like `1656e7` as the number 16560000. A blank
    variable counts as unset.
    """

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        super().__init__(settings_cls)
        found = self.env_vars.items()
        self.env_vars = {name: value for name, value in found if value and value.strip()}

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        """A list or an object from JSON; any other text unchanged."""
        if isinstance(value, str) and value.lstrip()[:1] not in {"[", "{"}:
            return value
        try:
            return super().decode_complex_value(field_name, field, value)
        except RecursionError:  # too many brackets inside brackets
            raise ValueError from None

    def __call__(self) -> dict[str, Any]:
        """The values, including those from files."""
        prefix = PREFIX.lower()
        ours = {
            name.removeprefix(prefix): value
            for name, value in self.env_vars.items()
            if name.startswith(prefix)
        }
        in_files = files.wanted(ours, self.settings_cls.model_fields)
        return _wanted({**super().__call__(), **{name: ours[name] for name in in_files}})


class _Config(InitSettingsSource):
    """The file in `REGWORKER_CONFIG`."""

    def __call__(self) -> dict[str, Any]:
        """The values, including those from files of their own."""
        return _wanted(super().__call__())


def _wanted(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a source, including those from files of their own."""
    if ONE_LEDGER.get():
        values = {name: value for name, value in values.items() if name not in _OF_SEVERAL}
    return files.resolved(values)


def _content(file: Path) -> dict[str, Any]:
    """What the file holds; `SettingsError` if that cannot be read."""
    try:
        if not file.is_file():
            raise SettingsError([(f"{PREFIX}CONFIG", not_a_file(file))])
        content = file.read_bytes()
        if not ACCOUNTS_TOO.get():
            content = files.without_accounts(content)
        return _parsed(content.decode())
    except OSError as error:
        what = unreadable(file, error)
    except UnicodeDecodeError:
        what = f"is not UTF-8: {file}"
    except tomllib.TOMLDecodeError as error:
        what = f"is not TOML: {error}: {file}"
    except RecursionError:
        what = f"has too many brackets inside brackets: {file}"
    raise SettingsError([(f"{PREFIX}CONFIG", what)])


@lru_cache(maxsize=1)
def _parsed(text: str) -> dict[str, Any]:
    """A file of settings.

    A worker that starts reads it five times, which with thousands of accounts took a second of CPU.
    Nothing changes what comes out: `resolved` makes new tables.
    """
    return tomllib.loads(text)


def configured(settings_cls: type[BaseSettings]) -> tuple[PydanticBaseSettingsSource, ...]:
    """The environment, then the file in `REGWORKER_CONFIG` if there is one."""
    environment = _Environment(settings_cls)
    file = os.environ.get(f"{PREFIX}CONFIG", "").strip()
    if not file:
        return (environment,)
    path = Path(file)
    files.note(path)
    return environment, _Config(settings_cls, _content(path))

"""All settings in one model, and how they are read."""

import re
from pathlib import Path
from typing import Any, Self

from pydantic import PrivateAttr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as Unreadable

from regworker import way_out
from regworker.domain.errors import SettingsError
from regworker.settings import files, problems, sources
from regworker.settings.account_ledgers import MAIN, AccountLedgers
from regworker.settings.accounts import AccountSettings, ProviderSettings
from regworker.settings.base import bounded
from regworker.settings.endpoints import EndpointSettings, StreamEndpoint, WebhookEndpoint
from regworker.settings.jobs import JobSettings
from regworker.settings.ledgers import DurabilitySettings, LedgerServers, LedgerSettings
from regworker.settings.monitoring import MonitoringSettings
from regworker.settings.security import SecuritySettings
from regworker.settings.serving import ServeSettings
from regworker.settings.variables import PREFIX, variable
from regworker.settings.worker import WorkerSettings


class Settings(
    BaseSettings,
    # From the last to the first: pydantic lists the fields of the last one first.
    MonitoringSettings,
    WorkerSettings,
    JobSettings,
    DurabilitySettings,
    ProviderSettings,
    EndpointSettings,
    AccountSettings,
    SecuritySettings,
    LedgerSettings,
    ServeSettings,
):
    """Everything that can be set. Defaults are safe for production."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        hide_input_in_errors=True,
        frozen=True,
        defer_build=False,  # the parts have `True`
    )
    _lengths = field_validator("*")(bounded)
    _files: tuple[Path, ...] = PrivateAttr(())

    @property
    def files(self) -> tuple[Path, ...]:
        """The files from which any setting came."""
        return self._files

    @model_validator(mode="after")
    def _ways_out(self) -> Self:
        way_out.check_certificate(self.client_cert_file, self.client_key_file)
        way = self.way_out
        for name, one in self.endpoints.items():
            if isinstance(one, WebhookEndpoint) and not way.to(one).carries(one.url):
                raise ValueError(f"endpoint {name}: its URL {way_out.NOT_PLAIN}")
        return self

    @model_validator(mode="after")
    def _streams_agree(self) -> Self:
        seen: dict[str, tuple[str, StreamEndpoint]] = {}
        for name, one in self.streams().items():
            other, before = seen.setdefault(one.stream, (name, one))
            if (one.retention, one.sealed) != (before.retention, before.sealed):
                raise ValueError(
                    f"endpoints {other} and {name} use the same stream ({one.stream}), so their "
                    "RETENTION and SEALED must be equal"
                )
        return self

    def each_ledger(self) -> dict[str, Self]:
        """The settings for a client of each single ledger, by the ledger's name; no accounts."""
        own = LedgerServers.model_construct(redis_url=self.redis_url, broker_url=self.broker_url)
        return {
            name: self.model_copy(
                update={"ledger": name, **dict(servers), "ledgers": {}, "accounts": {}}
            )
            for name, servers in {self.ledger: own, **self.ledgers}.items()
        }

    def _of_its_ledger(self) -> Self:
        """The settings as they were read, but with the servers and accounts of `ledger`.

        From then on, `ledgers` holds all others.
        """
        main = LedgerServers.model_construct(redis_url=self.redis_url, broker_url=self.broker_url)
        others = {MAIN: main, **self.ledgers}
        own = others.pop(self.ledger)
        ledger_of = AccountLedgers(self.account_ledgers).of
        accounts = {
            provider: {
                name: fields
                for name, fields in accounts.items()
                if ledger_of(provider, name) == self.ledger
            }
            for provider, accounts in self.accounts.items()
        }
        return self.model_copy(update={**dict(own), "ledgers": others, "accounts": accounts})

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments first, then the environment, then the file in `REGWORKER_CONFIG`."""
        return init_settings, *sources.configured(settings_cls)

    @classmethod
    def load_for_client(cls, **values: Any) -> Self:
        """Read the settings, except accounts that are separate tables in the file.

        Only workers use accounts. An installation may have thousands, with keys in files that a
        client must not read.
        """
        token = sources.ACCOUNTS_TOO.set(False)
        try:
            return cls.load(**values)
        finally:
            sources.ACCOUNTS_TOO.reset(token)

    @classmethod
    def load(cls, **values: Any) -> Self:
        """Read the settings; `SettingsError` names each variable that is missing or wrong.

        A `redis_url` without `ledgers` is the only ledger.
        """
        found = list(problems.unknown(cls.model_fields))
        token = files.READ.set([])
        one = sources.ONE_LEDGER.set("redis_url" in values and "ledgers" not in values)
        try:
            settings = cls(**values)
            settings._files = tuple(files.READ.get() or ())
            if settings.ledgers:
                settings = settings._of_its_ledger()
        except SettingsError as error:
            raise SettingsError([*found, *error.problems]) from None
        except ValidationError as error:
            found += [
                (problems.variable_of(item), problems.advice(item, cls.model_fields))
                for item in error.errors(include_url=False, include_input=False)
            ]
        except Unreadable as error:
            # Its cause would show the value, which may be a secret.
            field = re.search(r'field "(\w+)"', str(error))
            name, what = (
                (variable(field[1]), "is not JSON") if field else (f"{PREFIX}*", str(error))
            )
            raise SettingsError([(name, what)]) from None
        finally:
            files.READ.reset(token)
            sources.ONE_LEDGER.reset(one)
        if found:
            raise SettingsError(found)
        return settings

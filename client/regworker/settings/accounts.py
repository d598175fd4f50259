"""The providers, and the accounts at them."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from regworker.settings.base import SettingsPart, split


class AccountSettings(SettingsPart):
    """The accounts; workers check their fields."""

    accounts: dict[str, dict[str, dict[str, Any]]] = Field(
        default_factory=dict,
        description="Accounts at the providers: `ACCOUNTS__<PROVIDER>__<ACCOUNT>__<FIELD>`.",
        repr=False,
    )


class ProviderSettings(SettingsPart):
    """The providers."""

    providers: Annotated[list[str], BeforeValidator(split)] = Field(
        default=["worker.providers.skypostal:SkyPostal", "worker.providers.open2b:Open2b"],
        description="The providers, separated by commas: names of installed packages' entry "
        "points (group `regworker.providers`), or import paths of classes.",
    )

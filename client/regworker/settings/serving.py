"""The settings of the pages of `regworker serve`: who may read, and who may act."""

import re
from ipaddress import ip_network
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

from regworker import addresses
from regworker.settings.base import SettingsPart, blank

Role = Literal["viewer", "support", "operator"]


def _split(value: object) -> object:
    if not isinstance(value, str):
        return value
    text = str(addresses.unquoted(value))
    return [one.strip() for one in text.split(",") if one.strip()]


def _networks(values: list[str]) -> list[str]:
    for one in values:
        try:
            ip_network(one)
        except ValueError:
            raise ValueError(f"{one} is neither an address nor a network (10.0.0.0/8)") from None
    return values


def _roles(values: list[str]) -> list[str]:
    for one in values:
        role, equals, group = one.partition("=")
        if role not in {"viewer", "support", "operator"} or not equals or not group:
            raise ValueError(f"{one}: takes viewer=GROUP, support=GROUP and operator=GROUP")
    return values


def _long(value: SecretStr | None) -> SecretStr | None:
    if value is not None and len(value.get_secret_value()) < 12:
        raise ValueError("must have at least 12 characters")
    return value


Listed = Annotated[list[str], BeforeValidator(_split)]


#: A token of RFC 9110, section 5.6.2.
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


def _header(value: str) -> str:
    if not _TOKEN.fullmatch(value):
        raise ValueError("is no header's name: it is empty, or has a blank, a colon or the like")
    return value


class ServeSettings(SettingsPart):
    """How people sign in to the pages, and what they may do."""

    serve_password: Annotated[
        Annotated[SecretStr, AfterValidator(_long)] | None, BeforeValidator(blank)
    ] = Field(
        None,
        description="The password for the pages of `regworker serve`, for a small installation; "
        "at least 12 characters. A change ends all sessions.",
    )
    serve_role: Role = Field(
        "operator",
        description="The role of people who sign in with the password: `viewer` may only view, "
        "`support` may also decide reviews and cancel, `operator` may do everything.",
    )
    serve_session: float = Field(
        8 * 3600, gt=0, le=30 * 86400, description="How long a session on the pages lasts."
    )
    serve_trusted_proxy: Annotated[Listed, AfterValidator(_networks)] = Field(
        default=[],
        description="Addresses or networks, separated by commas, of the proxy in front of "
        "`regworker serve`. Only it may name users to the pages, and clients' addresses in "
        "`X-Forwarded-For`.",
    )
    serve_user_header: Annotated[str, AfterValidator(_header)] = Field(
        "X-Forwarded-User", description="The header in which that proxy names the user."
    )
    serve_groups_header: Annotated[str, AfterValidator(_header)] = Field(
        "X-Forwarded-Groups",
        description="The header in which that proxy names the user's groups, separated by commas.",
    )
    serve_groups: Annotated[Listed, AfterValidator(_roles)] = Field(
        default=[],
        description="The groups of each role: `support=helpdesk,operator=sre`. A user in several "
        "groups has the highest role; a user in none is refused.",
    )

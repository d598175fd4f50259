"""The errors of settings, by the variable that is wrong, and what to write instead."""

import difflib
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic.fields import FieldInfo

from regworker.settings import files
from regworker.settings.endpoints import KINDS
from regworker.settings.ledgers import LedgerServers
from regworker.settings.variables import PREFIX, variable

#: Variables with our prefix that are no settings: read elsewhere, by the tests, or by Compose,
#: which passes its whole `.env` to a worker.
_NO_SETTINGS = re.compile(r"(config|debug|image|test_\w+)$")


#: Variables that Kubernetes sets in each container for a service whose name begins like ours.
_OF_KUBERNETES = re.compile(r"\w+_(service_host|service_port(_\w+)?|port_\d+_(tcp|udp)(_\w+)?)$")


def unknown(settings: Collection[str]) -> Iterator[tuple[str, str]]:
    """Every variable in the environment that is no setting, since the library ignores these."""
    for name, value in os.environ.items():
        setting = name.lower().removeprefix(PREFIX.lower())
        ours = setting != name.lower() and value.strip()
        if not ours or _NO_SETTINGS.match(setting) or _OF_KUBERNETES.match(setting):
            continue
        first, nested, _ = setting.partition("__")
        if files.names_file(first) and not nested:
            first = first.removesuffix(files.SUFFIX)
        if first not in (files.NESTED if nested else settings):
            yield name, no_setting([setting], settings)


def no_setting(path: Sequence[str], known: Iterable[str]) -> str:
    """The error for an unknown setting, with the setting that was probably meant.

    `known`: the possible settings in its place.
    """
    *before, last = path
    close = difflib.get_close_matches(last, known, n=1, cutoff=0.7)
    meant = variable(*before, *close)
    if not close:
        # `ENDPOINT__CRM__URL`, `ACCOUNTS_OPEN2B__...`: the operator chose the rest.
        first = re.split("_+", path[0])[0]
        close = difflib.get_close_matches(first, files.NESTED, n=1, cutoff=0.7)
        meant = variable(*close, "...")
    return f"is not a setting; did you mean {meant}?" if close else "is not a setting"


def _path(loc: Sequence[int | str]) -> list[str]:
    # Pydantic's path contains the discriminator of an endpoint's kind; the variable does not.
    parts = [str(part) for part in loc]
    if len(parts) > 2 and parts[0] == "endpoints" and parts[2] in KINDS:
        del parts[2]
    return parts


def variable_of(item: Any) -> str:
    """The variable that one of pydantic's errors is about."""
    if item["type"] in _NO_KIND:
        return variable(*_path(item["loc"]), "kind")
    return variable(*_path(item["loc"])) if item["loc"] else f"{PREFIX}*"


#: Pydantic's errors for a value where more names are expected; and the form of their variables.
_NO_TABLE = ("dict_type", "model_type", "model_attributes_type", "dataclass_type")
_FORMS = {
    "accounts": variable("accounts", "<provider>", "<account>", "<field>"),
    "endpoints": variable("endpoints", "<name>", "<field>"),
    "ledgers": variable("ledgers", "<name>", "<field>"),
}

#: Pydantic's errors for an endpoint whose kind is missing or wrong.
_NO_KIND = ("union_tag_not_found", "union_tag_invalid")


def advice(item: Any, settings: Mapping[str, FieldInfo]) -> str:
    """What to write instead, for one of pydantic's errors; `settings`: the fields of all."""
    if item["type"] in _NO_KIND:
        missing = item["type"] == "union_tag_not_found"
        return f"{'is required: one of' if missing else 'is none of'} {', '.join(KINDS)}"
    if item["type"] in _NO_TABLE and item["loc"][0] in _FORMS:
        return f"is not a setting; the form is {_FORMS[item['loc'][0]]}"
    if item["type"] == "missing":
        if item["loc"] == ("sealing_keys",):
            return (
                "is required: use the keys of your workers "
                "(beside `regworker up`: run `. .regworker/env`; for a new installation, "
                "`regworker keys new` creates one)"
            )
        return "is required"
    if item["type"] == "extra_forbidden":
        loc = item["loc"]
        fields = settings
        if loc[0] == "endpoints" and len(loc) > 2:
            fields = KINDS[loc[2]].model_fields
        if loc[0] == "ledgers":
            fields = LedgerServers.model_fields
        return no_setting(_path(loc), fields)
    message: str = item["msg"]
    return message.removeprefix("Value error, ")

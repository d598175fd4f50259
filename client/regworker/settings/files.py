"""Settings in files: `<SETTING>_FILE` names the file that holds the value.

As Docker and Kubernetes mount secrets, and as a Vault agent writes them.
"""

import re
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from regworker.domain.errors import SettingsError
from regworker.named_files import unreadable
from regworker.settings.variables import variable

#: The suffix of such a setting.
SUFFIX = "_file"

#: Settings whose value is itself the path of a file.
PATHS = frozenset({"ca_file", "client_cert_file", "client_key_file"})

#: Settings that each account, endpoint and further ledger has for itself.
NESTED = ("accounts", "endpoints", "ledgers")

#: Bytes of the largest file that is read. Keys and URLs have a few hundred.
LARGEST = 64 * 1024

#: The files that were read since it was set, so that a process can check whether they changed.
READ: ContextVar[list[Path] | None] = ContextVar("READ", default=None)


#: A table `[accounts.<provider>.<account>]` of plain lines: comments, and names with a number, a
#: word or a text on the same line.
_ACCOUNT = re.compile(
    rb"""
    ^ [ \t]* \[ accounts (?: \. [\w-]+ ){2} \] [ \t]* (?: \#.* )? \r? \n
    (?:
        [ \t]* (?: [\w-]+ [ \t]* = [ \t]*
            (?: "[^"\\\r\n]*" | '[^'\r\n]*' | [\w.+-]+ ) )?
        [ \t]* (?: \#.* )? \r? \n
    )*+
    (?= [ \t]* \[ | \Z )
    """,
    re.VERBOSE | re.MULTILINE,
)

#: The start of a multi-line text, which could hide where a table begins.
_LONG_TEXT = re.compile(rb"\"{3}|'{3}")


def without_accounts(content: bytes) -> bytes:
    """A file of settings without the tables of accounts, if it is clear where these begin and end.

    Omitting them takes a tenth of the time for parsing them.
    """
    return content if _LONG_TEXT.search(content) else _ACCOUNT.sub(b"", content)


def note(file: Path) -> None:
    """Record that a setting came from a file."""
    if (read := READ.get()) is not None:
        read.append(file)


def names_file(name: str) -> bool:
    """Whether a setting of this name holds the path of a file with the value."""
    return name.endswith(SUFFIX) and name != SUFFIX and name not in PATHS


def resolved(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of one source, including those from files; `SettingsError` names each error."""
    problems: list[tuple[tuple[str, ...], str]] = []
    found = _resolved(values, (), problems)
    if problems:
        raise SettingsError([(variable(*path), what) for path, what in problems])
    return found


def _resolved(
    values: Mapping[str, Any],
    path: tuple[str, ...],
    problems: list[tuple[tuple[str, ...], str]],
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        here = (*path, name)
        if isinstance(value, Mapping) and here[0] in NESTED:
            found[name] = _resolved(value, here, problems)
        elif isinstance(value, str) and len(here) in {1, 3, 4} and names_file(name):
            plain = name.removesuffix(SUFFIX)
            if plain in values:
                problems.append(
                    (here, f"is set together with {plain.upper()}: set only one of them")
                )
                continue
            try:
                found[plain] = _content(Path(value))
            except ValueError as error:
                problems.append((here, str(error)))
        else:
            found[name] = value
    return found


def _content(file: Path) -> str:
    """A file's text without the line end that editors add."""
    note(file)
    try:
        with file.open("rb") as opened:
            content = opened.read(LARGEST + 1)
    except OSError as error:
        raise ValueError(unreadable(file, error)) from None
    if len(content) > LARGEST:
        raise ValueError(f"is larger than {LARGEST // 1024} KiB: {file}")
    try:
        text = content.decode("utf-8-sig")  # Windows editors start a file with a byte order mark
    except UnicodeDecodeError:
        raise ValueError(f"is not UTF-8: {file}") from None
    text = text.removesuffix("\n").removesuffix("\r")
    if not text.strip():
        raise ValueError(f"is empty: {file}")
    return text


def wanted(variables: Mapping[str, str | None], settings: Mapping[str, Any]) -> Iterator[str]:
    """The variables, without prefix, that name a file for a top-level setting."""
    for name in variables:
        if names_file(name) and name not in settings and name.removesuffix(SUFFIX) in settings:
            yield name

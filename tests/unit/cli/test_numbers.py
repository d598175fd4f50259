"""Numbers on the command line: each option has limits, and names them."""

import importlib
from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest
import typer

from worker.cli.app import COMMANDS, run
from worker.cli.commands import tokens
from worker.operations.tokens import MOST_RATE, RATE

WRONG: dict[type, list[str]] = {
    float: ["nan", "inf", "-inf", "1e308", "-1", "1" + "0" * 400],
    int: ["1" + "0" * 30, "-1"],
}


def functions(name: str, found: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The path of each command, and its function."""
    if not isinstance(found, typer.Typer):
        yield (name,), found
        return
    if found.registered_callback is not None:
        yield (name,), found.registered_callback.callback
    for one in found.registered_commands:
        yield (name, str(one.name)), one.callback


def options(function: Any) -> Iterator[tuple[str, type]]:
    """The name and type of each numeric option of a command."""
    for name, hint in get_type_hints(function, include_extras=True).items():
        if get_origin(hint) is not Annotated:
            continue
        for kind in {hint.__origin__, *get_args(hint.__origin__)} & set(WRONG):
            yield f"--{name.replace('_', '-')}", kind


def commands() -> Iterator[tuple[tuple[str, ...], str, type]]:
    """The path of each command, with each of its numeric options."""
    for name, entry in COMMANDS.items():
        module, _, attribute = entry.path.partition(":")
        made = getattr(importlib.import_module(module), attribute)
        for path, function in functions(name, made):
            yield from ((path, option, kind) for option, kind in options(function))


FOUND = list(commands())


def test_the_walk_finds_them() -> None:
    """Options of commands and of subcommands."""
    names = {(path, option) for path, option, _ in FOUND}
    assert {
        (("top",), "--interval"),
        (("tokens", "new"), "--rate"),
        (("results",), "--count"),
    } < names


@pytest.mark.parametrize(
    ("path", "option", "value"),
    [(path, option, value) for path, option, kind in FOUND for value in WRONG[kind]],
)
def test_a_number_outside_its_limits_is_refused(
    path: tuple[str, ...], option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command does nothing, and names the option."""
    assert run([*path, f"{option}={value}"]) == 2
    said = capsys.readouterr().err
    assert f"Invalid value for '{option}'" in " ".join(said.split()), said


def test_the_command_shows_the_stores_limits() -> None:
    """It does not import the store for its help."""
    assert (tokens.RATE, tokens.MOST_RATE) == (RATE, MOST_RATE)

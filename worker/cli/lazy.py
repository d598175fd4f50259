"""Commands that are imported only when they are called: `regworker --help` must not wait for
Celery.

A table names each command's function and its one line of help. The group shows the line, and
imports the function only to run it, to complete its options, or to show its own help.
"""

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, TypedDict

import typer
from rich.markup import escape
from typer.core import TyperGroup
from typer.main import get_command

from regworker.domain.errors import RegistrationWorkerError

#: The text below this line of a docstring is shown last, after the options.
_EXAMPLES = "\n\nExamples:\n"


class MissingExtra(RegistrationWorkerError):  # noqa: N818 -- nothing is wrong with what was asked
    """Raised when a command needs an optional part of the distribution that isn't installed."""


@dataclass(frozen=True, slots=True)
class CommandEntry:
    """A command of the table. `path`: `module:attribute`, a function or a `typer.Typer`."""

    path: str
    line: str
    panel: str
    extra: str = "cli"
    """The extra of the distribution that it needs."""


class LazyGroup(TyperGroup):
    """A group of commands that are stubs until one is called. Subclass it with a `table`."""

    table: ClassVar[Mapping[str, CommandEntry]]

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Replace the stub by the real command."""
        name, stub, rest = super().resolve_command(ctx, args)
        if name is None or name not in self.table:
            return name, stub, rest
        with _naming_the_extra(self.table[name]):
            return name, load(name, self.table[name]), rest

    def invoke(self, ctx: Any) -> Any:
        """Run; a missing package may also show only while the command runs."""
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            entry = self.table.get(ctx.invoked_subcommand)
            if entry is None:
                raise
            raise _missing(entry, error) from None


def register(app: typer.Typer, table: Mapping[str, CommandEntry]) -> None:
    """Give the app a stub for each command of the table."""
    for name, entry in table.items():
        app.command(name, help=escape(entry.line), rich_help_panel=entry.panel)(_stub)


def load(name: str, entry: CommandEntry) -> Any:
    """Import a command, and turn it into what typer runs."""
    module, _, attribute = entry.path.partition(":")
    found = getattr(importlib.import_module(module), attribute)
    if isinstance(found, typer.Typer):
        return get_command(found)
    app = new_app()
    app.command(name, **texts(found))(found)
    return get_command(app)


def new_app(**options: Any) -> typer.Typer:
    """A typer app with our conventions: `app.py` prints errors, rich prints help."""
    options = {"add_completion": False, **options}
    return typer.Typer(rich_markup_mode="rich", pretty_exceptions_enable=False, **options)


class Texts(TypedDict):
    """A command's help, and the text below its options."""

    help: str
    epilog: str | None


def texts(function: Callable[..., Any]) -> Texts:
    """A function's docstring as help: paragraphs flow, indented lines and examples stay."""
    text, found, examples = inspect.cleandoc(function.__doc__ or "").partition(_EXAMPLES)
    paragraphs = [_flow(paragraph) for paragraph in text.split("\n\n")]
    epilog = f"Examples:\n{inspect.cleandoc(examples)}" if found else None
    return Texts(help=escape("\n\n".join(paragraphs)), epilog=escape(epilog) if epilog else None)


def _flow(paragraph: str) -> str:
    lines = paragraph.splitlines()
    return paragraph if any(line.startswith(" ") for line in lines) else " ".join(lines)


def _stub() -> None:
    raise AssertionError("a stub of a command was called")


@contextmanager
def _naming_the_extra(entry: CommandEntry) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise _missing(entry, error) from None


def _missing(entry: CommandEntry, error: ModuleNotFoundError) -> Exception:
    if (error.name or "").partition(".")[0] == "worker":
        return error  # Our own module: pip cannot install it.
    return MissingExtra(
        f"this command needs `pip install 'registration-worker[{entry.extra}]'` "
        f"({error.name} is not installed)"
    )

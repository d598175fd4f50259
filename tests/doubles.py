"""A library's module as one of ours sees it, in part another."""

from types import ModuleType
from typing import Any


def differing(module: ModuleType, **parts: Any) -> ModuleType:
    """A copy of a module in which these names have other values.

    A test puts it in the place of one module's import. If it changed the library itself, every
    thread that an earlier test has left would see the change."""
    made = ModuleType(module.__name__)
    vars(made).update({**vars(module), **parts})
    return made

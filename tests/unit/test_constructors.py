"""A constructor has at most six arguments; values that belong together are one object."""

import ast
from collections.abc import Iterator
from pathlib import Path

import regworker
import worker

MOST = 6

#: Services call these with keyword arguments; each argument is an independent option.
PUBLIC = {"ResultConsumer", "AsyncResultConsumer"}


def constructors() -> Iterator[tuple[str, list[str]]]:
    """Each class with an explicit constructor, and its arguments, without records and models."""
    folders = [Path(one.__file__).parent for one in (regworker, worker)]
    for file in (file for folder in folders for file in sorted(folder.rglob("*.py"))):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            for made in getattr(node, "body", []) if isinstance(node, ast.ClassDef) else []:
                if isinstance(made, ast.FunctionDef) and made.name == "__init__":
                    of = made.args
                    every = (*of.posonlyargs, *of.args, *of.kwonlyargs)
                    yield node.name, [one.arg for one in every][1:]


def test_no_constructor_takes_more_than_six_arguments() -> None:
    """With more, a class does two things, or some of its arguments should be one object."""
    found = dict(constructors())
    assert len(found) > 50, "they were found"
    assert {name: made for name, made in found.items() if len(made) > MOST}.keys() == PUBLIC

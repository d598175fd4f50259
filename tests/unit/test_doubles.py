"""A test changes what it looks at, never the standard library of its whole process."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parent.parent

#: Meant for the whole process: no module notices a wrong clock or writes elsewhere.
MEANT = {("integration/test_callers.py", "time"), ("integration/test_canary.py", "tempfile")}


def changed(tree: ast.AST) -> Iterator[list[str]]:
    """The names that lead to what each `setattr` of a test changes a part of."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".setattr"):
            where = node.args[0]
            if isinstance(where, ast.Constant):
                yield where.value.split(".")[:-1]
            else:
                yield ast.unparse(where).split(".")


def libraries(tree: ast.AST) -> set[str]:
    """The modules of the standard library that a file imports under their own names."""
    return {
        one.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for one in node.names
        if one.name in sys.stdlib_module_names and not one.asname
    }


def test_no_test_changes_the_standard_library() -> None:
    """Threads that earlier tests have left would see it (`tests.doubles.differing` is for one
    module)."""
    found = {
        (file.relative_to(TESTS).as_posix(), ".".join(names))
        for file in TESTS.rglob("*.py")
        for tree in [ast.parse(file.read_text("utf-8"))]
        for names in changed(tree)
        if names[0] in libraries(tree) or names[-1] in sys.stdlib_module_names.difference(names[:1])
    }
    assert found == MEANT

"""Each class name is used once, and annotations mean what they say."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import regworker
import sandbox
import worker

#: Names of two classes, and the reason.
TWICE = {
    # kombu's own names for the parts of a transport, in our transports for Redis and RabbitMQ.
    *("Channel", "Message", "Transport"),
    # `Producer.enqueue_many` returns one; the other is an attempt's outcome. Both are public.
    "Refused",
}


def classes(*packages: ModuleType) -> Iterator[tuple[Path, ast.ClassDef]]:
    """Each class of these packages, with its file."""
    for package in packages:
        for file in sorted(Path(package.__path__[0]).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text("utf-8"))):
                if isinstance(node, ast.ClassDef):
                    yield file, node


def test_no_two_classes_have_one_name() -> None:
    """Exceptions are names that libraries give, and public names."""
    found: dict[str, list[str]] = defaultdict(list)
    for file, node in classes(regworker, worker):
        found[node.name].append(str(file))
    assert {name for name, files in found.items() if len(files) > 1} == TWICE


def test_no_method_hides_a_name_in_an_annotation_of_its_class() -> None:
    """Python 3.14 evaluates annotations on request; `list[str]` then finds a method `list`."""
    hidden = [
        f"{file}: {one.name}.{method.name}"
        for file, one in classes(regworker, worker, sandbox)
        for method in _methods(one)
        if _annotated(method) & {other.name for other in _methods(one)}
    ]
    assert hidden == []


def _methods(one: ast.ClassDef) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in one.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def _annotated(method: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    notes = [node.annotation for node in ast.walk(method.args) if isinstance(node, ast.arg)]
    return {
        name.id
        for note in (*notes, method.returns)
        if note is not None
        for name in ast.walk(note)
        if isinstance(name, ast.Name)
    }

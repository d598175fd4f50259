"""Each class name is used once, so that a reader knows which class is meant."""

import ast
from collections import defaultdict
from pathlib import Path

import regworker
import worker

#: Names of two classes, and the reason.
TWICE = {
    # kombu's own names for the parts of a transport, in our transports for Redis and RabbitMQ.
    *("Channel", "Message", "Transport"),
    # `Producer.enqueue_many` returns one; the other is an attempt's outcome. Both are public.
    "Refused",
}


def test_no_two_classes_have_one_name() -> None:
    """Exceptions are names that libraries give, and public names."""
    found: dict[str, list[str]] = defaultdict(list)
    folders = [Path(one.__file__).parent for one in (regworker, worker)]
    for file in (file for folder in folders for file in sorted(folder.rglob("*.py"))):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef):
                found[node.name].append(str(file))
    assert {name for name, files in found.items() if len(files) > 1} == TWICE

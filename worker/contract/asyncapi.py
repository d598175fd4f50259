"""The AsyncAPI 3.0 document: `asyncapi.json`, filled with the contract's schemas and examples."""

import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

from worker.broker.wakeups import CANCEL, REGISTER

Document = dict[str, Any]

#: Any unique text; examples show this one.
_TASK_ID = "5b1ff6a9-6c6d-4a3e-9d0a-5a1f2f6f9a10"


def document(
    version: str, schemas: Mapping[str, Document], examples: Mapping[str, Mapping[str, Document]]
) -> Document:
    """The document. `schemas` and `examples`: of `job`, `cancel` and `event`."""
    found: Document = template()
    found["info"]["version"] = version
    found["components"]["schemas"] = components(schemas)
    job, cancel, event = examples["job"], examples["cancel"], examples["event"]
    filled = {
        "jobEntry": _entries("job", job),
        "cancelEntry": _entries("cancel", cancel),
        "jobTask": _tasks(REGISTER, job),
        "cancelTask": _tasks(CANCEL, cancel),
        "eventEntry": _entries("event", event),
        "event": _events(event),
        "webhook": _events(event),
    }
    for name, shown in filled.items():
        found["components"]["messages"][name]["examples"] = shown
    return found


def template() -> Document:
    """The fixed part: servers, channels, operations, messages without their examples."""
    file = resources.files("worker.contract") / "asyncapi.json"
    found: Document = json.loads(file.read_text("utf-8"))
    return found


def _entries(field: str, examples: Mapping[str, Document]) -> list[Document]:
    texts = {name: json.dumps(one, separators=(",", ":")) for name, one in examples.items()}
    return [{"name": name, "payload": {field: text}} for name, text in texts.items()]


def _tasks(task: str, examples: Mapping[str, Document]) -> list[Document]:
    headers = {"id": _TASK_ID, "task": task}
    return [
        {"name": name, "headers": headers, "payload": [[one], {}, {}]}
        for name, one in examples.items()
    ]


def _events(examples: Mapping[str, Document]) -> list[Document]:
    return [{"name": name, "payload": one} for name, one in examples.items()]


def components(schemas: Mapping[str, Document]) -> Document:
    """All schemas side by side, under their own names."""
    found: Document = {}
    for schema in schemas.values():
        own = {key: value for key, value in schema.items() if not key.startswith("$")}
        parts = {own["title"]: own, **schema.get("$defs", {})}
        for name, part in parts.items():
            moved = _moved(part)
            if found.setdefault(name, moved) != moved:
                raise ValueError(f"two schemas are named {name}")
    return found


def _moved(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {
            key: value.replace("#/$defs/", "#/components/schemas/")
            if key == "$ref"
            else _moved(value)
            for key, value in node.items()
        }
    return [_moved(one) for one in node] if isinstance(node, list) else node

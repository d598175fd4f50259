"""The OpenAPI 3.1 document: `openapi.json`, filled with the schemas of the models."""

import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

from pydantic import TypeAdapter

from regworker.domain.receipt import Status
from worker.contract.asyncapi import components

Document = dict[str, Any]

_KEY = "idempotency_key"


def http_document(version: str, schemas: Mapping[str, Document]) -> Document:
    """The document. `schemas`: of `job` and `event`."""
    file = resources.files("worker.contract") / "openapi.json"
    found: Document = json.loads(file.read_text("utf-8"))
    found["info"]["version"] = version
    ours = {"job": schemas["job"], "event": schemas["event"], "status": _status()}
    parts = components(ours)
    # The header Idempotency-Key may contain it instead.
    parts["Job"]["required"] = [one for one in parts["Job"]["required"] if one != _KEY]
    found["components"]["schemas"] = {**parts, **found["components"]["schemas"]}
    return found


def _status() -> Document:
    """The status of a job in answers: with its end, and its timeline as objects."""
    found = TypeAdapter(Status).json_schema(mode="serialization")
    step = {"at": {"type": "string", "format": "date-time"}, "what": {"type": "string"}}
    steps = {"type": "object", "required": list(step), "properties": step}
    found["properties"] |= {
        "event": {"anyOf": [{"$ref": "#/components/schemas/Event"}, {"type": "null"}]},
        "final": {"type": "boolean", "description": "Whether the job has ended."},
        "timeline": {"type": "array", "items": steps},
    }
    found["required"] = [*found["required"], "final"]
    return found

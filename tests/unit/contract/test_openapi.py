"""The HTTP contract: new versions keep its promises, and the check finds violations."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from regworker.settings import Settings
from tests.contract.http_compatibility import breaks_clients
from worker.contract.schemas import files
from worker.providers.registry import Registry

ROOT = Path(__file__).parents[3]
RECORDED = json.loads((ROOT / "tests" / "contract" / "v1" / "openapi.json").read_text("utf-8"))
REGISTRY = Registry(Settings.model_fields["providers"].get_default(call_default_factory=True))
DOCUMENT = files(REGISTRY)["openapi.json"]


#: Additions since the first version that the contract allows: new types of event, an answer for a
#: key whose job was erased, which only operators do, and one for an encoded body, which was never
#: accepted.
ADDED = [
    "DELETE /v1/jobs/{job_id}: 200.event.type: 'registration.corrected'",
    "GET /v1/events: 200.events[].type: 'registration.corrected'",
    "GET /v1/jobs/{job_id}: 200.event.type: 'registration.corrected'",
    "GET /v1/jobs: 200.event.type: 'registration.corrected'",
    "POST /v1/jobs: 410: is new",
    "POST /v1/jobs: 415: is new",
    "POST /v1/jobs:batch: 415: is new",
]


def test_version_1_still_holds() -> None:
    """A client that was generated from the first document still works."""
    assert breaks_clients(RECORDED, DOCUMENT) == ADDED


Change = Callable[[Any, Any], Any]
"""Changes the paths and the components."""


def changed(change: Change) -> list[str]:
    """The violations that a change of the current document causes."""
    found = copy.deepcopy(DOCUMENT)
    change(found["paths"], found["components"])
    return breaks_clients(DOCUMENT, found)


def wait_is_required(paths: Any, _: Any) -> None:
    """A new required parameter."""
    more = {"name": "shop", "in": "query", "required": True, "schema": {"type": "string"}}
    paths["/v1/jobs"]["get"]["parameters"].append(more)


BREAKS: dict[str, tuple[Change, str]] = {
    "a path": (lambda paths, _: paths.pop("/v1/events"), "GET /v1/events: gone"),
    "a method": (lambda paths, _: paths["/v1/jobs"].pop("get"), "GET /v1/jobs: gone"),
    "a parameter": (
        lambda paths, _: paths["/v1/events"]["get"]["parameters"].pop(0),
        "GET /v1/events: after: gone",
    ),
    "a parameter that is new and required": (wait_is_required, "GET /v1/jobs: shop: left out"),
    "a limit": (
        lambda _, parts: parts["parameters"]["wait"]["schema"].update(maximum=30),
        "GET /v1/events: wait: above maximum 30",
    ),
    "a field that is required of a job": (
        lambda _, parts: parts["schemas"]["Job"]["required"].append("lane"),
        "POST /v1/jobs: body.lane: left out",
    ),
    "a body's type": (
        lambda paths, _: paths["/v1/jobs"]["post"]["requestBody"]["content"].pop(
            "application/json"
        ),
        "POST /v1/jobs: body: as application/json",
    ),
    "a status": (
        lambda paths, _: paths["/v1/jobs"]["post"]["responses"].update({"202": {}}),
        "POST /v1/jobs: 202: is new",
    ),
    "a field of an answer": (
        lambda _, parts: parts["schemas"]["Accepted"]["properties"].pop("repeat"),
        "POST /v1/jobs: 201.repeat: gone",
    ),
    "a field of an answer that may be missing": (
        lambda _, parts: parts["schemas"]["Problem"]["required"].remove("verdict"),
        "POST /v1/jobs: 409.verdict: left out",
    ),
    "a value of an answer": (
        lambda _, parts: parts["schemas"]["Verdict"]["enum"].append("perhaps"),
        "POST /v1/jobs: 201.verdict: 'perhaps'",
    ),
    "a header of an answer": (
        lambda _, parts: parts["responses"]["429"]["headers"].pop("Retry-After"),
        "POST /v1/jobs: 429: header Retry-After: gone",
    ),
    "an answer's type": (
        lambda _, parts: parts["responses"]["404"]["content"].update(
            {"application/json": {"schema": {}}}
        ),
        "GET /v1/jobs: 404: of another media type",
    ),
    "a token": (
        lambda paths, _: paths["/v1/health"]["get"].pop("security"),
        "GET /v1/health: other credentials",
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_change_that_breaks_clients_is_found(name: str) -> None:
    """For each kind of change, the violation is named."""
    change, named = BREAKS[name]
    assert named in changed(change)


ADDS: dict[str, Change] = {
    "a path": lambda paths, _: paths.update({"/v1/more": paths["/v1/events"]}),
    "a parameter": lambda paths, _: paths["/v1/jobs"]["get"]["parameters"].append(
        {"name": "shop", "in": "query", "required": False, "schema": {"type": "string"}}
    ),
    "a limit that is wider": lambda _, parts: parts["parameters"]["wait"]["schema"].update(
        maximum=90
    ),
    "a field of a job": lambda _, parts: parts["schemas"]["Job"]["properties"].update(
        colour={"type": "string"}
    ),
    "a field of an answer": lambda _, parts: parts["schemas"]["Accepted"]["properties"].update(
        colour={"type": "string"}
    ),
    "an answer that comes no more": lambda paths, _: paths["/v1/jobs"]["post"]["responses"].pop(
        "200"
    ),
}


@pytest.mark.parametrize("name", ADDS)
def test_a_change_that_only_adds_breaks_no_client(name: str) -> None:
    """New optional input and new output break no client."""
    assert changed(ADDS[name]) == []

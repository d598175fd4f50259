"""The contract that others build on: it matches the models, and keeps earlier promises."""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from regworker.acceptance import Intake
from regworker.domain.errors import InvalidJob
from regworker.domain.event import Event, Notice
from regworker.domain.job import Cancel
from regworker.sealing import seals
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from tests.contract.compatibility import breaks_readers, breaks_senders
from tests.programs import npm_packages
from worker.contract import schemas
from worker.providers.registry import Registry

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs" / "contract" / "v1"
RECORDED = ROOT / "tests" / "contract" / "v1"
CHECKER = ROOT / "tests" / "node" / "asyncapi"

REGISTRY = Registry(Settings.model_fields["providers"].get_default(call_default_factory=True))
FILES = schemas.files(REGISTRY)
SCHEMAS = schemas.schemas(REGISTRY)
ASYNCAPI = FILES["asyncapi.json"]
#: The old key opens text from before texts named their kind.
RING = Keyring.parse(f"{Keyring.new('first')},{schemas.EXAMPLE_KEY}")
INTAKE = Intake(REGISTRY, RING, 86400)
EITHER: TypeAdapter[Event | Notice] = TypeAdapter(Event | Notice)


def recorded(kind: str) -> list[Any]:
    """The recorded examples of version 1, by file name."""
    found = sorted((RECORDED / kind).glob("*.json"))
    assert found
    return [pytest.param(json.loads(one.read_text("utf-8")), id=one.stem) for one in found]


def examples(name: str) -> list[Any]:
    """The examples of a schema."""
    return [pytest.param(one, id=str(n)) for n, one in enumerate(SCHEMAS[name]["examples"])]


def valid(name: str, value: Any) -> None:
    """Raise unless the schema of this name accepts the value."""
    from jsonschema import Draft202012Validator  # takes two seconds

    Draft202012Validator(SCHEMAS[name]).validate(value)


# the stored files


@pytest.mark.parametrize("name", sorted(FILES))
def test_what_is_kept_is_what_the_models_say(name: str) -> None:
    """After a change, run `regworker contract asyncapi -o DIR` and `... jsonschema -o DIR`."""
    kept = json.loads((DOCS / name).read_text("utf-8"))
    assert kept == FILES[name], f"docs/contract/v1/{name} differs from the models"


def test_nothing_else_is_kept() -> None:
    """The folder has no obsolete file."""
    assert {file.name for file in DOCS.glob("*.json")} == set(FILES)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["asyncapi"], ASYNCAPI),
        (["asyncapi", "--json"], ASYNCAPI),
        (["jsonschema", "job"], SCHEMAS["job"]),
        (["jsonschema"], SCHEMAS),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_command_prints_it(arguments: list[str], expected: Any) -> None:
    """The command needs no settings."""
    assert json.loads(regworker(*arguments)) == expected


def test_the_command_writes_it(tmp_path: Path) -> None:
    """Into a directory, under the names of the stored files."""
    for name in ("asyncapi", "openapi"):
        regworker(name, "--output", str(tmp_path))
    printed = json.loads(regworker("jsonschema", "--output", str(tmp_path), "--json"))
    assert len(printed["written"]) == 3
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (DOCS / name).read_bytes()


def regworker(*arguments: str) -> str:
    """Run `regworker contract`, and return what it printed."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith("REGWORKER_")}
    done = subprocess.run(
        [sys.executable, "-m", "worker.cli", "contract", *arguments],
        env=bare,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


# the schemas


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_a_schema_is_one(name: str) -> None:
    """It is valid in the dialect that it names, and every reference leads somewhere."""
    from jsonschema import Draft202012Validator

    Draft202012Validator.check_schema(SCHEMAS[name])
    refs = set(json.dumps(SCHEMAS[name]).split('"#/$defs/')[1:])
    assert {ref.partition('"')[0] for ref in refs} <= set(SCHEMAS[name].get("$defs", {}))


@pytest.mark.parametrize("job", [*examples("job"), *recorded("jobs")])
def test_a_job_that_is_shown_is_taken(job: dict[str, Any]) -> None:
    """Its schema accepts it, and so does the check of every entry point."""
    valid("job", job)
    INTAKE.check(job)


@pytest.mark.parametrize("cancel", [*examples("cancel"), *recorded("cancels")])
def test_a_cancel_that_is_shown_is_taken(cancel: dict[str, Any]) -> None:
    """Its schema and its model accept it."""
    valid("cancel", cancel)
    Cancel.model_validate(cancel)


@pytest.mark.parametrize("event", [*examples("event"), *recorded("events")])
def test_an_event_that_is_shown_can_be_read(event: dict[str, Any]) -> None:
    """Also an event of an older version."""
    valid("event", event)
    assert EITHER.validate_python(event).model_dump(mode="json", exclude_none=True) == event


@pytest.mark.parametrize("name", ["skypostal", "open2b"])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda job: job.update(colour="red"),
        lambda job: job.pop("idempotency_key"),
        lambda job: job.update(idempotency_key="a\nb"),
        lambda job: job.update(provider="nobody"),
        lambda job: job.update(provider="open2b" if job["provider"] != "open2b" else "skypostal"),
        lambda job: job.update(lane="fast"),
        lambda job: job.update(reply_to=["https://example.com"]),
        lambda job: job.update(registration="a.b.c"),
        lambda job: job.update(registration={}),
        lambda job: job["registration"].update(planet="Earth"),
        lambda job: job.update(metadata=[]),
    ],
)
def test_what_a_schema_refuses_is_refused(name: str, spoil: Callable[[Any], Any]) -> None:
    """A producer that checks jobs by the schema finds such errors before it sends."""
    from jsonschema import ValidationError

    job = copy.deepcopy(schemas.jobs(REGISTRY)[name])
    spoil(job)
    with pytest.raises(ValidationError):
        valid("job", job)
    with pytest.raises(InvalidJob):
        INTAKE.check(job)


def test_a_reader_need_not_mind_what_is_added() -> None:
    """Schema and client accept unknown fields anywhere in an event."""
    event = copy.deepcopy(schemas.events()["rejected"])
    event["traceparent"] = "00-1-1-00"
    event["data"]["region"] = "eu"
    event["data"]["errors"][0]["hint"] = "try another"
    valid("event", event)
    read = EITHER.validate_python(event)
    assert isinstance(read, Event)
    assert read.id == event["id"]


def test_the_sealed_example_can_be_opened_with_the_key_that_is_shown() -> None:
    """Readers can try their own JOSE library on it."""
    example = schemas.jobs(REGISTRY)["sealed"]
    ring, seal = Keyring.parse(schemas.EXAMPLE_KEY), seals.registration(example)
    opened = json.loads(ring.open(schemas.EXAMPLE_SEALED, seal))
    job, registration = INTAKE.check(example)
    assert json.loads(registration) == opened == job.registration


# compatibility with version 1


#: What later versions added for readers. It appears only after an operator's act, and readers that
#: do not know it still work (`test_corrections.py`).
ADDED = {"event": [".type: 'registration.corrected'"]}


@pytest.mark.parametrize(
    ("name", "breaks"),
    [("job", breaks_senders), ("cancel", breaks_senders), ("event", breaks_readers)],
)
def test_version_1_still_holds(name: str, breaks: Callable[[Any, Any], list[str]]) -> None:
    """All input that was valid still is, and all output was announced."""
    old = json.loads((RECORDED / f"{name}.schema.json").read_text("utf-8"))
    assert breaks(old, SCHEMAS[name]) == ADDED.get(name, [])


def _job(change: Callable[[Any, Any], Any]) -> dict[str, Any]:
    schema = copy.deepcopy(SCHEMAS["job"])
    change(schema["properties"], schema)
    return schema


def _event(change: Callable[[Any], Any]) -> dict[str, Any]:
    schema = copy.deepcopy(SCHEMAS["event"])
    change(schema["$defs"])
    return schema


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda fields, _: fields.pop("lane"), ".lane: given"),
        (lambda fields, _: fields["lane"]["enum"].remove("bulk"), ".lane: 'bulk'"),
        (lambda _, job: job["required"].append("lane"), ".lane: left out"),
        (lambda fields, _: fields["idempotency_key"].update(maxLength=64), "above maxLength 64"),
        (lambda fields, _: fields["account"].update(pattern="^x"), "not of pattern ^x"),
        (lambda fields, _: fields["metadata"].update(type="string"), ".metadata: of type object"),
        (lambda fields, _: fields["deadline"]["anyOf"].pop(), ".deadline: of type null"),
        (lambda fields, _: fields["registration"]["anyOf"].pop(), ".registration: "),
        (lambda fields, _: fields["provider"]["enum"].remove("open2b"), "'open2b'"),
        (
            lambda _, job: job["$defs"]["Open2bCustomer"]["required"].append("cart"),
            ".registration.customer.cart: left out",
        ),
        (
            lambda _, job: job["$defs"]["SkyPostalPhone"]["properties"].pop("phone_extension"),
            ".registration.customer_phone[].phone_extension: given",
        ),
        (lambda _, job: job["allOf"].append({"if": {}, "then": {}}), "a rule that is new"),
    ],
)
def test_a_change_that_breaks_senders_is_found(change: Any, named: str) -> None:
    """A removed field or value, a new required field or a narrower limit would refuse today's
    jobs."""
    found = breaks_senders(SCHEMAS["job"], _job(change))
    assert any(named in one for one in found), found


@pytest.mark.parametrize(
    "change",
    [
        lambda fields, _: fields.update(colour={"type": "string"}),
        lambda fields, _: fields["lane"]["enum"].append("night"),
        lambda _, job: job["required"].remove("registration"),
        lambda fields, _: fields["idempotency_key"].update(maxLength=300),
        lambda _, job: job["$defs"]["Open2bCustomer"]["properties"].update(nickname={}),
        lambda fields, _: fields["registration"]["anyOf"].append({"type": "object"}),
    ],
)
def test_a_change_that_only_adds_breaks_no_sender(change: Any) -> None:
    """New optional input breaks no sender."""
    assert breaks_senders(SCHEMAS["job"], _job(change)) == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda parts: parts["EventData"]["required"].remove("attempts"), ".attempts: left out"),
        (lambda parts: parts["EventData"]["properties"].pop("outcome"), ".data.outcome: gone"),
        (lambda parts: parts["Code"]["enum"].append("bad_luck"), "'bad_luck'"),
        (lambda parts: parts["EventType"]["enum"].append("registration.lost"), "registration.lost"),
        (lambda parts: parts["EventError"]["properties"]["message"].update(type="null"), "null"),
        (lambda parts: parts["DisabledData"]["required"].remove("dead"), ".dead: left out"),
    ],
)
def test_a_change_that_breaks_readers_is_found(change: Any, named: str) -> None:
    """A field that may now be missing, or a value that was not announced."""
    found = breaks_readers(SCHEMAS["event"], _event(change))
    assert any(named in one for one in found), found


@pytest.mark.parametrize(
    "change",
    [
        lambda parts: parts["EventData"]["properties"].update(region={"type": "string"}),
        lambda parts: parts["EventData"]["required"].append("outcome"),
        lambda parts: parts["Code"]["enum"].remove("attempts"),
    ],
)
def test_a_change_that_only_adds_breaks_no_reader(change: Any) -> None:
    """The contract asks readers to ignore unknown fields."""
    assert breaks_readers(SCHEMAS["event"], _event(change)) == []


# AsyncAPI


@pytest.mark.parametrize("name", sorted(ASYNCAPI["components"]["messages"]))
def test_the_examples_of_a_message_are_such_messages(name: str) -> None:
    """Payload, headers, and the JSON in an entry's field; all entries except sealed ones have
    examples."""
    message = ASYNCAPI["components"]["messages"][name]
    shown = message.get("examples", [])
    assert shown or name == "sealedEntry"
    for one in shown:
        _as(message["payload"], one["payload"])
        _as(message.get("headers", {}), one.get("headers", {}) if name != "webhook" else WEBHOOK)
        for field, schema in message["payload"].get("properties", {}).items():
            if "contentSchema" in schema:
                _as(schema["contentSchema"], json.loads(one["payload"][field]))


WEBHOOK = {
    "webhook-id": "1",
    "webhook-timestamp": "1795324867",
    "webhook-signature": "v1,c2lnbmF0dXJl",
}


def _as(schema: Any, value: Any) -> None:
    from jsonschema import Draft7Validator

    Draft7Validator({"components": ASYNCAPI["components"], "allOf": [schema]}).validate(value)


def test_every_message_is_on_a_channel_and_every_channel_is_used() -> None:
    """The document describes nothing that is not used."""
    on = [set(channel["messages"]) for channel in ASYNCAPI["channels"].values()]
    assert set.union(*on) == set(ASYNCAPI["components"]["messages"])
    used = {one["channel"]["$ref"] for one in ASYNCAPI["operations"].values()}
    assert used == {f"#/channels/{name}" for name in ASYNCAPI["channels"]}


@pytest.fixture(scope="module")
def checker(request: pytest.FixtureRequest) -> Path:
    """AsyncAPI's own parser at the pinned version, kept from one run to the next."""
    return npm_packages(request.config, CHECKER, "the AsyncAPI parser")


def parsed(checker: Path, document: Any) -> subprocess.CompletedProcess[str]:
    """The parser's result for a document."""
    return subprocess.run(
        ["node", "validate.mjs"],
        cwd=checker,
        input=json.dumps(document),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_asyncapis_own_parser_takes_the_document(checker: Path) -> None:
    """It reports no error, warning or hint, and finds every message."""
    done = parsed(checker, ASYNCAPI)
    assert done.returncode == 0, done.stdout + done.stderr
    printed = json.loads(done.stdout)
    assert printed["version"] == "3.0.0"
    assert set(printed["messages"]) == set(ASYNCAPI["components"]["messages"])


def test_asyncapis_own_parser_is_no_rubber_stamp(checker: Path) -> None:
    """It reports a reference that leads nowhere."""
    wrong = copy.deepcopy(ASYNCAPI)
    wrong["operations"]["takeJob"]["channel"]["$ref"] = "#/channels/nowhere"
    done = parsed(checker, wrong)
    assert done.returncode == 1
    assert "#/channels/nowhere" in done.stdout


def test_the_parsers_lock_names_no_registry() -> None:
    """Each developer uses their own registry."""
    locked = json.loads((CHECKER / "package-lock.json").read_text("utf-8"))
    packages = locked["packages"]
    assert not [name for name, one in packages.items() if "resolved" in one]
    assert all("integrity" in one for name, one in packages.items() if name)

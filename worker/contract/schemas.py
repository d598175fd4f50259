"""The contract: input and output as JSON Schemas, generated from the models.

`files` returns every document by its name, including the AsyncAPI one (`asyncapi.py`). They are
kept in `docs/contract/`; tests compare them with the models, with what workers really publish, and
with the jobs that older versions accepted.

Input is closed: an unknown field is a mistake of the sender. Output is open: readers must ignore
unknown fields, so that a version can add one.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from regworker.domain.event import (
    DisabledData,
    Event,
    EventData,
    EventError,
    EventType,
    Notice,
    RefusalData,
    event_id,
    moment,
)
from regworker.domain.job import Cancel, Job, job_id
from regworker.domain.outcome import Code
from sandbox.documented import (
    OPEN2B_CUSTOMER_KEY,
    OPEN2B_SIGN_UP,
    SKYPOSTAL_REGISTERED,
    SKYPOSTAL_REGISTRATION,
)
from worker.contract.asyncapi import document
from worker.contract.openapi import http_document
from worker.providers.registry import Registry

Document = dict[str, Any]

VERSION = "1.3.0"
"""The version of the contract. The first number changes if a job that was accepted would be
refused, or if readers of events would have to change; the second number changes if something is
added."""

DIALECT = "https://json-schema.org/draft/2020-12/schema"

#: JWE, compact: header, no encrypted key (`dir`), initialization vector, ciphertext, tag.
SEALED_PATTERN = r"^[A-Za-z0-9_-]+\.\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+$"

EXAMPLE_KEY = "example:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
"""An entry of `REGWORKER_SEALING_KEYS` that opens `EXAMPLE_SEALED`; for nothing else."""

EXAMPLE_SEALED = (
    "eyJhbGciOiJkaXIiLCJlbmMiOiJBMjU2R0NNIiwia2lkIjoiZXhhbXBsZSIsInR5cCI6InJlZ2lzdHJhdGlvbi"
    "IsInN1YiI6Im9wZW4yYi9kZWZhdWx0L2NybS04ODQzIn0..QBYmccj1LvVg6Q86.mccXydHAxYPZ6jV9N9RAeA"
    "c67p4IHR7AWNWKYqfXXkUJ7RX5q3FZ0s3Iq-beZ1sOIGQGQTLuTXau10Ic22PTmcjeV5iHEMpX2cJMZkjMpY8f"
    "B4oiX7S0QpXCREgwz1RhnFapuCr6PIm3.oSPMGe_SfgXPttx0XdzA3w"
)
"""The least registration of an Open2b store, sealed under that key."""


def files(registry: Registry) -> dict[str, Document]:
    """Every document of the contract, by the name of its file."""
    found = schemas(registry)
    return {
        "asyncapi.json": document(VERSION, found, _examples(registry)),
        "openapi.json": http_document(VERSION, found),
        **{f"{name}.schema.json": schema for name, schema in found.items()},
    }


def schemas(registry: Registry) -> dict[str, Document]:
    """The JSON Schemas (2020-12) of what goes in, `job` and `cancel`, and what comes out, `event`.

    The registration of a job is that of each provider of the registry, or sealed.
    """
    found = {"job": _job(registry), "cancel": _cancel(), "event": _event()}
    examples = _examples(registry)
    return {
        name: {
            "$schema": DIALECT,
            "$id": f"urn:registration-worker:contract:{VERSION.partition('.')[0]}:{name}",
            **schema,
            "examples": list(examples[name].values()),
        }
        for name, schema in found.items()
    }


# -- input ----------------------------------------------------------------------------------------


def _job(registry: Registry) -> Document:
    job = _schema(TypeAdapter(Job), "validation")
    definitions: Document = job.setdefault("$defs", {})
    providers = sorted(registry)
    sealed = {"$ref": "#/$defs/Sealed"}
    bodies, rules = [], []
    for provider in providers:
        body = {"$ref": f"#/$defs/{_hoist(registry, provider, definitions)}"}
        bodies.append(body)
        rules.append(
            {
                "if": {"properties": {"provider": {"const": provider}}, "required": ["provider"]},
                "then": {"properties": {"registration": {"anyOf": [body, sealed]}}},
            }
        )
    definitions["Sealed"] = {
        "description": "A registration as JSON (UTF-8), sealed by its sender as a compact JWE: "
        '`{"alg": "dir", "enc": "A256GCM", "kid": "...", "typ": "registration", "sub": '
        '"<provider>/<account>/<idempotency_key>"}`, under a key that the workers hold; `aud`, if '
        "given, names each endpoint that may get the result.",
        "type": "string",
        "pattern": SEALED_PATTERN,
        "contentMediaType": "application/jose",
    }
    fields = job["properties"]
    fields["provider"] = {"description": "Which provider.", "type": "string", "enum": providers}
    fields["registration"] = {
        "description": fields["registration"]["description"],
        "anyOf": [*bodies, sealed],
    }
    return {**job, "allOf": rules}


def _hoist(registry: Registry, provider: str, definitions: Document) -> str:
    """Move a provider's registration into the definitions; return its name there."""
    model = registry[provider].Registration
    prefix = registry[provider].__name__
    schema = _schema(TypeAdapter(model), "validation")

    def named(name: str) -> str:
        return name if name.startswith(prefix) else f"{prefix}{name}"

    def moved(node: Any) -> Any:
        if isinstance(node, Mapping):
            return {
                key: f"#/$defs/{named(value.rpartition('/')[2])}" if key == "$ref" else moved(value)
                for key, value in node.items()
            }
        return [moved(one) for one in node] if isinstance(node, list) else node

    for name, inner in schema.pop("$defs", {}).items():
        definitions[named(name)] = {**moved(inner), "title": named(name)}
    definitions[named(model.__name__)] = moved(schema)
    return named(model.__name__)


def _cancel() -> Document:
    cancel = _schema(TypeAdapter(Cancel), "validation", _WithoutNulls)
    by_id, by_key = ["job_id"], ["provider", "idempotency_key"]
    return {**cancel, "oneOf": [{"required": by_id}, {"required": by_key}]}


# -- output ---------------------------------------------------------------------------------------


def _event() -> Document:
    either: TypeAdapter[Event | Notice] = TypeAdapter(Event | Notice)
    return {
        "title": "AnyEvent",
        "description": "A CloudEvent (1.0, JSON), the same bytes on every channel. Deduplicate by "
        "`id`. Ignore unknown fields and unknown types: a later version may add some.",
        **_open(_schema(either, "serialization", _WithoutNulls)),
    }


def _open(node: Any) -> Any:
    """The schema, allowing unknown fields."""
    if isinstance(node, Mapping):
        closed = node.get("additionalProperties") is False
        return {
            key: _open(value)
            for key, value in node.items()
            if not (closed and key == "additionalProperties")
        }
    return [_open(one) for one in node] if isinstance(node, list) else node


# -- from models to schemas -----------------------------------------------------------------------


class _Plain(GenerateJsonSchema):
    """Pydantic's schemas without titles of fields, which only repeat their names."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Never."""
        return False


class _WithoutNulls(_Plain):
    """For fields that are omitted without a value, and always present otherwise."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> Document:
        """The schema of the value, if it is present."""
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> Document:
        """A default of None is not a default."""
        if _none(schema):
            return self.generate_inner(schema["schema"])
        return super().default_schema(schema)

    def field_is_required(self, field: Any, total: bool) -> bool:
        """Fields with a default are always written, except those that are None."""
        if self.mode == "serialization":
            return not _none(field["schema"])
        return super().field_is_required(field, total)


def _none(schema: Any) -> bool:
    return schema["type"] == "default" and schema.get("default", ...) is None


def _schema(
    adapter: TypeAdapter[Any], mode: Any, generator: type[GenerateJsonSchema] = _Plain
) -> Document:
    found: Document = _flowing(adapter.json_schema(mode=mode, schema_generator=generator))
    return found


def _flowing(node: Any) -> Any:
    """Docstrings without line breaks."""
    if isinstance(node, Mapping):
        return {
            key: re.sub(r"(?<!\n)\n(?!\n)", " ", value)
            if key == "description" and isinstance(value, str)
            else _flowing(value)
            for key, value in node.items()
        }
    return [_flowing(one) for one in node] if isinstance(node, list) else node


# -- examples -------------------------------------------------------------------------------------

_AT = 1_795_324_867_000
_KEY = "crm-8841"


def _examples(registry: Iterable[str]) -> dict[str, dict[str, Document]]:
    return {"job": jobs(registry), "cancel": cancels(), "event": events()}


def jobs(registry: Iterable[str]) -> dict[str, Document]:
    """Jobs, by what they show; their registrations are those of the providers' documentation."""
    skypostal = {name: value for name, value in SKYPOSTAL_REGISTRATION.items() if name != "copa_id"}
    found: dict[str, Document] = {
        "skypostal": {
            "provider": "skypostal",
            "account": "default",
            "idempotency_key": _KEY,
            "registration": skypostal,
            "reply_to": ["results"],
            "lane": "live",
            "if_exists": "reject",
            "deadline": "2030-01-01T00:00:00Z",
            "metadata": {"order": "A-17"},
        },
        "open2b": {
            "provider": "open2b",
            "idempotency_key": "crm-8842",
            "registration": OPEN2B_SIGN_UP,
        },
        "sealed": {
            "provider": "open2b",
            "idempotency_key": "crm-8843",
            "registration": EXAMPLE_SEALED,
        },
    }
    known = set(registry)
    return {name: job for name, job in found.items() if job["provider"] in known}


def cancels() -> dict[str, Document]:
    """Requests to cancel a job."""
    return {
        "by_key": {"provider": "skypostal", "idempotency_key": _KEY},
        "by_id": {"job_id": job_id("skypostal", "default", _KEY)},
    }


def events() -> dict[str, Document]:
    """An event of each type, and the answer to a refused request."""
    registered = {
        name: SKYPOSTAL_REGISTERED[0][name] for name in ("customer_box_id", "customer_key")
    }
    taken = EventError(
        code=Code.ALREADY_EXISTS,
        field="customer_email",
        message="The email account sent is already registered and associated with a BOX.",
    )
    late = EventError(code=Code.DEADLINE, message="the deadline passed")
    unsure = EventError(
        code=Code.PROVIDER_ERROR, message="the answer was lost, and nobody can tell"
    )
    theirs = EventError(
        code=Code.PROVIDER_ERROR, message="the customer is another's: a person had decided wrongly"
    )
    conflict = EventError(
        code=Code.IDEMPOTENCY_CONFLICT,
        field="idempotency_key",
        message=f"{_KEY!r} is taken by job {job_id('skypostal', 'default', _KEY)} "
        "with other content",
    )
    found: dict[str, Event | Notice] = {
        "registered": _told(EventType.REGISTERED, "skypostal", outcome=registered),
        "recovered": _told(
            EventType.REGISTERED,
            "open2b",
            outcome={"customer_key": OPEN2B_CUSTOMER_KEY},
            recovered=True,
        ),
        "rejected": _told(EventType.REJECTED, "skypostal", errors=(taken,)),
        "abandoned": _told(EventType.ABANDONED, "open2b", errors=(late,), attempts=0),
        "cancelled": _told(EventType.CANCELLED, "open2b", attempts=0),
        "review": _told(EventType.REVIEW, "skypostal", errors=(unsure,)),
        "corrected": _told(
            EventType.CORRECTED,
            "skypostal",
            errors=(theirs,),
            corrects=event_id(job_id("skypostal", "default", _KEY), 0, EventType.REGISTERED),
        ),
        "refused": Event(
            id="refused-0d8f9c3f3b7e4f0f9a4be0e1f6c2d7a5.rejected",
            source="/registration-worker",
            type=EventType.REJECTED,
            subject="refused-0d8f9c3f3b7e4f0f9a4be0e1f6c2d7a5",
            time=moment(_AT),
            data=RefusalData(
                request="register",
                job_id=job_id("skypostal", "default", _KEY),
                idempotency_key=_KEY,
                provider="skypostal",
                account="default",
                metadata={"order": "A-18"},
                errors=(conflict,),
            ),
        ),
        "disabled": Notice(
            id="crm.1.disabled",
            source="/registration-worker",
            type="endpoint.disabled",
            subject="crm",
            time=moment(_AT),
            data=DisabledData(endpoint="crm", reason="HTTP 410", since=moment(_AT), dead=3),
        ),
    }
    return {name: _as_written(one) for name, one in found.items()}


def _told(kind: EventType, provider: str, *, attempts: int = 1, **data: Any) -> Event:
    subject = job_id(provider, "default", _KEY)
    return Event(
        id=event_id(subject, 0, kind),
        source="/registration-worker",
        type=kind,
        subject=subject,
        time=moment(_AT),
        data=EventData(
            job_id=subject,
            idempotency_key=_KEY,
            provider=provider,
            account="default",
            attempts=attempts,
            accepted_at=moment(_AT - 1000),
            finished_at=moment(_AT),
            metadata={"order": "A-17"},
            **data,
        ),
    )


def _as_written(event: BaseModel) -> Document:
    return event.model_dump(mode="json", exclude_none=True)

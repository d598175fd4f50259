"""The contract: what goes in and what comes out, as JSON Schemas, generated from the models.

`files` gives every document by its name, the AsyncAPI one (`asyncapi.py`) among them. They are kept
in `docs/contract/`; tests hold them against the models, against what workers really publish, and
against the jobs that older versions took.

What goes in is closed: a field that nobody knows is a mistake of its sender's. What comes out is
open: a reader must not mind a field that it doesn't know, so that a version can add one.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from sandbox.documented import (
    OPEN2B_CUSTOMER_KEY,
    OPEN2B_SIGN_UP,
    SKYPOSTAL_REGISTERED,
    SKYPOSTAL_REGISTRATION,
)
from worker.asyncapi import document
from worker.event import (
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
from worker.job import Cancel, Job, job_id
from worker.outcome import Code
from worker.providers.registry import Registry

Document = dict[str, Any]

VERSION = "1.0.0"
"""The contract's own. The first number changes when a job that was taken is not taken any more, or
when a reader of events would have to change; the second when something is added."""

DIALECT = "https://json-schema.org/draft/2020-12/schema"

#: JWE, compact: header, no encrypted key (`dir`), initialization vector, ciphertext, tag.
SEALED_PATTERN = r"^[A-Za-z0-9_-]+\.\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+$"

EXAMPLE_KEY = "example:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
"""An entry of `REGWORKER_SEALING_KEYS` that opens `EXAMPLE_SEALED`; for nothing else."""

EXAMPLE_SEALED = (
    "eyJhbGciOiJkaXIiLCJlbmMiOiJBMjU2R0NNIiwia2lkIjoiZXhhbXBsZSJ9..z-838a1NxnvMGtAL.0FCb3C4"
    "Oe7lmNyoqtNjr0ME5bSmMFw_nrud3Dhky--gtVcUxFM0hzLn6Nz8wNkcCZAlg6ECurth697as5dTU6GwyrllyY"
    "f6NQLE4IbbMDR-bjEGH1LDVAoVPMgNQ9yEztczi1HVrYM6H.DXAHLiOPXqxEMxmF6qqx2w"
)
"""The least registration of an Open2b store, sealed under that key."""


def files(registry: Registry) -> dict[str, Document]:
    """Every document of the contract, by the name of its file."""
    found = schemas(registry)
    return {
        "asyncapi.json": document(VERSION, found, _examples(registry)),
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


# -- what goes in ---------------------------------------------------------------------------------


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
        "description": "A registration as JSON (UTF-8), sealed by its sender: JWE, compact; "
        '`{"alg": "dir", "enc": "A256GCM", "kid": "..."}`, under a key that the workers hold.',
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
    """Put a provider's registration among the definitions; its name there."""
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


# -- what comes out -------------------------------------------------------------------------------


def _event() -> Document:
    either: TypeAdapter[Event | Notice] = TypeAdapter(Event | Notice)
    return {
        "title": "AnyEvent",
        "description": "A CloudEvent (1.0, JSON), the same bytes on every channel. Deduplicate by "
        "`id`. Ignore what you don't know: a later version may add fields.",
        **_open(_schema(either, "serialization", _WithoutNulls)),
    }


def _open(node: Any) -> Any:
    """The schema without its ban on fields that it doesn't know."""
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
    """Pydantic's schemas without a title for each field, which is but its name once more."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Never."""
        return False


class _WithoutNulls(_Plain):
    """Of what is left out where there is none, and always there otherwise."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> Document:
        """What it is where it is there."""
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> Document:
        """A default of none is no default."""
        if _none(schema):
            return self.generate_inner(schema["schema"])
        return super().default_schema(schema)

    def field_is_required(self, field: Any, total: bool) -> bool:
        """What is written is written with its default, too, but for none."""
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
    """Docstrings without the ends of their lines."""
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
    """Jobs, by what they are examples of: the bodies that the providers' documentations show."""
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
    """Requests to take a job back."""
    return {
        "by_key": {"provider": "skypostal", "idempotency_key": _KEY},
        "by_id": {"job_id": job_id("skypostal", "default", _KEY)},
    }


def events() -> dict[str, Document]:
    """An event of each type, and the answer to a request that was not taken."""
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
        id=event_id(subject, attempts, kind),
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

"""The AsyncAPI 3.0 document: every door and every kind of endpoint, with the contract's schemas."""

import json
from collections.abc import Mapping
from typing import Any

from worker.ledger.commands import JOBS, PREFIX
from worker.wakeups import CANCEL, DOOR, REGISTER

Document = dict[str, Any]

#: As the workers' own bindings are written.
_AMQP, _HTTP = "0.3.0", "0.3.0"

_CLOUDEVENT = "application/cloudevents+json"

_TAG = {
    "reg": {
        "enum": ["{reg}"],
        "default": "{reg}",
        "description": "Part of the key as it stands, with its braces: the hash tag that keeps all "
        "of the ledger in one slot of a cluster.",
    }
}

_DESCRIPTION = """\
Registers customers at providers. An accepted job ends in exactly one published outcome, and in at
most one customer at the provider.

**Jobs** come in by one of three doors, all of which lead to the same check: the Redis stream
`{reg}:jobs` (any Redis client), the task `registrations.register` (any Celery client), or the
Python package's `Producer`. A job has at most 64 KiB. It is idempotent under (provider, account,
idempotency_key): send it again when in doubt; with the same content it is the same job, whose
outcome is told once. The same key with other content is told as `registration.rejected` with code
`idempotency_conflict`, and leaves the first job untouched. What holds no key that can be read is
kept in quarantine for an operator, and gets no answer.

**Results** are CloudEvents, the same bytes on every channel, written to the endpoints that
`reply_to` names (`results`, unless it says otherwise). They come in no promised order, and may come
again: deduplicate by `id`.

**Secrets.** A registration holds a password, an outcome the customer's keys. A registration may be
sealed by its sender (`components.securitySchemes.sealing`); the workers can be told to take no
other. A results stream can be sealed too. Reach Redis, Valkey and RabbitMQ by TLS, each service as
a user of its own. An endpoint is a name that an operator configured, and never an URL in a job."""


def document(
    version: str, schemas: Mapping[str, Document], examples: Mapping[str, Mapping[str, Document]]
) -> Document:
    """The document. `schemas` and `examples`: of `job`, `cancel` and `event`."""
    return {
        "asyncapi": "3.0.0",
        "id": "urn:registration-worker",
        "info": {
            "title": "registration-worker",
            "version": version,
            "description": _DESCRIPTION,
            "license": {"name": "MIT"},
        },
        "defaultContentType": "application/json",
        "servers": _servers(),
        "channels": _channels(),
        "operations": _operations(),
        "components": {
            "messages": _messages(examples),
            "schemas": _components(schemas),
            "securitySchemes": _security(),
        },
    }


def _servers() -> Document:
    redis = {"description": "Host and port of the ledger.", "default": "localhost:6379"}
    broker = {"description": "Host and port of the broker.", "default": "localhost:5672"}
    return {
        "ledger": {
            "host": "{address}",
            "protocol": "redis",
            "description": "Redis >= 7 or Valkey >= 8 (`REGWORKER_REDIS_URL`). Holds the job "
            "stream and the results streams; also the Celery broker, unless there is another.",
            "variables": {"address": redis},
            "security": [_ref("securitySchemes", "user")],
        },
        "broker": {
            "host": "{address}",
            "protocol": "amqp",
            "description": "RabbitMQ, where it is the Celery broker (`REGWORKER_BROKER_URL`).",
            "variables": {"address": broker},
            "security": [_ref("securitySchemes", "user")],
        },
    }


def _channels() -> Document:
    ledger, broker = {"$ref": "#/servers/ledger"}, {"$ref": "#/servers/broker"}
    return {
        "jobs": {
            "address": JOBS,
            "title": "Job stream",
            "description": "A Redis stream. "
            "`XADD {reg}:jobs * job <a Job as JSON>` asks for a registration, "
            "`XADD {reg}:jobs * cancel <a Cancel as JSON>` takes one back while no call has left. "
            "An entry is done with, and deleted, in the same step that puts its job into the "
            "ledger, or tells why not. Don't trim this stream.",
            "servers": [ledger],
            "parameters": _TAG,
            "messages": {name: _ref("messages", name) for name in ("jobEntry", "cancelEntry")},
        },
        "tasks": {
            "address": DOOR,
            "title": "Celery queue",
            "description": f"Tasks `{REGISTER}` and `{CANCEL}`, with one argument, in Celery's "
            "JSON message protocol (2). On Redis, Celery's transport can lose a message whose "
            "worker is killed in the moment it takes it: the job stream and RabbitMQ can't.",
            "servers": [ledger, broker],
            "messages": {name: _ref("messages", name) for name in ("jobTask", "cancelTask")},
            "bindings": {"amqp": _queue(DOOR)},
        },
        "results": {
            "address": f"{PREFIX}results",
            "title": "Results stream",
            "description": "A Redis stream; further ones are endpoints of kind `stream`. Read it "
            "with a consumer group (XGROUP CREATE, XREADGROUP, XACK), or from an entry on (XREAD). "
            "Entries are kept for the endpoint's RETENTION (default: 7 days); those that a group "
            "has still to read or to acknowledge are kept until it has.",
            "servers": [ledger],
            "parameters": _TAG,
            "messages": {name: _ref("messages", name) for name in ("eventEntry", "sealedEntry")},
        },
        "queue": {
            "address": "{queue}",
            "title": "Results queue",
            "description": "An endpoint of kind `queue`, on the Celery broker. RabbitMQ: "
            "persistent messages on a durable quorum queue, confirmed; `message_id` is the "
            "event's id. Redis: items put in at the left of a list; BRPOP takes the oldest, and "
            "BLMOVE loses none that its consumer dies with.",
            "servers": [broker, ledger],
            "parameters": {"queue": {"description": "QUEUE of the endpoint."}},
            "messages": {"event": _ref("messages", "event")},
            "bindings": {"amqp": _queue("{queue}")},
        },
        "webhook": {
            "address": None,
            "title": "Webhook",
            "description": "An endpoint of kind `webhook`: a POST an event to its configured URL, "
            "signed by the Standard Webhooks specification. 2xx within 15 s is success, 410 "
            "disables the endpoint, anything else is tried again for 75 hours, `Retry-After` "
            "honoured. Redirects are not followed.",
            "messages": {"webhook": _ref("messages", "webhook")},
        },
    }


def _operations() -> Document:
    def receive(channel: str, summary: str, *messages: str) -> Document:
        return {
            **_operation("receive", channel, summary, *messages),
            "reply": {"channel": {"$ref": "#/channels/results"}},
        }

    def send(channel: str, summary: str, *messages: str) -> Document:
        return _operation("send", channel, summary, *messages)

    acknowledged = {"amqp": {"ack": True, "deliveryMode": 2, "bindingVersion": _AMQP}}
    signed = [_ref("securitySchemes", "signature")]
    posted = {"http": {"method": "POST", "bindingVersion": _HTTP}}
    return {
        "takeJob": receive("jobs", "Register a customer.", "jobEntry"),
        "takeCancel": receive("jobs", "Take a job back.", "cancelEntry"),
        "takeJobTask": receive("tasks", "Register a customer.", "jobTask")
        | {"bindings": acknowledged},
        "takeCancelTask": receive("tasks", "Take a job back.", "cancelTask")
        | {"bindings": acknowledged},
        "publishResult": send("results", "Tell what became of a job.", "eventEntry", "sealedEntry"),
        "queueResult": send("queue", "Tell what became of a job.", "event")
        | {"bindings": acknowledged},
        "postResult": send("webhook", "Tell what became of a job.", "webhook")
        | {"security": signed, "bindings": posted},
    }


def _operation(action: str, channel: str, summary: str, *messages: str) -> Document:
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{channel}"},
        "summary": summary,
        "messages": [{"$ref": f"#/channels/{channel}/messages/{name}"} for name in messages],
    }


def _messages(examples: Mapping[str, Mapping[str, Document]]) -> Document:
    job, cancel = _ref("schemas", "Job"), _ref("schemas", "Cancel")
    event = _ref("schemas", "AnyEvent")
    told = _examples(examples["event"])
    return {
        "jobEntry": {
            "title": "A job in the job stream",
            "payload": _entry({"job": _text(job)}),
            "examples": _entries("job", examples["job"]),
        },
        "cancelEntry": {
            "title": "A cancel in the job stream",
            "payload": _entry({"cancel": _text(cancel)}),
            "examples": _entries("cancel", examples["cancel"]),
        },
        "jobTask": _task(REGISTER, job, examples["job"]),
        "cancelTask": _task(CANCEL, cancel, examples["cancel"]),
        "eventEntry": {
            "title": "An event on a stream",
            "payload": _entry({"event": _text(event)}),
            "examples": _entries("event", examples["event"]),
        },
        "sealedEntry": {
            "title": "An event on a sealed stream (SEALED=true)",
            "payload": _entry(
                {
                    "id": {"type": "string", "description": "The event's id."},
                    "type": {"type": "string", "description": "The event's type."},
                    "sealed": {
                        **_ref("schemas", "Sealed"),
                        "description": "The event's bytes as JWE, compact.",
                    },
                }
            ),
        },
        "event": {
            "title": "An event",
            "contentType": _CLOUDEVENT,
            "payload": event,
            "examples": told,
        },
        "webhook": {
            "title": "An event, signed",
            "contentType": _CLOUDEVENT,
            "headers": _entry(
                {
                    "webhook-id": {
                        "type": "string",
                        "description": "The event's id: deduplicate by it.",
                    },
                    "webhook-timestamp": {
                        "type": "string",
                        "pattern": "^[0-9]+$",
                        "description": "Seconds since 1970 of this try. Refuse what is old.",
                    },
                    "webhook-signature": {
                        "type": "string",
                        "description": "`v1,<base64>` for each active secret, with spaces between.",
                    },
                },
            ),
            "payload": event,
            "examples": told,
        },
    }


def _task(name: str, argument: Document, examples: Mapping[str, Document]) -> Document:
    return {
        "title": f"A task {name}",
        "description": "Body of Celery's message protocol 2: positional arguments, named ones, and "
        "what Celery embeds. The argument may also be a JSON text of the same.",
        "contentType": "application/json",
        "headers": {
            "type": "object",
            "required": ["id", "task"],
            "properties": {
                "id": {"type": "string", "description": "The message's own; any unique text."},
                "task": {"type": "string", "const": name},
            },
        },
        "payload": {
            "type": "array",
            "minItems": 3,
            "maxItems": 3,
            "items": [
                {"type": "array", "minItems": 1, "maxItems": 1, "items": argument},
                {"type": "object", "maxProperties": 0},
                {"type": "object"},
            ],
        },
        "examples": [
            {
                "name": key,
                "headers": {"id": "5b1ff6a9-6c6d-4a3e-9d0a-5a1f2f6f9a10", "task": name},
                "payload": [[one], {}, {}],
            }
            for key, one in examples.items()
        ],
    }


def _components(schemas: Mapping[str, Document]) -> Document:
    """All schemas side by side, each by its own name."""
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


def _security() -> Document:
    return {
        "user": {
            "type": "userPassword",
            "description": "In the server's URL. A producer needs to write the job stream, a "
            "reader to read its results stream; give each a user that may no more.",
        },
        "signature": {
            "type": "httpApiKey",
            "in": "header",
            "name": "webhook-signature",
            "description": "HMAC-SHA256 of `{webhook-id}.{webhook-timestamp}.{body}` with the "
            "endpoint's secret (`whsec_...`), by the Standard Webhooks specification: verify it "
            "with one of its libraries, over the body's very bytes. While a secret is changed, "
            "there is a signature of each.",
        },
        "sealing": {
            "type": "symmetricEncryption",
            "description": "JWE, compact (RFC 7516): `alg` `dir`, `enc` `A256GCM`, `kid` names a "
            "key of `REGWORKER_SEALING_KEYS`, 32 bytes that whoever seals and the workers share.",
        },
    }


def _entry(fields: Mapping[str, Document]) -> Document:
    return {"type": "object", "required": list(fields), "properties": dict(fields)}


def _text(schema: Document) -> Document:
    name = schema["$ref"].rpartition("/")[2]
    return {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": schema,
        "description": f"{name}, as JSON (UTF-8).",
    }


def _examples(examples: Mapping[str, Document]) -> list[Document]:
    return [{"name": name, "payload": one} for name, one in examples.items()]


def _entries(field: str, examples: Mapping[str, Document]) -> list[Document]:
    texts = {name: json.dumps(one, separators=(",", ":")) for name, one in examples.items()}
    return [{"name": name, "payload": {field: text}} for name, text in texts.items()]


def _queue(name: str) -> Document:
    return {
        "is": "queue",
        "queue": {"name": name, "durable": True, "exclusive": False, "autoDelete": False},
        "bindingVersion": _AMQP,
    }


def _ref(kind: str, name: str) -> Document:
    return {"$ref": f"#/components/{kind}/{name}"}

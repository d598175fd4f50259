"""Whether an OpenAPI document is compatible with an older one of the same contract.

The rules are those of `compatibility.py`: every request that was accepted still is, and every
answer that may come now could come before."""

from collections.abc import Iterator, Mapping
from typing import Any

from tests.contract.compatibility import breaks_readers, breaks_senders

Document = Mapping[str, Any]


def breaks_clients(old: Document, new: Document) -> list[str]:
    """What a client made from the older document can no longer do or read."""
    return sorted(_broken(old, new))


def _broken(old: Document, new: Document) -> Iterator[str]:
    operations = dict(_operations(new))
    for name, before in _operations(old):
        if name not in operations:
            yield f"{name}: gone"
            continue
        now = operations[name]
        for part in (_of_parameters, _of_body, _of_answers):
            for one in part(before, now, old, new):
                yield f"{name}: {one}"
        # An operation without `security` needs no token.
        if now.get("security", new["security"]) != before.get("security", old["security"]):
            yield f"{name}: other credentials"


def _operations(document: Document) -> Iterator[tuple[str, Document]]:
    for path, item in document["paths"].items():
        shared = item.get("parameters", [])
        for method, operation in item.items():
            if method != "parameters":
                yield (
                    f"{method.upper()} {path}",
                    {**operation, "parameters": [*shared, *operation.get("parameters", [])]},
                )


def _of_parameters(before: Document, now: Document, old: Document, new: Document) -> Iterator[str]:
    known = {(one["in"], one["name"]): one for one in _resolved(now["parameters"], new)}
    for one in _resolved(before["parameters"], old):
        found = known.pop((one["in"], one["name"]), None)
        if found is None:
            yield f"{one['name']}: gone"
            continue
        if found.get("required") and not one.get("required"):
            yield f"{one['name']}: left out"
        for what in breaks_senders(_rooted(one["schema"], old), _rooted(found["schema"], new)):
            yield f"{one['name']}{what}"
    for (_, name), one in known.items():
        if one.get("required"):
            yield f"{name}: left out"


def _of_body(before: Document, now: Document, old: Document, new: Document) -> Iterator[str]:
    asked, taken = before.get("requestBody", {}), now.get("requestBody", {})
    if taken.get("required") and not asked.get("required"):
        yield "body: left out"
    for media, content in asked.get("content", {}).items():
        found = taken.get("content", {}).get(media)
        if found is None:
            yield f"body: as {media}"
            continue
        for what in breaks_senders(_rooted(content["schema"], old), _rooted(found["schema"], new)):
            yield f"body{what}"


def _of_answers(before: Document, now: Document, old: Document, new: Document) -> Iterator[str]:
    known = {status: _resolve(one, old) for status, one in before["responses"].items()}
    for status, answer in now["responses"].items():
        found, now_has = known.pop(status, None), _resolve(answer, new)
        if found is None:
            yield f"{status}: is new"
            continue
        for name in found.get("headers", {}):
            if name not in now_has.get("headers", {}):
                yield f"{status}: header {name}: gone"
        if set(found.get("content", {})) != set(now_has.get("content", {})):
            yield f"{status}: of another media type"
            continue
        for media, content in now_has.get("content", {}).items():
            was = _rooted(found["content"][media]["schema"], old)
            for what in breaks_readers(was, _rooted(content["schema"], new)):
                yield f"{status}{what}"


def _resolved(parts: list[Document], document: Document) -> list[Document]:
    return [_resolve(one, document) for one in parts]


def _resolve(part: Document, document: Document) -> Document:
    found: Any = part
    if ref := part.get("$ref"):
        found = document
        for name in ref.removeprefix("#/").split("/"):
            found = found[name]
    return found  # type: ignore[no-any-return]


def _rooted(schema: Document, document: Document) -> Document:
    """A schema with the schemas that it refers to, where `compatibility.py` looks for them."""
    return {**schema, "$defs": document["components"]["schemas"]}

"""The base of all forms: they are sent exactly as given."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from regworker.domain.notation import Notation


def _drop_defaults(schema: dict[str, Any]) -> None:
    for described in schema.get("properties", {}).values():
        described.pop("default", None)


class Body(BaseModel):
    """A part of a provider's request body: exactly as given, so nothing is coerced.

    A field with a default may be omitted, and is then not sent: the default itself is never sent,
    so the JSON Schema does not show it.
    """

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        allow_inf_nan=False,  # JSON has none
        hide_input_in_errors=True,
        json_schema_extra=_drop_defaults,
    )


class Form(Notation, Body):
    """A registration, or a part of one, that a host may construct; `enqueue` checks it."""

"""Jobs and registrations as typed objects: another notation for the same dicts.

Creating one raises nothing. `enqueue` checks it like a dict, so that all problems of a job, of its
registration and of their parts are named at once, each with its path.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn, get_args

from pydantic import BaseModel, ValidationError


class Notation(BaseModel):
    """A model that stores its input even if it is wrong; then only `plain` reads it.

    `model_validate` is strict as usual. It cannot be pickled: a pickle would contain the password
    in plain text, in any queue, cache or file.
    """

    if not TYPE_CHECKING:  # type checkers know each model's fields, and keep to them

        def __init__(self, /, **given: Any) -> None:
            try:
                super().__init__(**given)
            except ValidationError:
                fields = type(self).model_fields.items()
                held = {
                    name: field.get_default(call_default_factory=True)
                    for name, field in fields
                    if not field.is_required()
                }
                state = {"__dict__": {**held, **given}, "__pydantic_fields_set__": set(given)}
                empty = dict.fromkeys(("__pydantic_extra__", "__pydantic_private__"))
                for name, value in {**state, **empty}.items():
                    object.__setattr__(self, name, value)

        # Otherwise pydantic would also call this when it validates, and hide all errors.
        __init__.__pydantic_base_init__ = True

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """Without values that were stored unchecked: a dict, or a text in place of a form, may
        contain a password.
        """
        for name, value in super().__repr_args__():
            field = type(self).model_fields.get(name or "")
            of_parts = field is not None and _of_parts(field.annotation)
            shown = (Notation, type(None)) if of_parts else _SHOWN
            held = value if isinstance(value, list | tuple) else [value]
            yield name, value if all(isinstance(one, shown) for one in held) else "..."

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__} may hold a password and cannot be pickled: enqueue the job "
            "here, or pass on the values that it is built from"
        )


#: What `repr` shows, also in lists and tuples.
_SHOWN = (Notation, str, int, float, datetime, type(None))


def _of_parts(annotation: Any) -> bool:
    """Whether a field holds models, or a list of them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return True
    return any(map(_of_parts, get_args(annotation)))


#: The types of nearly all values, looked up here, since `isinstance` takes longer.
_PLAIN = frozenset((str, int, float, bool, type(None)))


def plain(value: Any) -> Any:
    """The input, with dicts in place of typed objects; omitted fields stay omitted."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, dict):
        return {name: one if type(one) in _PLAIN else plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [plain(one) for one in value]
    if isinstance(value, tuple):
        return tuple([plain(one) for one in value])
    if isinstance(value, Notation):
        given = value.model_fields_set
        return {name: plain(one) for name, one in value.__dict__.items() if name in given}
    if isinstance(value, BaseModel):  # a plugin's own model
        return value.model_dump(by_alias=True, exclude_unset=True, warnings=False)
    return value

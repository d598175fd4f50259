"""The names that other services import."""

from dataclasses import fields, is_dataclass
from typing import Any

import pytest
from pydantic import BaseModel

import regworker
import worker
from regworker.testing import FakeProducer, registered
from tests.integration.jobs import open2b


def test_every_public_name_is_there() -> None:
    """The table of public names has no mistake."""
    for name in regworker.__all__:
        assert getattr(regworker, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Nobody'"):
        regworker.Nobody  # noqa: B018


def test_both_distributions_have_one_version() -> None:
    """The worker depends on the client of the same version."""
    assert worker.__version__ == regworker.__version__


SECRET = "Unforgettable-7"

#: Public classes that hold a job's outcome or registration, by how a host gets one.
HOLDERS = ("Event", "Job", "Result", "Status")


def holder(name: str) -> Any:
    """An object of a public class with a secret in it."""
    job = open2b(idempotency_key="key")
    job["registration"]["customer"]["password"] = SECRET
    fake = FakeProducer(ending=registered({"customer_key": SECRET}))
    id_ = fake.enqueue(job).job_id
    event = regworker.Event.model_validate(fake.wait(id_))
    made = {
        "Event": event,
        "Job": regworker.Job.model_validate(job),
        "Result": regworker.Result("1-0", {b"event": event.encode()}),
        "Status": fake.status(id_),
    }
    return made[name]


@pytest.mark.parametrize("name", HOLDERS)
def test_no_representation_shows_an_outcome_or_a_registration(name: str) -> None:
    """A log line, a debugger and an error tracker show it."""
    found = holder(name)
    assert isinstance(found, getattr(regworker, name))
    assert SECRET not in repr(found)
    assert SECRET not in f"{found!s} {[found]}"


def test_every_public_class_that_may_hold_a_secret_is_tested() -> None:
    """Those with a field of any content, and the models of a registration."""
    open_, found = ("Any", "dict[", "Mapping[", "bytes"), set()
    for name in regworker.__all__:
        kind = getattr(regworker, name)
        if is_dataclass(kind):
            types = [str(one.type) for one in fields(kind)]
        elif issubclass(kind, BaseModel) and not issubclass(kind, regworker.Settings):
            types = [str(one.annotation) for one in kind.model_fields.values()]
            types += ["Any"] * (kind is regworker.Event)
        else:
            continue
        if any(word in type_ for type_ in types for word in open_):
            found.add(name)
    assert found == set(HOLDERS)


#: Entries that hold no event which can be read here, with a secret in each.
UNREADABLE = {
    "an event of another form": {b"event": b'{"type": "x", "data": {"outcome": "%s"}}'},
    "no JSON": {b"event": b"%s"},
    "a seal that is none": {b"id": b"x", b"sealed": b"%s"},
    "another program": {b"note": b"%s"},
}


@pytest.mark.parametrize("entry", UNREADABLE)
def test_the_error_for_an_unreadable_event_holds_nothing_of_it(entry: str) -> None:
    """Neither in its text nor in an error behind it, which a host's error tracker would show."""
    filled = {
        name: value.replace(b"%s", SECRET.encode()) for name, value in UNREADABLE[entry].items()
    }
    with pytest.raises(regworker.UnreadableEvent) as caught:
        regworker.Result("1-0", filled).event  # noqa: B018
    assert SECRET not in str(caught.value)
    assert caught.value.__context__ is caught.value.__cause__ is None

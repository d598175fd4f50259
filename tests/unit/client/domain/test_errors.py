"""Messages about a wrong job use JSON's words, because producers are written in any language."""

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from regworker.domain.errors import problems_of
from regworker.domain.job import Cancel, Job
from sandbox.documented import OPEN2B_SIGN_UP, SKYPOSTAL_REGISTRATION
from worker.providers.open2b import Open2b
from worker.providers.skypostal import SkyPostal

JOB = {"provider": "open2b", "idempotency_key": "k", "registration": {}, "reply_to": ["results"]}
CANCEL = {"provider": "open2b", "idempotency_key": "k", "job_id": None, "reply_to": ["results"]}
SKYPOSTAL = {name: value for name, value in SKYPOSTAL_REGISTRATION.items() if name != "copa_id"}

#: A value of each type of JSON, and values that only Python has.
WRONG: tuple[Any, ...] = (None, True, 7, -1.5, "x", "", [], [7] * 99, {}, {"x": 7}, b"x")

PYTHON = (
    "python",
    "tuple",
    "dictionary",
    "valid list",
    "valid string",
    "instance",
    "valid integer",
)


def wrong(model: type[BaseModel], good: Any) -> list[str]:
    """The messages for each wrong value in each field, at any depth."""

    def variants(node: Any) -> Any:
        yield from WRONG
        if isinstance(node, dict):
            for name, inner in node.items():
                yield from ({**node, name: one} for one in variants(inner))
        if isinstance(node, list):
            for place, inner in enumerate(node):
                yield from ([*node[:place], one, *node[place + 1 :]] for one in variants(inner))

    said = []
    for one in variants(good):
        try:
            model.model_validate(one)
        except ValidationError as error:
            said += [problem.message for problem in problems_of(error)]
    return said


@pytest.mark.parametrize(
    ("model", "good"),
    [
        (Job, JOB),
        (Cancel, CANCEL),
        (SkyPostal.Registration, SKYPOSTAL),
        (Open2b.Registration, OPEN2B_SIGN_UP),
    ],
    ids=["job", "cancel", "skypostal", "open2b"],
)
def test_no_word_of_python_is_said_of_a_wrong_job(model: type[BaseModel], good: Any) -> None:
    """Messages about any wrong value in any field contain no term of Python."""
    said = wrong(model, good)
    assert len(said) > 20
    assert [one for one in said if any(word in one.lower() for word in PYTHON)] == []

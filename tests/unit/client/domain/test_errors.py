"""Messages about a wrong job use JSON's words, because producers are written in any language; and
errors can be pickled."""

import copy
import pickle
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from regworker.domain.errors import (
    IdempotencyConflict,
    InvalidJob,
    InvalidOutcome,
    JobForgotten,
    NoSealingKeys,
    NotReplicated,
    Problem,
    RegistrationWorkerError,
    SettingsError,
    UnreadableRecord,
    problems_of,
)
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


PROBLEMS = (Problem("invalid", "provider", "is required"),)

#: Errors that take more than a message, as they are made.
MADE: dict[type[RegistrationWorkerError], tuple[Any, ...]] = {
    InvalidJob: (PROBLEMS,),
    InvalidOutcome: (PROBLEMS,),
    IdempotencyConflict: ("job-1", "key-1"),
    JobForgotten: ("job-1", "key-1"),
    UnreadableRecord: ("job-1", "WRONGTYPE"),
    SettingsError: ([("REGWORKER_X", "is missing")],),
    NoSealingKeys: ([("REGWORKER_X", "is missing")],),
    NotReplicated: ("too few replicas", [b"1", 2]),
}


def kinds(kind: type[RegistrationWorkerError]) -> Iterator[type[RegistrationWorkerError]]:
    """A class, and all below it that take part in the client."""
    yield kind
    for one in kind.__subclasses__():
        if one.__module__.startswith("regworker."):
            yield from kinds(one)


def raised(kind: type[RegistrationWorkerError]) -> RegistrationWorkerError:
    """An error with a note, as a host may add one."""
    error = kind(*MADE.get(kind, ("what happened",)))
    error.add_note("while the order 7 was saved")
    return error


@pytest.mark.parametrize(
    "again",
    [*(lambda one, p=p: pickle.loads(pickle.dumps(one, p)) for p in range(6)),
     copy.copy, copy.deepcopy],
    ids=[*(f"pickle {p}" for p in range(6)), "copy", "deepcopy"],
)  # fmt: skip
@pytest.mark.parametrize("kind", sorted(set(kinds(RegistrationWorkerError)), key=str))
def test_every_error_can_be_pickled_and_copied(
    kind: type[RegistrationWorkerError], again: Any
) -> None:
    """With its message and all that it carries."""
    error = raised(kind)
    found = again(error)
    assert type(found) is kind
    assert str(found) == str(error)
    assert vars(found) == vars(error)


def refuse(kind: type[RegistrationWorkerError]) -> None:
    """Runs in a pool's process."""
    raise raised(kind)


def test_an_error_comes_from_a_pools_process_as_it_is() -> None:
    """The pool is not broken by it, and can be used on."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        for kind in MADE:
            with pytest.raises(kind) as caught:
                pool.submit(refuse, kind).result()
            assert type(caught.value) is kind

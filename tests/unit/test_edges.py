"""Extreme times, and numbers that JSON does not have: each entry point refuses or limits them."""

import io
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.utils.json import dumps, loads
from pydantic import BaseModel

from regworker.acceptance import Intake
from regworker.domain.errors import InvalidJob, Problem
from regworker.domain.event import moment
from regworker.domain.job import LATEST, Job
from regworker.domain.request import Origin, read
from regworker.forms.open2b import Open2bRegistration
from regworker.sealing import seals
from regworker.sealing.keyring import Keyring
from tests.integration.jobs import open2b
from worker.cli import time_arguments
from worker.cli.files.csv_columns import Columns
from worker.cli.files.reading import read_csv, read_ndjson
from worker.providers import base
from worker.providers.registry import Registry

KEYRING = Keyring.parse(Keyring.new("test"))


class LooseRegistration(BaseModel):
    """A plugin's model that does not exclude NaN."""

    amount: float = 0
    anything: Any = None


class Loose:
    """A plugin's provider."""

    name: ClassVar[str] = "loose"
    Registration: ClassVar[type[BaseModel]] = LooseRegistration
    Account: ClassVar[type[base.Account]] = base.Account


INTAKE = Intake(
    Registry(["worker.providers.open2b:Open2b", f"{__name__}:Loose"]), KEYRING, deadline=60.0
)


def spelt(value: Any) -> str:
    """JSON as careless programs write it: with NaN, Infinity and 1e400."""
    return json.dumps(value).replace('"1e400"', "1e400")


def python(job: dict[str, Any]) -> Job:
    """The Python API, with a mapping."""
    return INTAKE.check(json.loads(spelt(job)))[0]


def model(job: dict[str, Any]) -> Job:
    """The Python API, with a model, if the job fits the model."""
    return INTAKE.check(Job.model_validate(json.loads(spelt(job))))[0]


def stream(job: dict[str, Any]) -> Job:
    """The job stream, with a text."""
    return INTAKE.check(read("register", spelt(job).encode(), Origin("stream", "1-1")).given)[0]


def task(job: dict[str, Any]) -> Job:
    """A task from a Celery client, with an object that kombu has decoded."""
    return INTAKE.check(read("register", loads(spelt(job)), Origin("task", "1")).given)[0]


def sealed(job: dict[str, Any]) -> Job:
    """A registration that was sealed by its sender."""
    text = KEYRING.seal(spelt(job["registration"]).encode(), seals.registration(job))
    return INTAKE.check(json.loads(spelt({**job, "registration": text})))[0]


def ndjson(job: dict[str, Any]) -> Job:
    """A file with one job on each line."""
    [line] = read_ndjson(io.BytesIO(spelt(job).encode()))
    if line.job is None:
        raise InvalidJob(line.problems)
    return INTAKE.check(line.job)[0]


ENTRY_POINTS = [python, model, stream, task, sealed, ndjson]
EntryPoint = Callable[[dict[str, Any]], Job]


def refused(entry_point: EntryPoint, job: dict[str, Any]) -> list[Problem]:
    """The problems for which an entry point refuses a job."""
    try:
        entry_point(job)
    except InvalidJob as error:
        return list(error.problems)
    except ValueError as error:
        # The model refuses it; a producer would see this error.
        from regworker.domain.errors import problems_of

        return list(problems_of(error))
    return []


NUMBERS: dict[str, Any] = {
    "NaN": float("nan"),
    "Infinity": float("inf"),
    "-Infinity": float("-inf"),
    "1e400": "1e400",
}


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
@pytest.mark.parametrize("number", NUMBERS.values(), ids=NUMBERS)
@pytest.mark.parametrize("place", ["metadata", "registration", "a float", "deadline", "lane"])
def test_a_number_that_json_has_not_is_refused_by_name(
    entry_point: EntryPoint, number: Any, place: str
) -> None:
    """It never becomes null in an event; the sender learns which field was wrong."""
    job: dict[str, Any] = {**open2b(), "metadata": {}}
    match place:
        case "metadata":
            job["metadata"] = {"order": [{"total": number}]}
            named = "order.0.total"
        case "registration":
            job["registration"]["customer"]["address"]["city"] = number
            named = "city"
        case "a float":
            job |= {"provider": "loose", "registration": {"anything": {"amount": number}}}
            named = "registration.anything.amount"
        case _:
            job[place] = number
            named = place
    problems = refused(entry_point, job)
    assert any(named in f"{one.field} {one.message}" for one in problems), problems


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
@pytest.mark.parametrize(
    "value", ["\ud800", 10**400, [[]] and json.loads("[" * 100 + "]" * 100)], ids=repr
)
def test_metadata_that_some_reader_refuses_is_refused(entry_point: EntryPoint, value: Any) -> None:
    """Every reader must be able to read the event."""
    if value == "\ud800" and entry_point in (ndjson, stream, task):
        return  # these entry points refuse it, because it is not JSON
    problems = refused(entry_point, {**open2b(), "metadata": {"note": value}})
    assert any("note" in f"{one.field} {one.message}" for one in problems), problems


EDGES = [
    "9999-12-31T23:59:59.9999999Z",
    "9999-12-31T23:59:59.999999Z",
    "9999-12-31T23:59:59.9995Z",
    "9999-12-31T23:59:59-01:00",
    "9999-12-31T23:59:59-23:59",
    "9999-12-31T23:59:59Z",
]


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
@pytest.mark.parametrize("deadline", EDGES)
def test_the_last_time_that_a_language_knows_is_a_deadline(
    entry_point: EntryPoint, deadline: str
) -> None:
    """Some producers send it for "never"; it can be written, and read again."""
    found = entry_point({**open2b(), "deadline": deadline}).deadline
    assert found == LATEST
    assert moment(round(found.timestamp() * 1000)) == LATEST


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
@pytest.mark.parametrize(
    "deadline",
    [
        *("10000-01-01T00:00:00Z", "0001-01-01T00:00:00+23:59", "1999-12-31T23:59:59Z"),
        *("NaN", "Infinity", "1e400", "9999-12-31T24:00:00Z", "9999-12-31T23:59:59", ""),
    ],
)
def test_a_time_that_is_none_is_refused_by_name(entry_point: EntryPoint, deadline: str) -> None:
    """The sender learns which field was wrong."""
    assert [one.field for one in refused(entry_point, {**open2b(), "deadline": deadline})] == [
        "deadline"
    ]


def test_a_deadline_at_the_edge_in_a_csv_is_one() -> None:
    """Spreadsheets contain such times, too."""
    job = open2b()
    columns = Columns(Job.model_json_schema(), {"open2b": Open2bRegistration.model_json_schema()})
    text = f"idempotency_key,deadline,metadata.order\n{job['idempotency_key']},{EDGES[0]},NaN\n"
    [line] = read_csv(io.BytesIO(text.encode()), columns, "open2b")
    assert line.job is not None, line.problems
    found = INTAKE.check({**job, **line.job})[0]
    assert found.deadline == LATEST
    assert found.metadata == {"order": "NaN"}, "a cell is text"


def test_a_task_may_bring_a_time_as_an_object() -> None:
    """Celery's clients mark dates, and kombu decodes them as objects."""
    latest = datetime.max.replace(tzinfo=timezone(timedelta(hours=-12)))
    assert task(loads(dumps({**open2b(), "deadline": latest.isoformat()}))).deadline == LATEST
    assert INTAKE.check({**open2b(), "deadline": latest})[0].deadline == LATEST


@given(st.floats(), st.integers())
def test_every_time_of_the_ledger_can_be_shown(one: float, other: int) -> None:
    """A record may contain any number if somebody changed it."""
    assert moment(one).tzinfo is UTC
    assert moment(other).tzinfo is UTC
    assert moment(253402300800000) == LATEST


@given(st.integers(0, 999_999), st.sampled_from("smhd"))
def test_any_time_ago_is_one(count: int, unit: str) -> None:
    """A very long time ago is 1970 at the earliest."""
    found = time_arguments.parse(f"{count}{unit}", "--since")
    assert found is not None
    assert found.timestamp() >= 0


@pytest.mark.parametrize("text", [*EDGES, "0001-01-01T00:00:00+23:59", "0001-01-01"])
def test_any_moment_on_the_command_line_is_one_of_the_ledgers_clock(text: str) -> None:
    """A list from the earliest or until the latest time contains everything."""
    found = time_arguments.parse(text, "--until")
    assert found is not None
    assert 0 <= found.timestamp() * 1000 < 253402300800000

"""What Celery keeps of the exception that ends a task."""

from typing import Any

import pytest
from celery import Celery
from celery.app.trace import build_tracer
from celery.exceptions import Ignore, Reject

from worker.process.tasks import ExceptionSummary, TriesAgain

app = Celery("traced", set_as_current=False, broker="memory://")


@app.task(name="ends")  # type: ignore[untyped-decorator]
def ends(error: BaseException) -> None:
    """Raises what it is given."""
    raise error


def traced(error: BaseException) -> Any:
    """Celery's own tracer runs the task; what it keeps."""
    request = {"id": "1", "is_eager": False, "hostname": "here"}
    found = build_tracer("ends", ends, app=app)("1", [error], {}, request)
    return found.retval


@pytest.mark.parametrize("error", [TriesAgain("queued: busy"), Ignore(), Reject("no")])
def test_what_is_no_fault_is_kept_without_its_stack(error: BaseException) -> None:
    """Its copy would cost as much as the job."""
    kept = traced(error)
    assert isinstance(kept, ExceptionSummary)
    assert kept.tb is None
    assert (kept.traceback, str(kept)) == ("", "")
    assert kept.exception.exc is error


def test_a_fault_keeps_its_stack() -> None:
    """As Celery does it: in the log, and in Flower."""
    kept = traced(ValueError("a fault"))
    assert isinstance(kept, ExceptionSummary)
    assert kept.tb is not None
    assert "raise error" in kept.traceback

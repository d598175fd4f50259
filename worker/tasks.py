"""The Celery tasks, one line each, and what a worker does when it starts and stops."""

import os
from datetime import UTC, datetime
from typing import Any

from celery import signals
from celery.exceptions import Ignore, Retry

from worker.attempt import Report
from worker.celery import app
from worker.errors import LedgerUnavailable, SettingsError
from worker.lifecycle import State
from worker.runtime import runtime, shut_down
from worker.settings import Settings, variable
from worker.telemetry import configure_logging
from worker.wakeups import ATTEMPT, DELIVER


class TriesAgain(Exception):  # noqa: N818
    """Shown in Flower as the reason of a task's RETRY; the alarm will bring the job back."""


@app.task(name=ATTEMPT)  # type: ignore[untyped-decorator]
def attempt(job_id: str) -> str:
    """Attempt a job: `worker.attempt`."""
    return show(runtime(app).attempt(job_id))


@app.task(name=DELIVER)  # type: ignore[untyped-decorator]
def deliver(member: str) -> str:
    """Try a delivery: `worker.delivery`."""
    return runtime(app).deliver(member)


def show(report: Report) -> str:
    """What Celery, and so Flower, gets to see of an attempt: SUCCESS, RETRY or nothing new."""
    if report.state in {State.QUEUED, State.UNKNOWN, "waits"} and report.reason != "leased":
        when = datetime.fromtimestamp(report.until / 1000, UTC)
        text = f"{report.state}: {report.reason}"
        # The state only: `Task.retry()` would hold the delay in this process's memory.
        raise Retry(text, exc=TriesAgain(text), when=when)
    if report.state in {"over", "stale", "waits"}:
        # A wake-up too many; the run that counts speaks for the job.
        raise Ignore
    return f"{report.state}: {report.reason}" if report.reason else report.state


@signals.setup_logging.connect  # type: ignore[untyped-decorator]
def _logging(**_: Any) -> None:
    configure_logging(Settings.load())


@signals.celeryd_init.connect  # type: ignore[untyped-decorator]
def _allow_unsafe(options: dict[str, Any], **_: Any) -> None:
    if options.get("allow_unsafe"):
        os.environ[variable("allow_unsafe")] = "true"


@signals.worker_init.connect  # type: ignore[untyped-decorator]
def _start(sender: Any, **_: Any) -> None:
    pool = sender.pool_cls.__module__.rpartition(".")[2]
    if pool in {"gevent", "eventlet"}:
        raise SystemExit(
            f"registration-worker runs its I/O in an asyncio loop, which {pool} would block: "
            "use the pool `threads` (default), `prefork` or `solo` (REGWORKER_POOL)"
        )
    if pool != "prefork":
        _start_runtime()


@signals.worker_process_init.connect  # type: ignore[untyped-decorator]
def _start_in_child(**_: Any) -> None:
    _start_runtime()


def _start_runtime() -> None:
    try:
        runtime(app)
    except SettingsError as error:
        lines = "\n".join(f"  {name}: {what}" for name, what in error.problems)
        raise SystemExit(f"registration-worker cannot start:\n{lines}") from None
    except LedgerUnavailable as error:
        raise SystemExit(f"registration-worker cannot start: {error}") from None


@signals.worker_shutdown.connect  # type: ignore[untyped-decorator]
def _stop(**_: Any) -> None:
    shut_down()


@signals.worker_process_shutdown.connect  # type: ignore[untyped-decorator]
def _stop_in_child(**_: Any) -> None:
    shut_down()

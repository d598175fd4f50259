"""The Celery tasks, one line each, and what a worker does when it starts and stops."""

import gc
import os
import sys
import time
from datetime import UTC, datetime
from threading import Thread
from typing import Any

import structlog
from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from celery import signals
from celery.app import trace
from celery.exceptions import Ignore, Reject, Retry, TaskPredicate
from celery.worker import state as celery_state

from regworker.domain.errors import LedgerUnavailable, SettingsError
from regworker.domain.request import Origin, Request
from regworker.domain.states import State
from regworker.settings import ONE_POOL, Settings, variable
from regworker.tracing import carried, carried_by, transaction
from worker import __version__
from worker.broker.wakeups import ATTEMPT, CANCEL, DELIVER, QUEUES, REGISTER, REQUESTS
from worker.celery import app
from worker.execution.attempt import AttemptReport
from worker.http.open_files import allow_files
from worker.process.pool import TaskPool
from worker.process.runtime import runtime, shut_down, watch_stop
from worker.standard_streams import open_closed
from worker.telemetry import configure_logging, take_over

log = structlog.get_logger(__name__)

#: Seconds for which a request waits in its task for the ledger. Then it goes back to the broker,
#: which gives it to another worker; RabbitMQ takes a message back by force after 30 minutes. A
#: message that was returned 15 times is quarantined: after six hours without a ledger.
PATIENCE = 1500.0

#: How wake-ups become tasks.
_STRATEGY = "worker.process.wake_requests:strategy"

#: Seconds before a request goes back that can be neither accepted nor set aside.
PAUSE = 5.0

#: New objects after which Python looks for garbage: those of some hundred jobs, a few megabytes.
NEW_OBJECTS = 20_000

#: Connections of each slot: its call's, and those that were used for others and are kept a while.
FILES_OF_A_SLOT = 4

#: Open files besides those: connections to ledger, broker and metrics, and files of settings.
OTHER_FILES = 300


class TriesAgain(Retry):  # type: ignore[misc]
    """Shown in Flower as a task's RETRY, with the reason and the time; the alarm wakes the job
    then."""

    def __repr__(self) -> str:
        return f"{self.message}; again at {self.when:%Y-%m-%d %H:%M:%S} UTC"


class ExceptionSummary(ExceptionInfo):  # type: ignore[misc]
    """What Celery keeps of an exception: without the stack if that only ends a task in another way.

    To copy and format the stack takes as much CPU as the job, for each retry and each superfluous
    wake-up. `Retry`, `Ignore` and `Reject` are no faults, and their stack shows nothing.
    """

    def __init__(self, exc_info: Any = None, internal: bool = False) -> None:
        kind, exception, _ = exc_info or sys.exc_info()
        if not isinstance(exception, TaskPredicate):
            super().__init__(exc_info, internal)
            return
        self.type, self.internal, self.traceback = kind, internal, ""
        self.exception = ExceptionWithTraceback(exception, "")


trace.ExceptionInfo = ExceptionSummary


@app.task(name=ATTEMPT, Strategy=_STRATEGY)  # type: ignore[untyped-decorator]
def attempt(job_id: str) -> str:
    """Attempt a job: `worker.execution.attempt`."""
    return show(runtime(app).attempt(job_id))


@app.task(name=DELIVER, Strategy=_STRATEGY)  # type: ignore[untyped-decorator]
def deliver(member: str) -> str:
    """Try a delivery: `worker.execution.delivery`."""
    return runtime(app).deliver(member)


@app.task(name=REGISTER, bind=True, acks_late=True, reject_on_worker_lost=True)  # type: ignore[untyped-decorator]
def register(self: Any, job: dict[str, Any] | str) -> str:
    """Entry point 2: accept a job, as an object or a JSON text: `worker.intake.async_requests`."""
    trace = carried(vars(self.request))
    with transaction(REGISTER, trace):
        return _take("register", Origin("task", self.request.id, carried_by(trace)), job)


@app.task(name=CANCEL, bind=True, acks_late=True, reject_on_worker_lost=True)  # type: ignore[untyped-decorator]
def cancel(self: Any, job: dict[str, Any] | str) -> str:
    """Entry point 2: cancel a job, by its id or its key: `worker.intake.async_requests`."""
    return _take("cancel", Origin("task", self.request.id), job)


def _take(request: Request, origin: Origin, argument: Any) -> str:
    """Process a request. This acknowledges its message, which must not be lost before."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return runtime(app).take(request, origin, argument)
        except LedgerUnavailable as error:
            if time.monotonic() > end or _stopping():
                raise Reject(str(error), requeue=True) from None
        except Exception as error:  # noqa: BLE001 -- acknowledged by Celery, it would be lost
            return _set_aside(request, origin.id, argument, type(error).__name__)


def _set_aside(request: Request, id_: str, argument: Any, fault: str) -> str:
    reason = f"the worker failed to process it ({fault})"
    log.error("request set aside", alert="request", task=request, reason=reason)
    try:
        runtime(app).set_aside(request, id_, argument, reason)
    except Exception as error:  # noqa: BLE001 -- the same
        runtime(app).pause(PAUSE)
        raise Reject(
            f"the quarantine does not accept it ({type(error).__name__})", requeue=True
        ) from None
    return "set aside"


def _stopping() -> bool:
    # The attribute is an exit code once it is set: 0 also means that it stops.
    return celery_state.should_stop is not None and celery_state.should_stop is not False


def show(report: AttemptReport) -> str:
    """What Celery, and so Flower, shows of an attempt: SUCCESS, RETRY or no change."""
    if report.state in {State.QUEUED, State.UNKNOWN, "waits"} and report.reason != "leased":
        when = datetime.fromtimestamp(report.until / 1000, UTC)
        text = f"{report.state}: {report.reason}"
        # Only the state: `Task.retry()` would hold the delay in this process's memory.
        raise TriesAgain(text, when=when)
    if report.state in {"over", "stale", "waits"}:
        # A superfluous wake-up: the attempt that counts reports for the job.
        raise Ignore
    return f"{report.state}: {report.reason}" if report.reason else report.state


@signals.setup_logging.connect  # type: ignore[untyped-decorator]
def _logging(**_: Any) -> None:
    configure_logging(Settings.load())


@signals.celeryd_init.connect  # type: ignore[untyped-decorator]
def _begin(options: dict[str, Any], **_: Any) -> None:
    open_closed()
    if options.get("allow_unsafe"):
        _override("allow_unsafe", "true")
    # Before Celery prints anything: its banner and its warnings are no log lines.
    settings = Settings.load()
    configure_logging(settings)
    take_over(settings)


@signals.worker_init.connect  # type: ignore[untyped-decorator]
def _start(sender: Any, **_: Any) -> None:
    if not issubclass(sender.pool_cls, TaskPool):
        raise SystemExit(f"registration-worker cannot start: {ONE_POOL}")
    if set(app.amqp.queues.consume_from) != {REQUESTS, *QUEUES.values()}:
        raise SystemExit(
            "registration-worker cannot start: `task_queues` in celeryconfig.py: each worker takes "
            "the work of all lanes; remove it"
        )
    # `--concurrency`, or `worker_concurrency` in celeryconfig.py: places at endpoints and what
    # `regworker top` shows follow from the slots that there are.
    _override("concurrency", str(sender.concurrency))
    allow_files(FILES_OF_A_SLOT * sender.concurrency + OTHER_FILES)
    log.info("worker starts", concurrency=sender.concurrency, version=__version__)
    _start_runtime()


def _override(name: str, value: str) -> None:
    """Set a setting by an option of Celery's, which counts more than variables and files."""
    os.environ.pop(variable(f"{name}_file"), None)
    os.environ[variable(name)] = value


@signals.worker_ready.connect  # type: ignore[untyped-decorator]
def _spare_the_collector(**_: Any) -> None:
    # Present objects (code, classes, settings) live as long as the process. Scanning them for
    # garbage, again and again, takes a fifth of a job's CPU time; scanning those of the jobs under
    # way after every 700 new ones, a tenth.
    gc.collect()
    gc.freeze()
    gc.set_threshold(NEW_OBJECTS)


def _start_runtime() -> None:
    try:
        runtime(app)
    except SettingsError as error:
        lines = "\n".join(f"  {name}: {what}" for name, what in error.problems)
        raise SystemExit(f"registration-worker cannot start:\n{lines}") from None
    except LedgerUnavailable as error:
        raise SystemExit(f"registration-worker cannot start: {error}") from None
    except Exception as error:
        # Celery alone would go on: a worker that takes messages and rings no alarms.
        log.exception("worker cannot start")
        raise SystemExit(f"registration-worker cannot start: {type(error).__name__}") from None


@signals.worker_shutdown.connect  # type: ignore[untyped-decorator]
def _stop(**_: Any) -> None:
    shut_down()
    log.info("worker stopped")


@signals.worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _watch_stop(sig: str, how: str, **_: Any) -> None:
    # Called in a signal handler, which may interrupt the writing of a line.
    Thread(target=_note_stop, args=(sig, how)).start()


def _note_stop(sig: str, how: str) -> None:
    watch_stop()
    log.info("worker stops", by=sig, how=how.lower())

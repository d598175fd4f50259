"""The Celery tasks, one line each, and what a worker does when it starts and stops."""

import gc
import os
import time
from datetime import UTC, datetime
from threading import Thread
from typing import Any

import structlog
from celery import signals
from celery.exceptions import Ignore, Reject, Retry
from celery.worker import state as celery_state

from worker import __version__, vitals
from worker.attempt import Report
from worker.celery import app
from worker.entry import Request
from worker.errors import LedgerUnavailable, SettingsError
from worker.lifecycle import State
from worker.runtime import runtime, shut_down
from worker.settings import Settings, variable
from worker.telemetry import configure_logging, take_over
from worker.tracing import carried, transaction
from worker.wakeups import ATTEMPT, CANCEL, DELIVER, REGISTER

log = structlog.get_logger(__name__)

#: Seconds a request waits in its task for the ledger. Then it goes back to the broker, which gives
#: it to another worker; RabbitMQ takes one back by force after 30 minutes, and throws it away when
#: it came back too often (20 times, by its newer versions' default).
PATIENCE = 600.0

#: Seconds before a request goes back that can neither be taken nor set aside.
PAUSE = 5.0


class TriesAgain(Retry):  # type: ignore[misc]
    """Shown in Flower as a task's RETRY, with why and until when; the alarm brings the job back."""

    def __repr__(self) -> str:
        return f"{self.message}; again at {self.when:%Y-%m-%d %H:%M:%S} UTC"


@app.task(name=ATTEMPT)  # type: ignore[untyped-decorator]
def attempt(job_id: str) -> str:
    """Attempt a job: `worker.attempt`."""
    return show(runtime(app).attempt(job_id))


@app.task(name=DELIVER)  # type: ignore[untyped-decorator]
def deliver(member: str) -> str:
    """Try a delivery: `worker.delivery`."""
    return runtime(app).deliver(member)


@app.task(name=REGISTER, bind=True, acks_late=True, reject_on_worker_lost=True)  # type: ignore[untyped-decorator]
def register(self: Any, job: dict[str, Any] | str) -> str:
    """Door 2: accept a job, as an object or a JSON text: `worker.doors`."""
    with transaction(REGISTER, carried(vars(self.request))):
        return _take("register", self.request.id, job)


@app.task(name=CANCEL, bind=True, acks_late=True, reject_on_worker_lost=True)  # type: ignore[untyped-decorator]
def cancel(self: Any, job: dict[str, Any] | str) -> str:
    """Door 2: take a job back, by its id or its key: `worker.doors`."""
    return _take("cancel", self.request.id, job)


def _take(request: Request, id_: str, argument: Any) -> str:
    """Take a request. Its message is acknowledged by that, and must not be lost before."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return runtime(app).take(request, id_, argument)
        except LedgerUnavailable as error:
            if time.monotonic() > end or _stopping():
                raise Reject(str(error), requeue=True) from None
        except Exception as error:  # noqa: BLE001 -- acknowledged by Celery, it would be lost
            return _set_aside(request, id_, argument, type(error).__name__)


def _set_aside(request: Request, id_: str, argument: Any, fault: str) -> str:
    reason = f"the worker failed at it ({fault})"
    log.error("request set aside", alert="request", task=request, reason=reason)
    try:
        runtime(app).set_aside(request, id_, argument, reason)
    except Exception as error:  # noqa: BLE001 -- the same
        runtime(app).pause(PAUSE)
        raise Reject(
            f"the quarantine does not take it ({type(error).__name__})", requeue=True
        ) from None
    return "set aside"


def _stopping() -> bool:
    # An exit code once it is set: 0 too means that it stops.
    return celery_state.should_stop is not None and celery_state.should_stop is not False


def show(report: Report) -> str:
    """What Celery, and so Flower, gets to see of an attempt: SUCCESS, RETRY or nothing new."""
    if report.state in {State.QUEUED, State.UNKNOWN, "waits"} and report.reason != "leased":
        when = datetime.fromtimestamp(report.until / 1000, UTC)
        text = f"{report.state}: {report.reason}"
        # The state only: `Task.retry()` would hold the delay in this process's memory.
        raise TriesAgain(text, when=when)
    if report.state in {"over", "stale", "waits"}:
        # A wake-up too many; the run that counts speaks for the job.
        raise Ignore
    return f"{report.state}: {report.reason}" if report.reason else report.state


@signals.setup_logging.connect  # type: ignore[untyped-decorator]
def _logging(**_: Any) -> None:
    configure_logging(Settings.load())


@signals.celeryd_init.connect  # type: ignore[untyped-decorator]
def _begin(options: dict[str, Any], **_: Any) -> None:
    if options.get("allow_unsafe"):
        os.environ[variable("allow_unsafe")] = "true"
    # Before Celery says anything: its banner and its warnings are no lines of a log.
    settings = Settings.load()
    configure_logging(settings)
    take_over(settings)


@signals.worker_init.connect  # type: ignore[untyped-decorator]
def _start(sender: Any, **_: Any) -> None:
    vitals.consumer()  # before a pool of processes forks: its children must see it tick
    pool = sender.pool_cls.__module__.rpartition(".")[2]
    if pool in {"gevent", "eventlet"}:
        raise SystemExit(
            f"registration-worker runs its I/O in an asyncio loop, which {pool} would block: "
            "use the pool `loop` (default), `prefork` or `solo` (REGWORKER_POOL)"
        )
    log.info("worker starts", pool=pool, concurrency=sender.concurrency, version=__version__)
    if pool != "prefork":
        _start_runtime()


@signals.worker_process_init.connect  # type: ignore[untyped-decorator]
def _start_in_child(**_: Any) -> None:
    _start_runtime()
    _spare_the_collector()


@signals.worker_ready.connect  # type: ignore[untyped-decorator]
def _spare_the_collector(**_: Any) -> None:
    # What is there now (code, classes, settings) stays for as long as the process does. To look
    # through it for garbage, again and again, takes a fifth of a job's CPU.
    gc.collect()
    gc.freeze()


def _start_runtime() -> None:
    try:
        runtime(app)
    except SettingsError as error:
        lines = "\n".join(f"  {name}: {what}" for name, what in error.problems)
        raise SystemExit(f"registration-worker cannot start:\n{lines}") from None
    except LedgerUnavailable as error:
        raise SystemExit(f"registration-worker cannot start: {error}") from None
    except Exception as error:
        # Celery would go on without us: a worker that takes messages and rings no alarms.
        log.exception("worker cannot start")
        raise SystemExit(f"registration-worker cannot start: {type(error).__name__}") from None


@signals.worker_shutdown.connect  # type: ignore[untyped-decorator]
def _stop(**_: Any) -> None:
    shut_down()
    log.info("worker stopped")


@signals.worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _told_to_stop(sig: str, how: str, **_: Any) -> None:
    # Called in a signal's handler, which may have come in the middle of writing a line.
    Thread(target=log.info, args=("worker stops",), kwargs={"by": sig, "how": how.lower()}).start()


@signals.worker_process_shutdown.connect  # type: ignore[untyped-decorator]
def _stop_in_child(**_: Any) -> None:
    shut_down()

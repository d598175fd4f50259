"""Log lines on stderr: one per step, JSON for machines, or readable in a terminal.

All output takes one path: our own lines, other libraries' lines from `logging`
(`third_party_logs.py`), warnings, and errors that end a thread or the process. So every line has
the same fields, is redacted, and in production is JSON.
"""

import io
import logging
import os
import sys
import threading
from collections.abc import MutableMapping
from contextlib import suppress
from datetime import UTC, datetime
from json import JSONEncoder
from types import TracebackType
from typing import Any, TextIO, cast

import structlog

from regworker.domain.portable import plain
from regworker.settings import Settings
from worker.telemetry import third_party_logs
from worker.telemetry.context import fields
from worker.telemetry.redaction import scrub, traceback_of
from worker.telemetry.sentry import to_sentry

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def configure_logging(settings: Settings) -> None:
    """Set up all logging of this process; may be called again."""
    level = _LEVELS[settings.log_level]
    rendered: tuple[Any, ...] = (
        (_with_traceback, _as_json)
        if settings.log_format == "json"
        else (
            _with_readable_traceback,
            _visible,
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()),
        )
    )
    structlog.configure(
        processors=[
            _begun,
            _with_exception,
            _scrubbed,
            to_sentry,
            _timed,
            *rendered,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(
            cast(TextIO, _Unfailing(_stderr() or sys.stdout))
        ),
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    root.handlers = [_Others()]
    # Debug lines of libraries contain whole messages: Celery's pool logs its arguments.
    root.setLevel(max(level, logging.INFO))
    logging.getLogger("worker").setLevel(level)
    # Celery writes three lines per task, and formats them before they can be dropped.
    for name in ("celery.app.trace", "celery.worker.strategy", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)


def take_over(settings: Settings) -> None:
    """Turn a worker's other output into log lines: warnings, prints, uncaught errors.

    In production a process writes nothing but log lines.
    """
    logging.captureWarnings(True)
    sys.excepthook = _ended
    threading.excepthook = _thread_ended
    sys.unraisablehook = _unraisable
    if settings.log_format != "json":
        return
    sys.stdout, sys.stderr = _Printed("stdout"), _Printed("stderr")
    # Celery writes a banner, and that it stops, to its idea of a terminal.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def _stderr() -> TextIO | None:
    return sys.__stderr__ if isinstance(sys.stderr, _Printed) else sys.stderr


class _Unfailing:
    """A stream that stops nobody: its disk may be full, or its reader may have ended."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, line: str) -> None:
        with suppress(OSError, ValueError):
            self._stream.write(line)
            self._stream.flush()

    def flush(self) -> None:
        """Nothing: each line is written at once."""


class _Others(logging.Handler):
    """Turns records of `logging` into log lines."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            said = third_party_logs.heard(record)
            if said is None:
                return
            log = structlog.get_logger().bind(logger=record.name)
            log.log(said.level, said.event, **said.fields)
        except Exception:  # noqa: BLE001 -- a line that cannot be formatted must not stop the work
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 -- logging's name
        """Log at least that there was a line; logging's own handler prints arguments."""
        structlog.get_logger().warning("a line could not be formatted", logger=record.name)


class _Printed(io.TextIOBase):
    """A stream that turns prints into log lines."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._begun = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *whole, self._begun = (self._begun + text).split("\n")
        for line in whole:
            if line.strip():
                structlog.get_logger().warning(line.strip(), logger=self._name)
        return len(text)


Line = MutableMapping[str, Any]


def _begun(_logger: Any, level: str, line: Line) -> Line:
    # In the order in which people read raw lines.
    return {"level": level, "event": line.pop("event", ""), **fields(), **line}


def _timed(_logger: Any, _method: str, line: Line) -> Line:
    # After the redaction, which would search a text with so many colons for long.
    return {"timestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z"), **line}


def _with_exception(_logger: Any, _method: str, line: Line) -> Line:
    # `exc_info` as an exception, in whatever form it was given.
    found = line.pop("exc_info", None)
    if found is True:
        found = sys.exc_info()[1]
    elif isinstance(found, tuple):
        found = found[1]
    if isinstance(found, BaseException):
        line["exc_info"] = found
        line.setdefault("error", type(found).__name__)
    return line


def _scrubbed(_logger: Any, _method: str, line: Line) -> Line:
    error = line.pop("exc_info", None)
    clean: Line = scrub(line)
    if error is not None:
        clean["exc_info"] = error
    return clean


def _with_traceback(_logger: Any, _method: str, line: Line) -> Line:
    if (error := line.pop("exc_info", None)) is not None:
        line["traceback"] = traceback_of(error)
    return line


def _as_json(_logger: Any, _method: str, line: Line) -> str:
    return _ENCODER.encode(line)


#: Created once: `json.dumps` creates one for each line. A redacted line contains no circle.
_ENCODER = JSONEncoder(default=str, check_circular=False)


def _with_readable_traceback(_logger: Any, _method: str, line: Line) -> Line:
    if (error := line.pop("exc_info", None)) is not None:
        line["exception"] = traceback_of(error)  # the console's name for text below a line
    return line


def _visible(_logger: Any, _method: str, line: Line) -> Line:
    # No text may move a terminal's cursor, or hide or imitate other text. (All but texts are shown
    # as by `repr`, which escapes the same characters.)
    below = line.pop("exception", "").split("\n")
    shown = {
        plain(name): plain(value) if isinstance(value, str) else value
        for name, value in line.items()
    }
    return shown | {"exception": "\n".join(map(plain, below))} if any(below) else shown


def _ended(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    structlog.get_logger().critical("the process ends on a fault", exc_info=error)


def _thread_ended(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
        log = structlog.get_logger().bind(thread=args.thread.name if args.thread else "?")
        log.error("a thread ended on a fault", exc_info=args.exc_value)


def _unraisable(args: Any) -> None:
    structlog.get_logger().warning("a fault while cleaning up", exc_info=args.exc_value)

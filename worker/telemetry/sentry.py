"""Faults in Sentry: what a person must see, one issue per kind of fault, not per job.

Log lines are the only source. A line with `alert=<kind>` is an event, whose title says what the
fault is; two faults with the same title are the same issue. A line with an exception is an event
that is grouped by where it happened. Every other line is a breadcrumb.

No integration of the SDK that inspects calls by itself is used: Celery's keeps arguments (and
starts a transaction for each wake-up, even for one that does nothing), Redis' puts commands into
spans, the HTTP clients' add headers to requests. Only this module reports to Sentry.
"""

import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Literal, cast

import structlog

from regworker.settings import Settings
from worker import __version__
from worker.telemetry.redaction import scrub, text_of

#: Titles for the kinds of faults. They contain nothing that differs between jobs, so that each is
#: one issue, however many jobs it affects.
TITLES: Mapping[str, str] = {
    "refused": "account {provider}/{account} is refused",
    "review": "{provider} cannot say whether a customer exists",
    "unknown": "{provider}: the answer to a call was lost ({reason})",
    "late": "{provider} has a customer whose job ended without one",
    "lease": "a worker was lost while calling {provider}",
    "leases": "leases were lost",
    "replicas": "too few replicas follow the ledger's primary",
    "forgotten": "the ledger may have forgotten calls",
    "dead": "deliveries to {endpoint} die",
    "endpoint": "endpoint {endpoint} is disabled",
    "inbox": "the job stream cannot be read",
    "stray": "an answer that belongs to no request: {who}",
    "erasure": "plain registrations stay in files",
    "record": "records of the ledger cannot be read",
    "stream": "a stream of results cannot be trimmed",
    "request": "a request of task {task} could not be processed",
    "settings": "settings from files are not used",
    "broker": "two installations use one broker",
    "blocked": "code blocks a worker's loop",
    "hung": "a worker that was asked to stop hung",
}

#: Fields that name a kind rather than one job: added to a title that is not listed above.
_NAMES = ("provider", "account", "endpoint", "queue", "loop")

#: Fields that Sentry makes searchable.
_TAGS = (
    "job",
    "provider",
    "account",
    "attempt",
    "endpoint",
    "outcome",
    "state",
    "reason",
    "event_id",
    "queue",
    "task",
)

#: Loggers of the connection to Sentry: their errors must not be sent there.
_OWN = ("sentry_sdk", "urllib3")

#: Seconds for which a stopping worker waits for Sentry. Its jobs are done by then, and the log has
#: all reports.
SHUTDOWN_TIMEOUT = 2.0

#: Events that wait for Sentry. While it is away, further ones are dropped without waiting.
QUEUE_SIZE = 100

#: The category of our breadcrumbs.
_CRUMB = "step"


def configure_sentry(settings: Settings) -> None:
    """Report faults to Sentry if a DSN is set."""
    if settings.sentry_dsn is None:
        return
    import sentry_sdk
    from sentry_sdk.integrations.atexit import AtexitIntegration
    from sentry_sdk.integrations.dedupe import DedupeIntegration
    from sentry_sdk.integrations.modules import ModulesIntegration

    sentry_sdk.init(
        dsn=settings.sentry_dsn.get_secret_value(),
        release=f"registration-worker@{__version__}",
        environment=settings.sentry_environment,
        # 0 means "off", not "as the producer decided".
        traces_sample_rate=settings.sentry_traces_sample_rate or None,
        default_integrations=False,
        auto_enabling_integrations=False,
        integrations=[
            AtexitIntegration(callback=_quietly),
            DedupeIntegration(),
            ModulesIntegration(),
        ],
        include_local_variables=False,
        max_request_body_size="never",
        auto_session_tracking=False,
        # Providers and webhook receivers must not get our trace headers.
        trace_propagation_targets=[],
        shutdown_timeout=SHUTDOWN_TIMEOUT,
        transport_queue_size=QUEUE_SIZE,
        before_send=_before_send,
        before_send_transaction=_before_send,
        before_breadcrumb=_before_breadcrumb,
    )


def flush_sentry() -> None:
    """Send the remaining events, for a process that ends at once."""
    if (sentry := _sentry()) is not None:
        sentry.flush(SHUTDOWN_TIMEOUT)


def alert(message: str, *, kind: str, **context: Any) -> None:
    """Notify a person: an error in the log, and in Sentry one issue per kind (`TITLES`)."""
    structlog.get_logger(__name__).error(message, alert=kind, **context)


def to_sentry(_logger: Any, _method: str, line: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """A processor of log lines, after the redaction: report to Sentry, if it is on."""
    sentry = _sentry()
    if sentry is None:
        return line
    if str(line.get("logger", "")).startswith(_OWN):
        return line
    level = _level(line)
    error = line.get("exc_info")
    if "alert" in line or error is not None or level in {"error", "fatal"}:
        with sentry.new_scope() as scope:
            _describe(scope, line, level)
            if isinstance(error, BaseException):
                sentry.capture_exception(error)
            else:
                title = title_of(line)
                scope.fingerprint = ["registration-worker", title]
                sentry.capture_message(title, level=level)
    data = {name: value for name, value in line.items() if name not in _NO_DATA}
    sentry.add_breadcrumb(
        category=_CRUMB, message=str(line.get("event", "")), level=level, data=data
    )
    return line


def _sentry() -> Any:
    # During its import, a module exists without its content.
    sentry = sys.modules.get("sentry_sdk")
    on = getattr(sentry, "is_initialized", None)
    return sentry if on is not None and on() else None


def title_of(line: Mapping[str, Any]) -> str:
    """The title of a line's fault in Sentry: the same for all faults of its kind."""
    template = TITLES.get(str(line.get("alert", "")))
    if template is not None:
        return template.format_map(_Told(line))
    shown = [f"{name} {line[name]}" for name in _NAMES if line.get(name)]
    return _alike(" ".join([str(line.get("event", "fault")), *shown]))


class _Told(dict[str, Any]):
    def __missing__(self, name: str) -> str:
        return "?"

    def __getitem__(self, name: str) -> str:
        return _alike(str(self.get(name) or "?"))


def _alike(text: str) -> str:
    # A provider's reason may contain a number, which does not make it another fault.
    return re.sub(r"\b(?=\w*\d)[\w-]{8,}\b|\d{4,}", "*", text)[:120]


_Level = Literal["debug", "info", "warning", "error", "fatal"]
_NO_DATA = frozenset({"event", "level", "timestamp", "exc_info", "traceback"})


def _level(line: Mapping[str, Any]) -> _Level:
    name = str(line.get("level", "info"))
    if name in {"critical", "exception"}:
        return "fatal" if name == "critical" else "error"
    return cast(_Level, name) if name in {"debug", "info", "warning", "error"} else "info"


def _describe(scope: Any, line: Mapping[str, Any], level: _Level) -> None:
    scope.set_level(level)
    for name in _TAGS:
        if line.get(name) not in (None, ""):
            scope.set_tag(name, str(line[name]))
    if "alert" in line:
        scope.set_tag("kind", line["alert"])
    shown = {name: value for name, value in line.items() if name not in _NO_DATA}
    scope.set_context("line", {"event": line.get("event"), **shown})


def _before_send(event: Any, hint: Any) -> Any:
    for value in (event.get("exception") or {}).get("values", ()):
        value["value"] = _text_of(value, hint)
        for frame in (value.get("stacktrace") or {}).get("frames", ()):
            frame.pop("vars", None)
    event.pop("request", None)
    event.pop("user", None)
    # Frames contain code, in which names like `key` are not fields' names.
    kept = {name: event[name] for name in ("exception", "modules", "sdk") if name in event}
    scrubbed = {name: scrub(value) for name, value in event.items() if name not in kept}
    return {**scrubbed, **kept}


def _text_of(value: Mapping[str, Any], hint: Mapping[str, Any]) -> str:
    # Found by name: an event lists all exceptions of a chain, the hint only the last.
    _, error, _ = hint.get("exc_info") or (None, None, None)
    seen: set[int] = set()
    texts: list[str] = []
    pending = [error]
    while pending:
        one = pending.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        if type(one).__name__ == value.get("type"):
            texts.append(text_of(one))
        pending += [one.__cause__, one.__context__]
        pending += getattr(one, "exceptions", ())
    # If two have the same name, one's text must not be shown for the other.
    return texts[0] if len(set(texts)) == 1 else ""


def _before_breadcrumb(crumb: Any, _hint: Any) -> Any:
    # The SDK also creates some of the traced data.
    return scrub(crumb) if crumb.get("category") == _CRUMB else None


def _quietly(_pending: int, _timeout: float) -> None:
    """Replaces the SDK's own two lines on stderr."""

"""Faults in Sentry: what a person must see, one issue a kind of fault, not one a job.

Log lines are the only source. A line with `alert=<kind>` is an event, whose title says what the
fault is; two faults with the same title are the same issue. A line with an exception is an event
that is grouped by where it happened. Every other line is a breadcrumb.

No integration of the SDK is used that looks into calls by itself: Celery's keeps arguments (and
starts a transaction for each wake-up, also for one that does nothing), Redis' puts commands into
spans, the HTTP clients' add headers to requests. What is told is told here.
"""

import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Literal, cast

import structlog

from worker import __version__
from worker.settings import Settings
from worker.telemetry.scrub import scrub, scrub_text, speaks

#: What a fault of each kind is called. What differs between jobs is not in here, so that it is
#: one issue however many jobs it meets.
TITLES: Mapping[str, str] = {
    "refused": "account {provider}/{account} is refused",
    "review": "{provider} cannot tell what became of a job",
    "unknown": "{provider}: the answer to a call was lost ({reason})",
    "lease": "a worker was lost while calling {provider}",
    "leases": "leases were lost",
    "dead": "deliveries to {endpoint} go dead",
    "endpoint": "endpoint {endpoint} is disabled",
    "inbox": "the job stream cannot be read",
    "request": "a request of task {task} could not be taken",
}

#: Fields that name a kind of thing rather than one job: added to a title that isn't listed above.
_NAMES = ("provider", "account", "endpoint", "queue", "loop")

#: Fields that can be searched for in Sentry.
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

#: Loggers of the way to Sentry itself: a fault there must not be told there.
_OWN = ("sentry_sdk", "urllib3")

#: Seconds that a worker that stops waits for Sentry. Its jobs are done by then; what is lost of
#: reports is in the log.
SHUTDOWN_TIMEOUT = 2.0

#: Events that wait for Sentry. While it is away, more are dropped, and nobody waits.
QUEUE_SIZE = 100

#: The category of our breadcrumbs.
_CRUMB = "step"


def configure_sentry(settings: Settings) -> None:
    """Report faults to Sentry where a DSN is set."""
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
        # 0 is "off", and not "whatever the producer decided".
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
        # The providers and the webhooks' receivers have no business with our traces.
        trace_propagation_targets=[],
        shutdown_timeout=SHUTDOWN_TIMEOUT,
        transport_queue_size=QUEUE_SIZE,
        before_send=_before_send,
        before_send_transaction=_before_send,
        before_breadcrumb=_before_breadcrumb,
    )


def flush_sentry() -> None:
    """Send what waits to be sent, for a process that ends without further notice."""
    if (sentry := _sentry()) is not None:
        sentry.flush(SHUTDOWN_TIMEOUT)


def alert(message: str, *, kind: str, **context: Any) -> None:
    """Tell a person: an error in the log, and in Sentry one issue a kind (`TITLES`)."""
    structlog.get_logger(__name__).error(message, alert=kind, **context)


def to_sentry(_logger: Any, _method: str, line: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """A processor of log lines, behind the one that scrubs them: tell Sentry, where it is on."""
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
    # While it is being imported, a module is there and has nothing in it.
    sentry = sys.modules.get("sentry_sdk")
    on = getattr(sentry, "is_initialized", None)
    return sentry if on is not None and on() else None


def title_of(line: Mapping[str, Any]) -> str:
    """What a line's fault is called in Sentry: the same for all faults of its kind."""
    template = TITLES.get(str(line.get("alert", "")))
    if template is not None:
        return template.format_map(_Told(line))
    told = [f"{name} {line[name]}" for name in _NAMES if line.get(name)]
    return _alike(" ".join([str(line.get("event", "fault")), *told]))


class _Told(dict[str, Any]):
    def __missing__(self, name: str) -> str:
        return "?"

    def __getitem__(self, name: str) -> str:
        return _alike(str(self.get(name) or "?"))


def _alike(text: str) -> str:
    # A provider's reason may hold a number of its own: that makes no other fault of it.
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
    told = {name: value for name, value in line.items() if name not in _NO_DATA}
    scope.set_context("line", {"event": line.get("event"), **told})


def _before_send(event: Any, hint: Any) -> Any:
    for value in (event.get("exception") or {}).get("values", ()):
        if not _may_speak(value, hint):
            value["value"] = ""
        for frame in (value.get("stacktrace") or {}).get("frames", ()):
            frame.pop("vars", None)
    event.pop("request", None)
    event.pop("user", None)
    # Frames hold code, and names like `key` in them are no secrets' names.
    kept = {name: event[name] for name in ("exception", "modules", "sdk") if name in event}
    scrubbed = {name: scrub(value) for name, value in event.items() if name not in kept}
    for value in (kept.get("exception") or {}).get("values", ()):
        value["value"] = scrub_text(value.get("value") or "")
    return {**scrubbed, **kept}


def _may_speak(value: Mapping[str, Any], hint: Mapping[str, Any]) -> bool:
    # Found by name: an event tells of all exceptions of a chain, the hint only of the last.
    _, error, _ = hint.get("exc_info") or (None, None, None)
    seen: set[int] = set()
    pending = [error]
    while pending:
        one = pending.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        if type(one).__name__ == value.get("type"):
            return speaks(type(one))
        pending += [one.__cause__, one.__context__]
        pending += getattr(one, "exceptions", ())
    return False


def _before_breadcrumb(crumb: Any, _hint: Any) -> Any:
    # The SDK makes some of what is traced, too.
    return scrub(crumb) if crumb.get("category") == _CRUMB else None


def _quietly(_pending: int, _timeout: float) -> None:
    """In place of the SDK's own two lines on stderr."""

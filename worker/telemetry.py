"""Logs and fault reports. Nothing here knows a secret, and nothing passes one on."""

import logging
import sys
from typing import Any

import structlog

from worker.settings import Settings

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def configure_logging(settings: Settings) -> None:
    """One line a step on stderr: JSON for machines, or readable in a terminal."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    json = settings.log_format == "json"
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if json
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    # Tracebacks hold no local variables: these are where secrets live.
    trace = [structlog.processors.format_exc_info] if json else []
    level = _LEVELS[settings.log_level]
    structlog.configure(
        processors=[*shared, *trace, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *trace,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    # Celery says three lines a task; ours say more in one.
    for name in ("celery.app.trace", "celery.worker.strategy", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)


def configure_sentry(settings: Settings) -> None:
    """Report faults to Sentry where a DSN is set; without local variables or request bodies."""
    if settings.sentry_dsn is None:
        return
    import sentry_sdk
    from sentry_sdk.integrations.celery import CeleryIntegration

    sentry_sdk.init(
        dsn=settings.sentry_dsn.get_secret_value(),
        integrations=[CeleryIntegration(propagate_traces=False)],
        include_local_variables=False,
        send_default_pii=False,
        max_request_body_size="never",
        before_send=_scrub,
    )


def alert(message: str, *, kind: str, **context: Any) -> None:
    """Tell a person: an error in the log, and in Sentry one issue a kind, not one a job."""
    structlog.get_logger(__name__).error(message, alert=kind, **context)
    sentry = sys.modules.get("sentry_sdk")
    if sentry is not None and sentry.is_initialized():
        with sentry.new_scope() as scope:
            scope.fingerprint = [kind, *map(str, context.values())][:3]
            scope.set_context("job", {name: str(value) for name, value in context.items()})
            sentry.capture_message(message, level="error")


#: Parts of field names whose values never leave, at any depth.
_SECRET_WORDS = ("password", "key", "secret", "identity", "tax_number", "personalcode", "token")


def _scrub(event: Any, _hint: Any) -> Any:
    return scrub(event)


def scrub(value: Any) -> Any:
    """A copy without the values of fields that hold secrets."""
    if isinstance(value, dict):
        return {
            key: "[secret]" if _is_secret(key) and isinstance(item, str) else scrub(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [scrub(item) for item in value]
    return value


def _is_secret(name: object) -> bool:
    return isinstance(name, str) and any(word in name.lower() for word in _SECRET_WORDS)

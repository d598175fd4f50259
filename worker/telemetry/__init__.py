"""Log lines, reports of errors to Sentry, and OpenTelemetry's SDK.

    context.py           what all lines of one step at a job say of it
    logs.py              one line a step: JSON, or readable in a terminal
    third_party_logs.py  the same lines for what Celery, kombu and plain loggers say
    redaction.py         what takes secrets out of all of it
    sampling.py          limits the lines about other programs' input
    sentry.py            log lines that a person must see, as Sentry issues
    otel.py              OpenTelemetry's SDK: sends traces and metrics by OTLP

`client/regworker/tracing/` carries traces along. The names of all lines are listed in
`docs/logs.md`.
"""

from worker.telemetry.context import about
from worker.telemetry.logs import configure_logging, take_over
from worker.telemetry.sentry import alert, configure_sentry, flush_sentry

__all__ = ["about", "alert", "configure_logging", "configure_sentry", "flush_sentry", "take_over"]

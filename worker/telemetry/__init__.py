"""What is told of the work: log lines, and reports of faults to Sentry.

    about.py   what all lines of one step at a job say of it
    logs.py    one line a step: JSON, or readable in a terminal
    others.py  the same lines for what Celery, kombu and plain loggers say; their noise is dropped
    scrub.py   what takes secrets out of all of it
    faults.py  log lines that a person must see, as Sentry issues; one issue a kind of fault

`worker/tracing.py` carries traces along. The names of all lines are listed in `docs/logs.md`.
"""

from worker.telemetry.about import about
from worker.telemetry.faults import alert, configure_sentry, flush_sentry
from worker.telemetry.logs import configure_logging, take_over

__all__ = ["about", "alert", "configure_logging", "configure_sentry", "flush_sentry", "take_over"]

"""registration-worker: registers customers at providers, each exactly once.

Nothing happens at import. `celery -A worker worker` runs jobs; services enqueue them with the
client, `regworker`, whose version is this one's too.
"""

from typing import Any

from regworker import __version__

__all__ = ["__version__"]


def __getattr__(name: str) -> Any:
    """The module `celery`, which Celery looks for first: it would not say why an import fails."""
    if name == "celery":
        # As Celery does, which finds `celeryconfig.py` so.
        from celery.utils.imports import import_from_cwd

        return import_from_cwd("worker.celery")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""registration-worker: registers customers at providers, each exactly once.

Nothing happens at import. `celery -A worker worker` runs jobs; services enqueue them with the
client, `regworker`, whose version is this one's too.
"""

from regworker import __version__

__all__ = ["__version__"]

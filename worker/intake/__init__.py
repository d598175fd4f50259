"""The asynchronous entry points: the job stream, the Celery task; and the quarantine."""

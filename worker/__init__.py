"""registration-worker: registers customers at providers, each exactly once.

Nothing happens at import. Start with `worker.producer.Producer` to enqueue jobs, or with
`celery -A worker worker` to run them.
"""

__version__ = "0.1.0"

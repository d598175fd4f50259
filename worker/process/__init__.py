"""The Celery worker: tasks, pool, consumer, and the composition root (`runtime`)."""

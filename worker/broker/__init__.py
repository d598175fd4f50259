"""The broker as Celery sees it: transports, queues, wake-ups."""

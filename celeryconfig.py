"""Celery's own settings of the production command: `celery -A worker worker`.

The broker, the queues, the pool and all that correctness depends on follow from the `REGWORKER_*`
environment (docs/settings.md; `worker/celery.py` says why each). What is assigned here is
read over that: this is the place to change Celery itself.
"""

# How many wake-ups RabbitMQ sends ahead for each slot, from each queue (Redis sends none ahead).
# The worker sorts them by lane. More than 1 would only keep them from other workers.
worker_prefetch_multiplier = 1

# Task events are what Flower shows; they cost some CPU a job.
worker_send_task_events = True

# Seconds of events that Flower may miss before they are dropped from its queue.
event_queue_ttl = 30.0

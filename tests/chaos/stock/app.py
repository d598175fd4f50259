"""The same job as a plain Celery task from Celery's documentation: what a queue alone offers.

Late acknowledgement, retries of every exception with backoff, a Redis broker; the result event is
written at the end. Only for comparison with the registration worker.
"""

import json
import os
from typing import Any

import httpx
import redis
from celery import Celery

app = Celery("stock", broker=os.environ.get("STOCK_BROKER", "redis://127.0.0.1:6379/0"))
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    # The default is an hour: a killed worker's messages would not return within the run. It must be
    # longer than any retry's delay, or Redis gives the same message to two workers.
    broker_transport_options={"visibility_timeout": 20},
)

_http = httpx.Client(timeout=float(os.environ.get("STOCK_TIMEOUT", "1.2")))
_redis = redis.Redis.from_url(os.environ.get("STOCK_REDIS", "redis://127.0.0.1:6379/0"))

SKYPOSTAL = "/wcf-services/service-customer.svc/customer/customer-registration"
OPEN2B = "/api/v10/storefront.sign-up"


@app.task(
    name="stock.register",
    autoretry_for=(Exception,),
    retry_backoff=True,
    retry_backoff_max=5,
    max_retries=20,
)
def register(job_id: str, job: dict[str, Any]) -> None:
    """Register a customer, and publish the result."""
    outcome = _call(job)
    event = {
        "id": f"{job_id}.1",
        "subject": job_id,
        "type": "registration.registered" if outcome else "registration.rejected",
        "data": {"outcome": outcome},
    }
    _redis.xadd("{reg}:results", {"event": json.dumps(event)})


def _call(job: dict[str, Any]) -> dict[str, Any] | None:
    base = os.environ["STOCK_PROVIDER"]
    if job["provider"] == "skypostal":
        credentials = {"user_code": 396, "app_key": "key", "copa_id": 616}
        answer = _http.post(base + SKYPOSTAL, json={**job["registration"], **credentials})
        answer.raise_for_status()
        [item] = answer.json()
        if not item["_verify"]:
            return None
        return {name: item[name] for name in ("customer_box_id", "customer_key")}
    answer = _http.post(base + OPEN2B, json=job["registration"])
    answer.raise_for_status()
    if answer.json()["status"] != "ok":
        return None
    return {"customer_key": answer.headers["X-Customer-Key"]}

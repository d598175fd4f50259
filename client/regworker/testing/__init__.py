"""For the tests of a service that enqueues jobs: a fake, events, signed requests, the real thing.

    from regworker.testing import FakeProducer, rejected

    producer = FakeProducer()
    producer.plan("crm-8841", rejected("already_exists", "customer_email", "is known"))
    sign_up(producer, ...)                       # your code
    assert producer.jobs[0].idempotency_key == "crm-8841"

`FakeProducer` checks jobs by the real models and raises the real errors, in memory. With pytest,
the fixture `fake_producer` is there without an import; `registration_worker` starts the real thing
(it needs `registration-worker[embedded]`).
"""

from regworker.testing.events import (
    Ending,
    SignedRequest,
    abandoned,
    cancelled,
    corrected,
    event,
    registered,
    rejected,
    review,
    signed,
)
from regworker.testing.fake import AsyncFakeProducer, FakeProducer

__all__ = [
    "AsyncFakeProducer",
    "Ending",
    "FakeProducer",
    "SignedRequest",
    "abandoned",
    "cancelled",
    "corrected",
    "event",
    "registered",
    "rejected",
    "review",
    "signed",
]

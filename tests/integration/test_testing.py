"""A real installation for a host's own tests: ledger, worker and sandbox from one fixture."""

from regworker.producer import Producer
from tests.integration.jobs import email_of, open2b, skypostal
from worker.cli.local.embedded import Installation


def test_a_job_is_registered_by_a_producer_of_the_hosts_own(
    registration_worker: Installation,
) -> None:
    """`REGWORKER_*` is set, so that the host's code connects as in production."""
    job = open2b(idempotency_key="real-1", reply_to=["results", "crm"])
    with Producer() as producer:
        found = producer.wait(producer.enqueue(job).job_id, 60)
    assert found["type"] == "registration.registered"
    assert registration_worker.accounts(email_of(job)) == 1


def test_faults_are_scripted_and_forgotten(registration_worker: Installation) -> None:
    """A lost answer is recovered; the previous test left nothing behind."""
    assert registration_worker.server.sandbox.faults.public()["script"] == []
    job = skypostal(idempotency_key="real-2")
    registration_worker.fault("commit_then_drop", email=email_of(job))
    producer = registration_worker.producer
    found = producer.wait(producer.enqueue(job).job_id, 60)
    assert found["data"]["recovered"] is True
    assert registration_worker.accounts(email_of(job)) == 1

"""Whatever a provider returns or raises, its job ends once, with a reason, and no worker dies."""

from pathlib import Path
from typing import Any

from regworker.domain.states import FINAL, State
from regworker.producer import Producer, Status
from tests.integration.installation import PATIENCE, Installation, installation
from tests.integration.jobs import skypostal
from tests.integration.odd import FIT, RAISED, REPAIRED, UNFIT, WAITS, OddRegistration
from worker.cli.local import stack

PROVIDERS = [
    "worker.providers.skypostal:SkyPostal",
    "worker.providers.open2b:Open2b",
    "tests.integration.odd:Odd",
]


def ended(here: Installation, job_id: str, what: tuple[str, str]) -> Status:
    """Wait until a job no longer changes by itself."""
    over = {*FINAL, State.REVIEW}
    stack.until(lambda: here.producer.status(job_id).state in over, f"{what}", PATIENCE)
    return here.producer.status(job_id)


def test_every_odd_outcome_ends_its_job(tmp_path: Path) -> None:
    """Data that cannot be stored goes to review; after an error the customer is looked up; jobs
    end."""
    odd = {
        "providers": ",".join(PROVIDERS),
        "accounts__odd__default__base_url": "http://127.0.0.1:1",
        # One call each, and a deadline that passes before lookups repeat many times.
        "max_attempts": 1,
        "retry_cap": 0.5,
        "breaker_threshold": 10**6,
    }
    expected = {
        **{("returned", name): "review" for name in UNFIT},
        **{("returned", name): "rejected" for name in REPAIRED},
        **{("returned", name): "registered" for name in FIT},
        **{("raised", name): "abandoned" for name in RAISED},
        **{("raised twice", name): "review" for name in RAISED},
        **{("waits", name): "abandoned" for name in WAITS},
    }
    with installation(tmp_path, **odd) as here:
        ids: dict[str, tuple[str, str]] = {}
        settings = here.producer.settings.model_copy(
            update={"providers": PROVIDERS, "deadline": 30.0}
        )
        with Producer(settings) as producer:
            for kind, name in expected:
                job: dict[str, Any] = {
                    "provider": "odd",
                    "idempotency_key": f"{kind}/{name}".replace(" ", "-"),
                    "registration": {"kind": kind, "name": name},
                }
                ids[producer.enqueue(job).job_id] = (kind, name)
        found = {what: ended(here, job_id, what) for job_id, what in ids.items()}
        assert {what: one.state for what, one in found.items()} == expected
        for job_id, what in ids.items():
            assert len(here.events(job_id)) == 1, what
        for name in UNFIT:
            assert "the provider's outcome cannot be written" in found["returned", name].why, name
        for name in REPAIRED:
            event = found["returned", name].event
            assert event is not None
            fields = {one.get("field", "") for one in event["data"]["errors"]}
            assert fields <= {"", *OddRegistration.model_fields}, name
        for name, outcome in FIT.items():
            event = found["returned", name].event
            assert event is not None
            assert event["data"]["outcome"] == outcome.data, name
        assert here.workers[0].poll() is None, "the worker has lived through it"
        assert here.run(skypostal())["type"] == "registration.registered"

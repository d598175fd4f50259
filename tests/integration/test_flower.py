"""What the people on call see in Flower: a real one, watching a real worker."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.integration.installation import PATIENCE, Installation, installation
from tests.integration.jobs import email_of, skypostal
from worker.cli import stack


@contextmanager
def flower(here: Installation) -> Iterator[httpx.Client]:
    """Flower beside an installation, and a client of its API."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {**here.environment, "FLOWER_UNAUTHENTICATED_API": "true"}
    command = stack.flower_command(port)
    with (
        (here.folder / "flower.log").open("wb") as log,
        stack.process(command, environment, here.folder, log),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client,
    ):
        stack.until(lambda: _sees_worker(client), "Flower sees the worker", PATIENCE)
        yield client


def _sees_worker(client: httpx.Client) -> bool:
    try:
        return bool(client.get("/api/workers", params={"refresh": "true"}).json())
    except (httpx.TransportError, ValueError):
        return False


def task(client: httpx.Client, job_id: str) -> dict[str, Any]:
    """A task as Flower has it; empty while it has none."""
    answer = client.get(f"/api/task/info/{job_id}")
    found: dict[str, Any] = answer.json() if answer.status_code == 200 else {}
    return found


def test_flower_shows_each_job_under_its_id_and_no_secret(tmp_path: Path) -> None:
    """The task's id is the job's; a retry shows as RETRY with its reason, the end as SUCCESS."""
    job = skypostal()
    job["registration"]["customer_password"] = "canary-password"
    with installation(tmp_path, retry_base=3, retry_cap=3) as here, flower(here) as client:
        rule = {"kind": "too_many", "retry_after": 3, "email": email_of(job)}
        here.sandbox.faults.configure({"script": [rule]})
        job_id = here.producer.enqueue(job).job_id

        stack.until(lambda: task(client, job_id).get("state") == "RETRY", "RETRY in Flower")
        retried = task(client, job_id)
        assert retried["name"] == "registrations.attempt"
        assert "429" in retried["exception"]

        event = here.producer.wait(job_id, PATIENCE)
        stack.until(lambda: task(client, job_id).get("state") == "SUCCESS", "SUCCESS in Flower")
        done = task(client, job_id)
        assert done["result"] == "'registered'"
        assert done["args"] == f"('{job_id}',)"

        pages = [client.get(path).text for path in ("/", "/tasks", f"/task/{job_id}", "/broker")]
        pages += [client.get("/api/tasks").text]
        for secret in ("canary-password", event["data"]["outcome"]["customer_key"]):
            assert not any(secret in page for page in pages)

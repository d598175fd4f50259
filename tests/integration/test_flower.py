"""Flower for the people on call: a real one, with a real worker, in a real browser."""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.browser import Page, browser
from tests.chaos.proxy import free_port
from tests.integration.installation import PATIENCE, Installation, installation
from tests.integration.jobs import email_of, open2b, skypostal
from worker.broker.wakeups import ATTEMPT
from worker.celery import new_app
from worker.cli.local import stack

USER, PASSWORD = "operator", "passw0rd"

#: As the compose file starts it: with a password, read-only. The columns are those of the command
#: there and in `regworker up`.
OPTIONS = {
    "FLOWER_BASIC_AUTH": f"{USER}:{PASSWORD}",
    "FLOWER_READ_ONLY": "true",
}

#: In the registrations; no page may show it.
SECRET = "canary-password"


@dataclass
class Watched:
    """An installation with Flower."""

    here: Installation
    url: str
    client: httpx.Client
    """A client of its API, with the password."""

    def task(self, job_id: str) -> dict[str, Any]:
        """A task as Flower shows it; empty as long as it knows none."""
        answer = self.client.get(f"/api/task/info/{job_id}")
        found: dict[str, Any] = answer.json() if answer.status_code == 200 else {}
        return found

    def wait_for(self, job_id: str, state: str) -> dict[str, Any]:
        """Wait until Flower shows a task in a state; return the task."""
        stack.until(lambda: self.task(job_id).get("state") == state, f"{state} in Flower", PATIENCE)
        return self.task(job_id)


@contextmanager
def watched(folder: Path, *options: str, **environment: Any) -> Iterator[Watched]:
    """An installation with its Flower. `options`: of the worker."""
    with ExitStack() as running:
        here = running.enter_context(installation(folder, workers=0, **environment))
        worker = here.start_worker(*options)
        port = free_port()
        log = running.enter_context((folder / "flower.log").open("wb"))
        command = stack.flower_command(port)
        running.enter_context(stack.process(command, {**here.environment, **OPTIONS}, folder, log))
        url = f"http://127.0.0.1:{port}"
        client = running.enter_context(
            httpx.Client(base_url=url, trust_env=False, auth=(USER, PASSWORD), timeout=PATIENCE)
        )
        seen = Watched(here, url, client)
        stack.wait_for_worker(here.ledger, worker)
        stack.until(lambda: _sees_worker(client), "Flower sees the worker", PATIENCE)
        yield seen


def _sees_worker(client: httpx.Client) -> bool:
    try:
        return bool(client.get("/api/workers", params={"refresh": "true"}).json())
    except (httpx.TransportError, ValueError):
        return False


def story(seen: Watched) -> dict[str, str]:
    """Jobs with each of the quick ends; their ids."""
    jobs = {"done": skypostal(), "asked to wait": open2b(), "refused": skypostal()}
    for name in ("done", "refused"):
        jobs[name]["registration"]["customer_password"] = SECRET
    jobs["refused"]["registration"]["customer_email"] = email_of(jobs["done"])
    waits = {"kind": "too_many", "retry_after": 600, "email": email_of(jobs["asked to wait"])}
    seen.here.sandbox.faults.configure({"script": [waits]})
    ids = {}
    for name, job in jobs.items():
        ids[name] = seen.here.producer.enqueue(job).job_id
        seen.wait_for(ids[name], "RETRY" if name == "asked to wait" else "SUCCESS")
    return ids


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """One installation for all tests of this file."""
    with watched(tmp_path_factory.mktemp("flower")) as seen:
        yield seen


@pytest.fixture(scope="module")
def ids(seen: Watched) -> dict[str, str]:
    """The jobs that were run."""
    return story(seen)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A browser tab."""
    with browser(tmp_path_factory.mktemp("browser")) as page:
        yield page


def rows(page: Page, seen: Watched) -> dict[str, dict[str, str]]:
    """The page of tasks as the browser shows it, by task id."""
    page.open(f"{seen.url.replace('://', f'://{USER}:{PASSWORD}@')}/tasks")
    stack.until(lambda: any("UUID" in row for row in page.table("#tasks-table")), "the table")
    return {row["UUID"]: row for row in page.table("#tasks-table") if "UUID" in row}


def test_without_the_password_nothing_is_shown(
    seen: Watched, ids: dict[str, str], page: Page
) -> None:
    """Neither a page nor the API."""
    page.open(f"{seen.url}/tasks")
    assert page.run("document.querySelector('#tasks-table')") is None
    assert "registrations" not in page.text()
    for path in ("/", "/tasks", "/broker", "/api/workers", "/api/tasks"):
        answer = httpx.get(seen.url + path, trust_env=False, timeout=PATIENCE)
        assert answer.status_code == 401


def test_the_page_of_tasks_shows_each_job_under_its_id(
    seen: Watched, ids: dict[str, str], page: Page, tmp_path: Path
) -> None:
    """Name, id, state, and its result or what it waits for, on one page."""
    shown = rows(page, seen)
    assert {shown[job_id]["NAME"] for job_id in ids.values()} == {ATTEMPT}
    assert shown[ids["done"]]["STATE"] == "SUCCESS"
    assert "registered" in shown[ids["done"]]["RESULT"]
    assert "rejected" in shown[ids["refused"]]["RESULT"]
    waiting = shown[ids["asked to wait"]]
    assert waiting["STATE"] == "RETRY"
    why = r"queued: .*\(HTTP 429\); again at \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"
    assert re.fullmatch(why, waiting["EXCEPTION"])

    picture = tmp_path / "flower.png"
    page.screenshot(picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_no_page_shows_a_secret(seen: Watched, ids: dict[str, str], page: Page) -> None:
    """Neither registrations nor the providers' answers."""
    event = seen.here.producer.wait(ids["done"], PATIENCE)
    paths = ["/", "/tasks", "/broker", *(f"/task/{job_id}" for job_id in ids.values())]
    texts = [seen.client.get(path).text for path in [*paths, "/api/tasks", "/api/workers"]]
    rows(page, seen)
    texts.append(page.text())
    for secret in (SECRET, event["data"]["outcome"]["customer_key"]):
        assert not any(secret in text for text in texts)


def test_a_retry_becomes_a_success_under_the_same_id(seen: Watched) -> None:
    """A job's id shows its current state, however often it was tried."""
    job = skypostal()
    rule = {"kind": "too_many", "retry_after": 20, "email": email_of(job)}
    seen.here.sandbox.faults.configure({"script": [rule]})
    job_id = seen.here.producer.enqueue(job).job_id
    seen.wait_for(job_id, "RETRY")
    done = seen.wait_for(job_id, "SUCCESS")
    assert done["result"] == "'registered'"
    assert done["args"] == f"('{job_id}',)"


def test_flower_is_for_looking_only(seen: Watched, ids: dict[str, str]) -> None:
    """Flower refuses every request that would change something."""
    [worker] = seen.client.get("/api/workers").json()
    for path in (f"/api/worker/shutdown/{worker}", f"/api/task/revoke/{ids['asked to wait']}"):
        assert seen.client.post(path).status_code == 403


def test_a_task_cannot_be_revoked(seen: Watched) -> None:
    """Revoking, in another Flower or with Celery, leaves no job unfinished."""
    job = skypostal()
    rule = {"kind": "too_many", "retry_after": 20, "email": email_of(job)}
    seen.here.sandbox.faults.configure({"script": [rule]})
    job_id = seen.here.producer.enqueue(job).job_id
    seen.wait_for(job_id, "RETRY")
    app = new_app(seen.here.producer.settings)
    [answer] = app.control.revoke(job_id, reply=True, timeout=PATIENCE, limit=1)
    app.close()
    assert "refused" in next(iter(answer.values()))["error"]
    event = seen.here.producer.wait(job_id, PATIENCE)
    assert event["type"] == "registration.registered"

"""What the people on call see in Flower: a real one, watching a real worker, in a real browser."""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.browser import Page, browser
from tests.integration.installation import PATIENCE, Installation, installation
from tests.integration.jobs import email_of, open2b, skypostal
from worker.celery import new_app
from worker.cli import stack
from worker.wakeups import ATTEMPT

USER, PASSWORD = "operator", "passw0rd"

#: As the compose file starts it: with a password, for looking only, with what a task came to.
OPTIONS = {
    "FLOWER_BASIC_AUTH": f"{USER}:{PASSWORD}",
    "FLOWER_READ_ONLY": "true",
    "FLOWER_TASKS_COLUMNS": "name,uuid,state,result,exception,received,runtime,worker",
}

#: In the registrations; to be seen on no page.
SECRET = "canary-password"


@dataclass
class Watched:
    """An installation, and Flower beside it."""

    here: Installation
    url: str
    client: httpx.Client
    """Of its API, with the password."""

    def task(self, job_id: str) -> dict[str, Any]:
        """A task as Flower has it; empty while it has none."""
        answer = self.client.get(f"/api/task/info/{job_id}")
        found: dict[str, Any] = answer.json() if answer.status_code == 200 else {}
        return found

    def wait_for(self, job_id: str, state: str) -> dict[str, Any]:
        """Wait until Flower shows a task in a state; the task."""
        stack.until(lambda: self.task(job_id).get("state") == state, f"{state} in Flower", PATIENCE)
        return self.task(job_id)


@contextmanager
def watched(folder: Path, *options: str, **environment: Any) -> Iterator[Watched]:
    """An installation and its Flower. `options`: the worker's."""
    with ExitStack() as running:
        here = running.enter_context(installation(folder, workers=0, **environment))
        worker = here.start_worker(*options)
        port = stack._free_port()
        log = running.enter_context((folder / "flower.log").open("wb"))
        command = stack.flower_command(port)
        running.enter_context(stack.process(command, {**here.environment, **OPTIONS}, folder, log))
        url = f"http://127.0.0.1:{port}"
        client = httpx.Client(base_url=url, trust_env=False, auth=(USER, PASSWORD))
        seen = Watched(here, url, running.enter_context(client))
        stack.wait_for_worker(here.ledger, worker)
        stack.until(lambda: _sees_worker(client), "Flower sees the worker", PATIENCE)
        yield seen


def _sees_worker(client: httpx.Client) -> bool:
    try:
        return bool(client.get("/api/workers", params={"refresh": "true"}).json())
    except (httpx.TransportError, ValueError):
        return False


def story(seen: Watched) -> dict[str, str]:
    """A job of each end that a person sees soon; their ids."""
    jobs = {"done": skypostal(), "told to wait": open2b(), "refused": skypostal()}
    for name in ("done", "refused"):
        jobs[name]["registration"]["customer_password"] = SECRET
    jobs["refused"]["registration"]["customer_email"] = email_of(jobs["done"])
    waits = {"kind": "too_many", "retry_after": 600, "email": email_of(jobs["told to wait"])}
    seen.here.sandbox.faults.configure({"script": [waits]})
    ids = {}
    for name, job in jobs.items():
        ids[name] = seen.here.producer.enqueue(job).job_id
        seen.wait_for(ids[name], "RETRY" if name == "told to wait" else "SUCCESS")
    return ids


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """One for all tests of this file."""
    with watched(tmp_path_factory.mktemp("flower")) as seen:
        yield seen


@pytest.fixture(scope="module")
def ids(seen: Watched) -> dict[str, str]:
    """The jobs that have been run."""
    return story(seen)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A tab of a browser."""
    with browser(tmp_path_factory.mktemp("browser")) as page:
        yield page


def rows(page: Page, seen: Watched) -> dict[str, dict[str, str]]:
    """The page of tasks as the browser shows it, by the tasks' ids."""
    page.open(f"{seen.url.replace('://', f'://{USER}:{PASSWORD}@')}/tasks")
    stack.until(lambda: any("UUID" in row for row in page.table("#tasks-table")), "the table")
    return {row["UUID"]: row for row in page.table("#tasks-table") if "UUID" in row}


def test_without_the_password_nothing_is_shown(
    seen: Watched, ids: dict[str, str], page: Page
) -> None:
    """No page, and nothing of the API."""
    page.open(f"{seen.url}/tasks")
    assert page.run("document.querySelector('#tasks-table')") is None
    assert "registrations" not in page.text()
    for path in ("/", "/tasks", "/broker", "/api/workers", "/api/tasks"):
        assert httpx.get(seen.url + path, trust_env=False).status_code == 401


def test_the_page_of_tasks_shows_each_job_under_its_id(
    seen: Watched, ids: dict[str, str], page: Page, tmp_path: Path
) -> None:
    """Name, id, state, and what it came to or waits for: readable in one look."""
    shown = rows(page, seen)
    assert {shown[job_id]["NAME"] for job_id in ids.values()} == {ATTEMPT}
    assert shown[ids["done"]]["STATE"] == "SUCCESS"
    assert "registered" in shown[ids["done"]]["RESULT"]
    assert "rejected" in shown[ids["refused"]]["RESULT"]
    waiting = shown[ids["told to wait"]]
    assert waiting["STATE"] == "RETRY"
    why = r"queued: .*\(HTTP 429\); again at \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"
    assert re.fullmatch(why, waiting["EXCEPTION"])

    picture = tmp_path / "flower.png"
    page.screenshot(picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_no_page_shows_a_secret(seen: Watched, ids: dict[str, str], page: Page) -> None:
    """Neither what a registration holds nor what a provider answered."""
    event = seen.here.producer.wait(ids["done"], PATIENCE)
    paths = ["/", "/tasks", "/broker", *(f"/task/{job_id}" for job_id in ids.values())]
    texts = [seen.client.get(path).text for path in [*paths, "/api/tasks", "/api/workers"]]
    rows(page, seen)
    texts.append(page.text())
    for secret in (SECRET, event["data"]["outcome"]["customer_key"]):
        assert not any(secret in text for text in texts)


def test_a_retry_becomes_a_success_under_the_same_id(seen: Watched) -> None:
    """Whoever looks a job up by its id sees where it stands, however often it was tried."""
    job = skypostal()
    rule = {"kind": "too_many", "retry_after": 3, "email": email_of(job)}
    seen.here.sandbox.faults.configure({"script": [rule]})
    job_id = seen.here.producer.enqueue(job).job_id
    seen.wait_for(job_id, "RETRY")
    done = seen.wait_for(job_id, "SUCCESS")
    assert done["result"] == "'registered'"
    assert done["args"] == f"('{job_id}',)"


def test_flower_is_for_looking_only(seen: Watched, ids: dict[str, str]) -> None:
    """A click stops no worker: Flower refuses what would change something."""
    [worker] = seen.client.get("/api/workers").json()
    for path in (f"/api/worker/shutdown/{worker}", f"/api/task/revoke/{ids['told to wait']}"):
        assert seen.client.post(path).status_code == 403


def test_a_revoked_wake_up_keeps_no_worker_from_its_job(seen: Watched) -> None:
    """Whoever revokes a task, in a Flower of their own or by Celery, leaves no job unfinished."""
    job = skypostal()
    rule = {"kind": "too_many", "retry_after": 3, "email": email_of(job)}
    seen.here.sandbox.faults.configure({"script": [rule]})
    job_id = seen.here.producer.enqueue(job).job_id
    seen.wait_for(job_id, "RETRY")
    app = new_app(seen.here.producer.settings)
    [answer] = app.control.revoke(job_id, reply=True, timeout=PATIENCE, limit=1)
    app.close()
    assert "ok" in next(iter(answer.values()))
    event = seen.here.producer.wait(job_id, PATIENCE)
    assert event["type"] == "registration.registered"

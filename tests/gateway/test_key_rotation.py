"""Sealing keys are changed while the gateway and a worker run."""

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import httpx

from regworker.sealing.keyring import Keyring
from regworker.settings import variable
from tests.gateway.service import start
from tests.gateway.stage import PASSWORD
from tests.integration.installation import PATIENCE, installation
from tests.integration.jobs import email_of, open2b
from worker.cli.local import stack
from worker.operations.tokens import TokenStore

OLD, NEW = Keyring.new("old"), Keyring.new("new")


def test_keys_are_rotated_under_a_running_gateway(tmp_path: Path) -> None:
    """A repeat of an accepted job stays a repeat, its event and those of new jobs can be read, and
    people stay signed in."""
    file = tmp_path / "keys"
    file.write_text(OLD)
    with ExitStack() as running:
        here = running.enter_context(installation(tmp_path / "here", workers=0))
        del here.environment[variable("sealing_keys")]
        here.environment[f"{variable('sealing_keys')}_FILE"] = str(file)
        worker = here.start_worker()
        stack.wait_for_worker(here.ledger, worker)
        environment = {**here.environment, variable("serve_password"): PASSWORD}
        url, _, log = start(running, tmp_path, environment, "--port", "0")
        token, _ = TokenStore(here.ledger).new("shop", ("enqueue", "read"), rate=1e6)
        headers = {"authorization": f"Bearer {token}"}
        shop = running.enter_context(httpx.Client(base_url=url, headers=headers, timeout=PATIENCE))
        person = running.enter_context(httpx.Client(base_url=url, timeout=PATIENCE))
        sign_in = person.post("/sign-in", data={"name": "ann", "password": PASSWORD, "next": "/"})
        assert sign_in.status_code == 303, sign_in.text

        def use(keys: str) -> None:
            seen = [one.read_text().count("settings reloaded") for one in (log, here.log())]
            file.write_text(keys)
            stack.until(
                lambda: all(
                    one.read_text().count("settings reloaded") > before
                    for one, before in zip((log, here.log()), seen, strict=True)
                ),
                "both have read the keys",
                PATIENCE,
            )

        def registered(job: dict[str, object], status: int) -> None:
            answer = shop.post("/v1/jobs", json=job)
            assert answer.status_code == status, answer.text
            job_id = answer.json()["job_id"]
            found = shop.get(f"/v1/jobs/{job_id}", params={"wait": 60}).json()
            assert found["event"]["type"] == "registration.registered"

        finished, waiting = open2b(), open2b()
        registered(finished, 201)
        rule = {"kind": "too_many", "email": email_of(waiting), "retry_after": 3600}
        here.sandbox.faults.configure({"script": [rule]})
        assert shop.post("/v1/jobs", json=waiting).status_code == 201
        use(f"{OLD},{NEW}")
        use(f"{NEW},{OLD}")
        subprocess.run(
            [sys.executable, "-m", "worker.cli", "keys", "rotate"],
            env={**os.environ, **here.environment},
            check=True,
        )
        repeat = shop.post("/v1/jobs", json=waiting)
        assert repeat.status_code == 200, repeat.text
        registered(finished, 200)
        registered(open2b(), 201)
        assert person.get("/").status_code == 200

"""A client that an independent generator makes from the OpenAPI document."""

import json
import os
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.gateway.service import start
from tests.integration.installation import ROOT, installation
from tests.programs import npm_packages
from worker.operations.tokens import TokenStore

DOCUMENT = ROOT / "docs" / "contract" / "v1" / "openapi.json"
SOURCE = ROOT / "tests" / "node" / "openapi_client"


@pytest.fixture(scope="module")
def program(request: pytest.FixtureRequest) -> Path:
    """The generated client, compiled with a program that uses it."""
    folder = npm_packages(request.config, SOURCE, "the generated HTTP client")
    tools = folder / "node_modules" / ".bin"
    generated = folder / "generated"
    run(folder, str(tools / "openapi-ts"), "-i", str(DOCUMENT), "-o", str(generated))
    # In strict mode: the program and the document must agree on every name and type.
    run(folder, str(tools / "tsc"), "--project", str(folder))
    return folder / "built" / "register.js"


def run(folder: Path, *command: str, **environment: str) -> str:
    """Run a program, and return what it printed."""
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_generated_client_registers_a_customer(program: Path, tmp_path: Path) -> None:
    """The program uses every operation of the document, from the token to the outcome."""
    with ExitStack() as running:
        here = running.enter_context(installation(tmp_path, broker_url=""))
        url, _, _ = start(running, tmp_path, here.environment, "--port", "0")
        token, _ = TokenStore(here.ledger).new("shop", ("enqueue", "read"))
        email = "generated@example.com"
        said = run(tmp_path, "node", str(program), GATEWAY=url, TOKEN=token, EMAIL=email)
        assert json.loads(said) == {
            "health": 200,
            "statuses": [201, 200],
            "same": True,
            "state": "registered",
            "by_key": True,
            "events": ["registration.registered"],
            "conflict": [409, "not accepted"],
            "cancelled": [409, "not accepted"],
            "batch": [200],
        }
        assert here.made(email) == 1


def test_the_clients_lock_names_no_registry() -> None:
    """Each developer uses their own registry."""
    packages = json.loads((SOURCE / "package-lock.json").read_text("utf-8"))["packages"]
    assert not [name for name, one in packages.items() if "resolved" in one]
    assert all("integrity" in one for name, one in packages.items() if name)

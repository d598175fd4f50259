"""What the README shows is what there is."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.integration.installation import ROOT, installation

README = (ROOT / "README.md").read_text("utf-8")


def test_the_example_runs_as_it_stands(tmp_path: Path) -> None:
    """Ten lines, copied, in a process of their own, with a producer's two settings."""
    [example] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    with installation(tmp_path) as here:
        settings = {"REGWORKER_REDIS_URL", "REGWORKER_SEALING_KEYS"}
        environment = {name: here.environment[name] for name in settings}
        done = subprocess.run(
            [sys.executable, "-c", example],
            env={**os.environ, **environment},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        [account] = here.sandbox.accounts.find(email="holmes@example.com")
    assert "registration.registered" in done.stdout
    assert account.customer_key in done.stdout


def test_the_table_of_settings_is_that_of_the_command() -> None:
    """`regworker settings --markdown`, between two marks; the command's output goes there."""
    done = subprocess.run(
        [sys.executable, "-m", "worker.cli", "settings", "--markdown"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    [table] = re.findall(r"<!-- settings -->\n(.*?)<!-- /settings -->", README, re.DOTALL)
    assert table == done.stdout


def test_every_command_named_in_the_readme_exists() -> None:
    """`regworker something` in the README is in `regworker --help`."""
    from worker.cli.app import COMMANDS

    named = set(re.findall(r"regworker ([a-z]+)", README))
    assert named <= set(COMMANDS), named - set(COMMANDS)

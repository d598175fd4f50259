"""Each way to break the guarantees makes a short chaos run fail."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.sabotage import SABOTAGES

ROOT = Path(__file__).parents[2]

#: Seconds of load and faults. Each is found within about ten; an overloaded machine gets more.
LONGEST = 40

#: Seconds for the whole run: starting everything takes longest on an overloaded machine.
LIMIT = 600

FOUND = {
    "lease_to_queued": "duplicates",
    "no_fence": "unsound",
    "no_settle_delay": "duplicates",
    "blind_resend": "duplicates",
    "late_event": "unpublished",
    "forgotten_alarm": "lost",
    "borrowed_answers": "unpublished",
    "no_wait": "duplicates",
    "sends_at_once": "duplicates",
    "no_guard": "duplicates",
    "id_by_fence": "duplicates",
}


def test_every_sabotage_is_tried() -> None:
    """Every sabotage has a test."""
    assert FOUND.keys() == SABOTAGES.keys()


@pytest.mark.timeout(LIMIT + 60)
@pytest.mark.parametrize("sabotage", FOUND)
def test_a_sabotage_is_found_out(sabotage: str) -> None:
    """The run made for it finds it, with the right kind of violation."""
    options = ["--duration", str(LONGEST), "--seed", "1", "--json", "--quiet"]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.chaos",
            "--sabotage",
            sabotage,
            "--until-violation",
            *options,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)[FOUND[sabotage]] > 0, done.stdout

"""The proof, proved: each way to break the promise makes a short chaos run fail."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.sabotage import SABOTAGES

ROOT = Path(__file__).parents[2]

#: Seconds. Each is found within ten or so; a machine that is busy gets more.
LONGEST = 40

FOUND = {
    "lease_to_queued": "duplicates",
    "no_fence": "unsound",
    "no_settle_delay": "duplicates",
    "blind_resend": "duplicates",
    "late_event": "unpublished",
    "forgotten_alarm": "lost",
}


def test_every_sabotage_is_tried() -> None:
    """None is only written."""
    assert FOUND.keys() == SABOTAGES.keys()


@pytest.mark.parametrize("sabotage", FOUND)
def test_a_sabotage_is_found_out(sabotage: str) -> None:
    """By the run that is made for it, and as what it is."""
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
        timeout=LONGEST * 5,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)[FOUND[sabotage]] > 0, done.stdout

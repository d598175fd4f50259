"""Nothing lost, nothing twice: the chaos run itself, for 40 seconds."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

#: Seconds. The run, and all the waiting that it may do after it.
LIMIT = 240


def test_nothing_is_lost_and_nothing_is_done_twice() -> None:
    """Whatever a fixed seed kills, stops, cuts off, delays and resets."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos", "--duration", "40", "--seed", "20", "--quiet"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "lost 0 duplicates 0 unpublished 0"

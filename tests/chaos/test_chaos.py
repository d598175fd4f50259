"""Nothing lost, nothing twice: the chaos run itself, for 40 seconds."""

import json
import subprocess
import sys
from pathlib import Path

from tests.chaos import skew
from tests.chaos.profiles import PROFILES

ROOT = Path(__file__).parents[2]

#: Seconds. The run, and all the waiting that it may do after it.
LIMIT = 300


def test_nothing_is_lost_and_nothing_is_done_twice() -> None:
    """Whatever a fixed seed kills, stops, cuts off, delays and resets, and what the clock says."""
    options = ["--duration", "40", "--seed", "20", "--quiet", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    counts = {name: report[name] for name in ("lost", "duplicates", "unpublished", "unsound")}
    assert not any(counts.values()), report
    assert report["accepted"] > 0
    if skew.library() is None:
        assert skew.MISSING in done.stderr
    else:
        assert report["clock_moved"] > PROFILES["full"].jump[0] / 2

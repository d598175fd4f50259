"""No job lost, none done twice: the chaos run itself, for 50 seconds."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import skew
from tests.chaos.profiles import PROFILES

ROOT = Path(__file__).parents[2]

#: Seconds. The run, and all the waiting that may follow.
LIMIT = 600


def run(*options: str) -> tuple[dict[str, Any], str]:
    """The report of a run in which everything held, and its stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos", *options, "--quiet", "--json"],
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
    return report, done.stderr


@pytest.mark.timeout(LIMIT + 60)
def test_nothing_is_lost_and_nothing_is_done_twice() -> None:
    """A fixed seed kills, stops, cuts off, delays and resets; a proxy lies."""
    # In 50 seconds this seed sets the clock forward three times: a starved process may miss one.
    report, said = run("--duration", "50", "--seed", "20")
    assert any("after forwarding" in lie for lie in report["lies"])
    if skew.library() is None:
        assert skew.MISSING in said
    else:
        assert report["clock_moved"] > PROFILES["full"].jump[0] / 2


@pytest.mark.timeout(LIMIT + 60)
def test_failovers_lose_nothing_and_double_nothing() -> None:
    """With every replica acknowledged, the primary is killed, whichever replica lags."""
    report, _ = run("--level", "replicas", "--duration", "10", "--seed", "18")
    assert report["failovers"] > 0
    assert report["forgotten"] == []

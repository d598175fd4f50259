"""Python's garbage collector in a worker: it leaves alone what stays, and looks less often."""

import subprocess
import sys

from worker.process.tasks import NEW_OBJECTS

CODE = """
import gc
from worker.process import tasks
tasks._spare_the_collector()
print(gc.get_threshold()[0], gc.get_freeze_count() > 10_000, gc.isenabled())
"""


def test_what_is_there_at_the_start_is_left_alone() -> None:
    """In a process of its own, since it cannot be undone."""
    found = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert found.stdout.split() == [str(NEW_OBJECTS), "True", "True"]

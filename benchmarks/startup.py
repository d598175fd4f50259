"""`python -m benchmarks.startup`: the time until a worker is ready, and until a producer is
imported."""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.support import meter, stage
from benchmarks.support.single import OURS
from regworker.ledger import SyncLedger
from worker.cli.local import stack

IMPORT = """
import time
before = time.perf_counter()
import regworker.producer
print(time.perf_counter() - before)
"""


def ready(folder: Path) -> tuple[float, float]:
    """Seconds, and seconds of CPU, until a worker has announced what it serves."""
    with stack.valkey(folder / "valkey") as valkey:
        ledger = SyncLedger(valkey.connection_url)
        nobody = stage.Stub("http://127.0.0.1:9")
        started = time.perf_counter()
        with stage.worker(OURS, valkey.connection_url, nobody, folder) as worker:
            stack.wait_for_worker(ledger, worker)
            seconds, cpu = time.perf_counter() - started, meter.cpu(worker.pid)
        ledger.close()
    return seconds, cpu


def imported() -> float:
    """Milliseconds of `import regworker.producer` in a new process."""
    command = [sys.executable, "-c", IMPORT]
    found = subprocess.run(command, cwd=stage.ROOT, capture_output=True, check=True, text=True)
    return float(found.stdout) * 1000


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="rounds (5)")
    options = parser.parse_args()
    with stack.ending_by_signal(), tempfile.TemporaryDirectory(prefix="bench-") as name:
        found = []
        for number in range(options.rounds):
            folder = Path(name) / str(number)
            folder.mkdir()
            found.append(ready(folder))
    seconds, cpu = median(one for one, _ in found), median(one for _, one in found)
    print(f"worker ready: {seconds:.2f} s, {cpu:.2f} s of CPU")
    print(f"import regworker.producer: {median(imported() for _ in range(options.rounds)):.0f} ms")


if __name__ == "__main__":
    main()

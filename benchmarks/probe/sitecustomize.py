"""Loaded by the worker of `benchmarks.soak`, which has this folder in its `PYTHONPATH`.

It keeps finished records for seconds instead of days, and counts what can only be counted inside
the process: asyncio tasks, and the objects that the garbage collector follows.
"""

import asyncio
import gc
import json
import os
import threading
import time
from dataclasses import replace
from itertools import chain, starmap
from pathlib import Path
from typing import Any


def forget_after(seconds: float) -> None:
    """Shorten the retention of finished jobs; the setting allows no less than four days."""
    from worker.process import runtime

    rules: Any = runtime._rules

    def shortened(settings: Any) -> Any:
        found = rules(settings)
        return replace(found, settle=replace(found.settle, retention=seconds))

    runtime._rules = shortened


def counts() -> dict[str, int]:
    """The objects of this process, and how many of them are tasks."""
    # In one call, so that no other thread runs while the list of all objects exists: before Python
    # 3.14 a thread that makes a tuple fails with SystemError if it is referenced meanwhile.
    kinds = list(map(type, chain.from_iterable(starmap(gc.get_objects, [()]))))
    return {"objects": len(kinds), "tasks": sum(kind is asyncio.Task for kind in kinds)}


def write(file: Path, every: float) -> None:
    """Write the counts again and again; a reader never sees half of them.

    While a file `resting` lies beside them, garbage is collected before: at rest only what is kept
    counts. Under load that would change what is measured.
    """
    while True:
        if file.with_name("resting").exists():
            gc.collect()
        new = file.with_suffix(".new")
        new.write_text(json.dumps(counts()))
        new.replace(file)
        time.sleep(every)


if "SOAK_COUNTS" in os.environ:
    forget_after(float(os.environ["SOAK_RETENTION"]))
    where = (Path(os.environ["SOAK_COUNTS"]), float(os.environ["SOAK_EVERY"]))
    threading.Thread(target=write, args=where, daemon=True).start()

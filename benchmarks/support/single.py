"""Shared by the smaller benchmarks: our worker alone, in a folder of its own."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.contestants import CONTESTANTS, Contestant
from benchmarks.support import stage
from benchmarks.support.contest import Bench, set_up
from worker.cli.local import stack

OURS = CONTESTANTS[0]


@contextmanager
def ours(
    workers: int = 1, contestant: Contestant = OURS, **settings: Any
) -> Iterator[tuple[Bench, stage.Stub]]:
    """A Valkey, the provider, our workers and their client; with additional settings."""
    with stack.ending_by_signal(), tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        with (
            stage.stub(folder) as provider,
            set_up(contestant, provider, folder, workers, **settings) as bench,
        ):
            yield bench, provider

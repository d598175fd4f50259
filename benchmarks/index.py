"""`python -m benchmarks.index`: the cost of the index of ended jobs, from which lists are read.

Two Valkeys get the same jobs in turns: accept, claim and settle, fifty at a time. One has the
normal scripts, the other has scripts without the commands that write the index. Prints the server's
CPU time and memory per job for both.
"""

import argparse
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from hashlib import sha1
from importlib import resources
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.ceiling import TOGETHER, Sample, Usage, sample
from benchmarks.support.allocator import jemalloc
from regworker.ledger import SyncLedger
from regworker.ledger.admin import Limits, announce
from regworker.ledger.calls import evalsha, scripts
from regworker.ledger.rights import guarded
from regworker.ledger.script_loader import link, pieces
from worker.cli.local import stack

#: The function in `_lib.lua` that writes the index, and its call.
WRITER = "list_ended"
CALL = f"  {WRITER}(id, job, at, state, retention)\n"

#: The scripts of a job that is registered at once.
USED = ("accept", "claim", "settle")


def without_index() -> dict[str, str]:
    """The scripts' sources without the index."""
    folder = resources.files("regworker.ledger") / "scripts"
    shared = pieces((folder / "_lib.lua").read_text("utf-8"))
    if not any(CALL in piece.source for piece in shared):
        raise RuntimeError(f"_lib.lua does not call {WRITER} any more as it is known here")
    left = [
        replace(
            piece,
            source=piece.source.replace(CALL, ""),
            uses=piece.uses - {WRITER},
        )
        for piece in shared
        if WRITER not in piece.makes
    ]
    return {name: guarded(link(left, (folder / f"{name}.lua").read_text("utf-8"))) for name in USED}


@dataclass
class Side:
    """A server with one version of the scripts."""

    server: Any
    one: Sample
    hashes: Mapping[str, str]
    """By the hash in a command, the hash of the script that runs here."""
    cpu: list[float] = field(default_factory=list)
    """Milliseconds per job, for each turn."""
    memory: list[float] = field(default_factory=list)
    """Bytes per job, for each turn."""

    @classmethod
    def start(cls, running: ExitStack, folder: Path, sources: Mapping[str, str]) -> "Side":
        """Start a server, and load these scripts."""
        valkey = running.enter_context(stack.valkey(folder))
        ledger = SyncLedger(valkey.connection_url)
        running.callback(ledger.close)
        ledger(announce([Limits("skypostal", "default", 0, 0, 1000)], ["results"]))
        one = sample(ledger)
        server: Any = ledger.redis
        hashes = {}
        for name, source in sources.items():
            server.script_load(source)
            hashes[_hash(scripts()[name])] = _hash(source)
        return cls(server, one, hashes)

    def turn(self, number: int, count: int) -> None:
        """Run so many jobs."""
        wire = self.server.connection_pool.get_connection()
        batches = []
        copies = self.one.copies(number, count)
        while batch := list(islice(copies, TOGETHER)):
            for step in zip(*batch, strict=True):
                sent = [self._asked(evalsha(command)) for command in step]
                batches.append((wire.pack_commands(sent), len(sent)))
        held, before = self._held(), Usage.of(self.server)
        for packed, answers in batches:
            wire.send_packed_command(packed)
            for _ in range(answers):
                wire.read_response()
        after = Usage.of(self.server)
        self.server.connection_pool.release(wire)
        self.cpu.append((after.cpu - before.cpu) / count * 1000)
        self.memory.append((self._held() - held) / count)

    def _asked(self, command: tuple[Any, ...]) -> tuple[Any, ...]:
        return ("EVALSHA", self.hashes[command[0]], *command[1:])

    def _held(self) -> int:
        found: Any = self.server.info("memory")
        return int(found["used_memory_dataset"])


def _hash(source: str) -> str:
    return sha1(source.encode(), usedforsecurity=False).hexdigest()


def main() -> None:
    """Measure in turns, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2000, help="jobs a turn (2000)")
    parser.add_argument("--turns", type=int, default=20, help="turns of each (20)")
    options = parser.parse_args()
    with ExitStack() as running:
        running.enter_context(stack.ending_by_signal())
        running.enter_context(jemalloc())
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        as_is = {name: scripts()[name] for name in USED}
        sides = [
            Side.start(running, folder / "with", as_is),
            Side.start(running, folder / "without", without_index()),
        ]
        for number in range(options.turns + 1):
            # Each is first equally often.
            for side in sides if number % 2 else reversed(sides):
                side.turn(number, options.jobs)
    indexed, plain = ([side.cpu[1:], side.memory[1:]] for side in sides)
    ratio = median(one / other for one, other in zip(indexed[0], plain[0], strict=True))
    print(
        f"CPU of the server a job: {median(indexed[0]) * 1000:.1f} µs with the index, "
        f"{median(plain[0]) * 1000:.1f} µs without; {ratio - 1:+.1%} (median of the turns' ratios)"
    )
    # What else runs on the machine makes a turn dearer, and never cheaper.
    least = [min(side[0]) * 1000 for side in (indexed, plain)]
    print(
        f"least of the turns: {least[0]:.1f} µs with the index, {least[1]:.1f} µs without; "
        f"{least[0] / least[1] - 1:+.1%}"
    )
    grown = [sum(side[1]) / options.turns for side in (indexed, plain)]
    print(
        f"memory a job: {grown[0]:.0f} bytes with the index, {grown[1]:.0f} without: "
        f"{grown[0] - grown[1]:.0f} bytes"
    )


if __name__ == "__main__":
    main()

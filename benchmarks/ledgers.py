"""`python -m benchmarks.ledgers`: the rate that one ledger carries, and the rate of three.

Three busy servers and their clients need more cores than two. So each server gets the same small
share of a core (`support/throttle.py`), and is the limit at a low rate. In turns, clients accept,
claim and settle jobs of three accounts as fast as possible in one such ledger and in three, to
which their producers route the jobs by account. They call no provider.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from subprocess import PIPE, Popen

from benchmarks.ceiling import SATURATED, Usage
from benchmarks.support import stage, throttle
from benchmarks.support.allocator import jemalloc
from benchmarks.support.ledger_client import ACCOUNTS
from regworker.ledger import SyncLedger
from regworker.ledger.admin import Limits, announce
from worker.cli.local import stack

#: How often a job's record is written: at accept, claim and settle. (One script may accept several
#: jobs.)
WRITES = 3

#: Client processes.
CLIENTS = 2

#: Seconds before and after the measurement of a turn, in which all clients run.
MARGIN = 1.0


@dataclass(frozen=True, slots=True)
class Turn:
    """What was measured in a turn."""

    rate: float
    """Jobs a second, all ledgers together: by the writes, since jobs move through them in
    batches."""
    shares: Sequence[float]
    """Of a core, for each server."""
    clients: Sequence[float]
    """Of a core, for each client process."""


class Side:
    """A number of ledgers."""

    def __init__(self, urls: Mapping[str, str]) -> None:
        self.urls = urls
        self.ledgers = {name: SyncLedger(url) for name, url in urls.items()}
        for ledger in self.ledgers.values():
            limits = [Limits("skypostal", account, 0, 0, 1000) for account in ACCOUNTS.values()]
            ledger(announce(limits, ["results"]))
        self.pids = [ledger.redis.info("server")["process_id"] for ledger in self.ledgers.values()]

    def turn(
        self, clients: Sequence[Popen[bytes]], number: int, share: float, seconds: float
    ) -> Turn:
        """Let the clients run while each server has this share of a core."""
        before = list(self._writes())
        asked = {"urls": self.urls, "seconds": MARGIN + seconds + MARGIN}
        with throttle.limited(self.pids, share):
            for which, client in enumerate(clients, number * len(clients)):
                stage.say(client, {**asked, "number": which})
            time.sleep(MARGIN)
            begun = self._look()
            time.sleep(seconds)
            ended = self._look()
            answers = [stage.heard(client) for client in clients]
        own = sum((Counter(answer["done"]) for answer in answers), Counter[str]())
        writes = [after - since for after, since in zip(self._writes(), before, strict=True)]
        if writes != [WRITES * own[name] for name in self.urls]:
            raise RuntimeError(f"{writes} writes for {dict(own)}: not {WRITES} a job")
        rates, shares = [], []
        for start, end in zip(begun, ended, strict=True):
            run, took, cpu = (last - first for first, last in zip(start, end, strict=True))
            rates.append(run / WRITES / took)
            shares.append(cpu / took)
        return Turn(sum(rates), shares, [answer["cpu"] for answer in answers])

    def _look(self) -> list[tuple[int, float, float]]:
        """Of each server, the writes, the time, and the seconds of CPU so far."""
        return [
            (writes, time.monotonic(), throttle.cpu(pid))
            for writes, pid in zip(self._writes(), self.pids, strict=True)
        ]

    def _writes(self) -> Iterator[int]:
        return (Usage.of(one.redis).calls.get("hset", 0) for one in self.ledgers.values())

    def close(self) -> None:
        """Close all connections."""
        for ledger in self.ledgers.values():
            ledger.close()


def server(open_: ExitStack) -> str:
    """Start a Valkey; its URL."""
    command = [sys.executable, "-m", "benchmarks.support.valkey"]
    return stack.sandbox_url(
        open_.enter_context(stack.process(command, stage.environment(), folder(open_), PIPE))
    )


def client(open_: ExitStack) -> Popen[bytes]:
    """Start a client."""
    command = [sys.executable, "-m", "benchmarks.support.ledger_client"]
    return open_.enter_context(stage.spoken_to(command, stage.environment(), folder(open_)))


def folder(open_: ExitStack) -> Path:
    """A folder for a process."""
    return Path(open_.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))


def described(turns: Sequence[Turn], share: float) -> str:
    """The medians of some turns; of shares, the extremes."""
    rate = median(one.rate for one in turns)
    shares = [used for one in turns for used in one.shares]
    server = median(sum(one.shares) / one.rate for one in turns)
    client = median(sum(one.clients) / one.rate for one in turns)
    said = (
        f"{rate:.0f} jobs/s; each server used {min(shares):.1%} to {max(shares):.1%} of a core, "
        f"{server * 1e6:.0f} us a job; each client at most "
        f"{max(max(one.clients) for one in turns):.0%}, {client * 1e6:.0f} us a job"
    )
    if min(shares) < SATURATED * share:
        said += "; a server did not get its share: something else was the limit"
    return said


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=0.06, help="of a core a server (0.06)")
    parser.add_argument("--seconds", type=float, default=15, help="measured in a turn (15)")
    parser.add_argument("--turns", type=int, default=7, help="turns (7)")
    options = parser.parse_args()
    with stack.ending_by_signal(), jemalloc() as allocator, ExitStack() as open_:
        sides = [Side({name: server(open_) for name in names}) for names in (["main"], ACCOUNTS)]
        for side in sides:
            open_.callback(side.close)
        clients = [client(open_) for _ in range(CLIENTS)]
        turns: list[list[Turn]] = [[], []]
        for number in range(options.turns + 1):
            for which in (0, 1) if number % 2 else (1, 0):
                turn = sides[which].turn(clients, number, options.share, options.seconds)
                turns[which].append(turn)
    alone, spread = (found[1:] for found in turns)  # the first turn fills caches
    print(f"each server is limited to {options.share:.1%} of a core, and uses {allocator}")
    print(f"one ledger: {described(alone, options.share)}")
    print(f"three: {described(spread, options.share)}")
    ratios = [more.rate / one.rate for one, more in zip(alone, spread, strict=True)]
    print(
        f"three ledgers carried {median(ratios):.2f} times the jobs of one ({min(ratios):.2f} to "
        f"{max(ratios):.2f} in {len(ratios)} turns); each job in one ledger"
    )


if __name__ == "__main__":
    main()

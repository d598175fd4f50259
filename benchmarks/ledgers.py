"""`python -m benchmarks.ledgers`: the same jobs in one ledger, and spread over three.

In turns, a producer enqueues jobs of three accounts into one Valkey, and then into three to which
it routes them by account. They are claimed and settled there in pipelines, without a call to a
provider. Three servers would need three cores, so what is measured is the CPU that each server uses
for a job; from this follows how many jobs it carries with a core of its own.
"""

import argparse
import tempfile
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.ceiling import CLAIM, DONE, SETTLE, TOGETHER, Sample, Usage, sample
from benchmarks.support import jobs, stage
from benchmarks.support.allocator import jemalloc
from regworker.domain.receipt import Receipt
from regworker.ledger import SyncLedger
from regworker.ledger.admin import Limits, announce
from regworker.ledger.transitions import Command, claim, settle
from regworker.producer import Producer
from regworker.settings import Settings
from worker.cli.local import stack

#: The account of each ledger.
ACCOUNTS = {"main": "one", "b": "two", "c": "three"}

#: Commands of a job: accept, claim and settle.
COMMANDS = 3


@dataclass(frozen=True, slots=True)
class Turn:
    """What a turn has cost: milliseconds of CPU a job, of the client and of each server."""

    client: float
    servers: tuple[float, ...]

    @property
    def capacity(self) -> float:
        """Jobs a second of all servers, if each has a core."""
        return sum(1000 / cost for cost in self.servers)


class Side:
    """A producer and its ledgers."""

    def __init__(self, urls: dict[str, str], one: Sample) -> None:
        self._sample = one
        self._ledgers = {name: SyncLedger(url) for name, url in urls.items()}
        for ledger in self._ledgers.values():
            limits = [Limits("skypostal", account, 0, 0, 1000) for account in ACCOUNTS.values()]
            ledger(announce(limits, ["results"]))
        rules = [f"skypostal/{ACCOUNTS[name]}={name}" for name in urls]
        more = {name: {"redis_url": url} for name, url in urls.items() if name != "main"}
        self._producer = Producer(
            Settings.load(
                redis_url=urls["main"],
                sealing_keys=stage.KEYS,
                ledgers=more,
                account_ledgers=rules,
            )
        )

    def turn(self, first: int, count: int) -> Turn:
        """Run so many jobs of each account."""
        before = self._usage()
        given = [
            jobs.job(number, account=account, reply_to=["results"])
            for number in range(first, first + count)
            for account in ACCOUNTS.values()
        ]
        began = time.process_time()
        results = list(self._producer.enqueue_many(given))
        client = (time.process_time() - began) / len(given) * 1000
        ids: dict[str, list[str]] = {name: [] for name in self._ledgers}
        homes = {account: name for name, account in ACCOUNTS.items() if name in self._ledgers}
        for job, result in zip(given, results, strict=True):
            assert isinstance(result, Receipt)
            ids[homes.get(job["account"], "main")].append(result.job_id)
        for name, own in ids.items():
            self._finish(self._ledgers[name], own)
        used = [(end, start) for end, start in zip(self._usage(), before, strict=True)]
        scripts = [end.calls["evalsha"] - start.calls["evalsha"] for end, start in used]
        if scripts != [COMMANDS * len(own) for own in ids.values()]:
            raise RuntimeError(f"{scripts} scripts for {[len(own) for own in ids.values()]} jobs")
        costs = [(end.cpu - start.cpu) * 1000 for end, start in used]
        each = zip(costs, ids.values(), strict=True)
        return Turn(client, tuple(cost / len(own) for cost, own in each))

    def close(self) -> None:
        """Close all connections."""
        self._producer.close()
        for ledger in self._ledgers.values():
            ledger.close()

    def _usage(self) -> list[Usage]:
        return [Usage.of(ledger.redis) for ledger in self._ledgers.values()]

    def _finish(self, ledger: SyncLedger, ids: list[str]) -> None:
        rest = iter(ids)
        while some := list(islice(rest, TOGETHER)):
            ledger.many([claim(id_, CLAIM, 0) for id_ in some])
            ledger.many([self._settled(id_) for id_ in some])

    def _settled(self, id_: str) -> Command[Any]:
        held = replace(self._sample.held, record=replace(self._sample.held.record, id=id_))
        publication = replace(self._sample.publication, event_id=f"{id_}.registered")
        return settle(held, DONE, SETTLE, publication)


def servers(open_: ExitStack, names: Iterable[str]) -> dict[str, str]:
    """Start a Valkey for each name; their URLs."""
    return {
        name: open_.enter_context(
            stack.valkey(Path(open_.enter_context(tempfile.TemporaryDirectory(prefix="bench-"))))
        ).connection_url
        for name in names
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--jobs", type=int, default=2000, help="jobs of each account, a turn (2000)"
    )
    parser.add_argument("--turns", type=int, default=7, help="turns (7)")
    options = parser.parse_args()
    with stack.ending_by_signal(), jemalloc() as allocator, ExitStack() as open_:
        [first] = servers(open_, ["first"]).values()
        ledger = SyncLedger(first)
        ledger(announce([Limits("skypostal", "default", 0, 0, 1000)], ["results"]))
        one = sample(ledger)
        ledger.close()
        alone = Side(servers(open_, ["main"]), one)
        spread = Side(servers(open_, ACCOUNTS), one)
        open_.callback(alone.close)
        open_.callback(spread.close)
        turns: dict[Side, list[Turn]] = {alone: [], spread: []}
        for number in range(options.turns + 1):
            for side in (alone, spread) if number % 2 else (spread, alone):
                turns[side].append(side.turn(number * options.jobs, options.jobs))
    pairs = list(zip(turns[alone], turns[spread], strict=True))[1:]  # the first fills caches
    for name, found in (("one ledger", turns[alone]), ("three", turns[spread])):
        costs = [median(costs) for costs in zip(*(one.servers for one in found[1:]), strict=True)]
        print(
            f"{name}: {', '.join(f'{cost * 1000:.0f}' for cost in costs)} us of the server's CPU a "
            f"job; {median(one.capacity for one in found[1:]):.0f} jobs/s if each server has a core"
            f"; the client takes {median(one.client for one in found[1:]) * 1000:.0f} us a job"
        )
    ratios = [more.capacity / one.capacity for one, more in pairs]
    clients = [more.client / one.client for one, more in pairs]
    print(
        f"three ledgers carry {median(ratios):.2f} times the jobs of one ({min(ratios):.2f} to "
        f"{max(ratios):.2f} in {len(ratios)} turns), and enqueuing takes {median(clients):.2f} "
        f"times the client's CPU; {COMMANDS} scripts a job, each in one ledger; {allocator}"
    )


if __name__ == "__main__":
    main()

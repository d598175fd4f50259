"""A client of `benchmarks.ledgers`: enqueues, claims and settles jobs as fast as it can.

For each line on stdin it runs jobs for so long, and answers with a line:

    {"urls": {"main": "redis://..."}, "number": 1, "seconds": 10.0}

    {"done": {"main": 12000}, "cpu": 0.2}   jobs for each ledger, and the share of a core used

`number`: another one each time, also for each client, so that no job is enqueued twice.
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import count, islice
from typing import Any

from benchmarks.ceiling import CLAIM, DONE, SETTLE, TOGETHER
from benchmarks.support import jobs, stage
from regworker.domain.outcome import Registered
from regworker.domain.receipt import Receipt
from regworker.event_builder import EventBuilder
from regworker.ledger import SyncLedger
from regworker.ledger.records import Claim, Settled
from regworker.ledger.transitions import claim, settle
from regworker.producer import Producer
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings

#: The account of each ledger. With fewer ledgers, the first one has the others' accounts, too.
ACCOUNTS = {"main": "one", "b": "two", "c": "three"}

#: Threads for each account: enough that a server always has work.
THREADS = 2

#: More jobs than a thread runs in a turn: the distance of their first numbers.
APART = 1_000_000

OUTCOME = Registered({"customer_box_id": 811111, "customer_key": "0" * 36})


class Client:
    """A producer that routes jobs by account, and the end of each ledger's jobs."""

    def __init__(self, urls: Mapping[str, str]) -> None:
        self._urls = urls
        settings = Settings.load(
            redis_url=urls["main"],
            sealing_keys=stage.KEYS,
            ledgers={name: {"redis_url": url} for name, url in urls.items() if name != "main"},
            account_ledgers=[f"skypostal/{ACCOUNTS[name]}={name}" for name in urls],
        )
        self._producer = Producer(settings)
        self._events = EventBuilder(settings, Keyring.parse(stage.KEYS))

    def run(self, number: int, seconds: float) -> Counter[str]:
        """Run jobs of all accounts for so long; how many each ledger should have got."""
        until = time.monotonic() + seconds
        done: Counter[str] = Counter()
        with (
            closing(self._producer),
            ThreadPoolExecutor(THREADS * len(ACCOUNTS)) as threads,
        ):
            runs = []
            for name, account in ACCOUNTS.items():
                home = name if name in self._urls else "main"
                for thread in range(number * THREADS, (number + 1) * THREADS):
                    given = endless(account, thread * APART)
                    runs.append((home, threads.submit(self._work, given, home, until)))
            for home, run in runs:
                done[home] += run.result()
        return done

    def _work(self, given: Iterator[dict[str, Any]], home: str, until: float) -> int:
        done = 0
        with closing(SyncLedger(self._urls[home])) as ledger:
            while time.monotonic() < until:
                receipts = self._producer.enqueue_many(islice(given, TOGETHER))
                ids = [receipt.job_id for receipt in receipts if isinstance(receipt, Receipt)]
                claims = ledger.many(claim(id_, CLAIM, 0) for id_ in ids)
                ends = ledger.many(
                    settle(
                        held, DONE, SETTLE, self._events.registered(held.record, held.at, OUTCOME)
                    )
                    for held in claims
                    if isinstance(held, Claim)
                )
                if [type(end) for end in ends] != [Settled] * TOGETHER:
                    raise RuntimeError(f"not all were claimed and settled: {claims}, {ends}")
                done += TOGETHER
        return done


def endless(account: str, first: int) -> Iterator[dict[str, Any]]:
    """Jobs of an account."""
    for number in count(first):
        yield jobs.job(number, account=account, reply_to=["results"])


def main() -> None:
    """Serve until the end of input."""
    for line in sys.stdin:
        asked = json.loads(line)
        used, began = time.process_time(), time.monotonic()
        done = Client(asked["urls"]).run(asked["number"], asked["seconds"])
        cpu = (time.process_time() - used) / (time.monotonic() - began)
        print(json.dumps({"done": done, "cpu": cpu}), flush=True)


if __name__ == "__main__":
    main()

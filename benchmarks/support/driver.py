"""A contestant's client, in a process of its own: `python -m benchmarks.support.driver MODULE`.

Enqueues what a line on stdin asks for, as JSON, and answers with a line:

    {"first": 0, "count": 100}                 all at once
    {"first": 0, "count": 100, "rate": 50.0}   so many a second; none later than others let it

    {"seconds": 0.1, "cpu": 0.1, "sent": [["key of the result", 1700000000.0], ...]}
"""

import importlib
import json
import sys
import time
from collections.abc import Sequence
from typing import Any, Protocol

from benchmarks.support.jobs import body


class Client(Protocol):
    """The client of each module in `contestants`."""

    def enqueue(self, bodies: Sequence[dict[str, Any]]) -> list[str]:
        """Enqueue as in the library's documentation; return the results' keys."""
        ...


def burst(client: Client, bodies: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Enqueue all jobs as fast as possible."""
    started = time.time()
    before, cpu = time.perf_counter(), time.process_time()
    keys = client.enqueue(bodies)
    seconds, cpu = time.perf_counter() - before, time.process_time() - cpu
    return {"seconds": seconds, "cpu": cpu, "sent": [(key, started) for key in keys]}


def paced(client: Client, bodies: Sequence[dict[str, Any]], rate: float) -> dict[str, Any]:
    """Enqueue one after another at a rate. A job's time starts when it was due to be sent."""
    sent = []
    before, cpu = time.time(), time.process_time()
    for number, one in enumerate(bodies):
        due = before + number / rate
        time.sleep(max(0.0, due - time.time()))
        [key] = client.enqueue([one])
        sent.append((key, due))
    return {"seconds": time.time() - before, "cpu": time.process_time() - cpu, "sent": sent}


def main() -> None:
    """Serve until the end of input."""
    client = importlib.import_module(f"benchmarks.contestants.{sys.argv[1]}").client()
    for line in sys.stdin:
        asked = json.loads(line)
        first, count = asked["first"], asked["count"]
        bodies = [body(number) for number in range(first, first + count)]
        rate = asked.get("rate")
        answer = paced(client, bodies, rate) if rate else burst(client, bodies)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

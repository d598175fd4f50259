"""Read results with nothing but redis-py, as one consumer of a group on the results stream.

    pip install redis
    REGWORKER_REDIS_URL=redis://127.0.0.1:6399/0 python consume.py crm crm-1

The first argument is the group: each group gets every event. The second is this consumer's name,
one for each process. Kill it whenever you like: what is not acknowledged comes again, here or at
another consumer of the group. So an event is looked up by its id in BOOKS (default: books.db),
where it is entered together with what it leads to, before it is acknowledged.
"""

import json
import os
import sqlite3
import sys
from contextlib import suppress
from typing import Any

import redis

STREAM = "{reg}:results"

#: Milliseconds after which an event that a consumer has not acknowledged is taken for left behind.
#: Longer than handling takes.
LEFT_BEHIND = 60_000


def handle(event: dict[str, Any], books: sqlite3.Connection) -> None:
    """Do what an event leads to, in the transaction that enters it into the books."""
    told = event["data"]
    # An outcome holds the customer's credentials: keep it where secrets are kept, and don't log it.
    what = sorted(told.get("outcome") or {}) or [one["code"] for one in told.get("errors", ())]
    print(event["type"], told.get("idempotency_key", event["subject"]), *what, flush=True)


def main(group: str, consumer: str) -> None:
    """Read for ever."""
    books = sqlite3.connect(os.environ.get("BOOKS", "books.db"))
    books.execute("CREATE TABLE IF NOT EXISTS events (id PRIMARY KEY, event)")
    client: Any = redis.Redis.from_url(
        os.environ["REGWORKER_REDIS_URL"], decode_responses=True, protocol=2
    )
    with suppress(redis.ResponseError):  # it is there
        client.xgroup_create(STREAM, group, "0", mkstream=True)
    while True:
        _, entries, _ = client.xautoclaim(STREAM, group, consumer, LEFT_BEHIND, count=50)
        for _, new in client.xreadgroup(group, consumer, {STREAM: ">"}, count=50, block=2000):
            entries += new
        for entry, fields in entries:
            event = json.loads(fields["event"])
            row = (event["id"], fields["event"])
            with books:
                if books.execute("INSERT OR IGNORE INTO events VALUES (?, ?)", row).rowcount:
                    handle(event, books)
            client.xack(STREAM, group, entry)


if __name__ == "__main__":
    main(*sys.argv[1:])

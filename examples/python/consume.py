"""Read results with nothing but redis-py, as one consumer of a group on the results stream.

    pip install redis
    REGWORKER_REDIS_URL=redis://127.0.0.1:6399/0 python consume.py crm crm-1

The first argument is the group: each group gets every event. The second is this consumer's name;
each process needs its own. You may kill it at any time: the server delivers an event that was not
acknowledged again, to this consumer or to another one of the group. So the program inserts the
event's id into BOOKS (default: books.db), in the same transaction as the event's effects, before it
acknowledges the event.
"""

import json
import os
import sqlite3
import sys
from contextlib import suppress
from typing import Any

import redis

STREAM = "{reg}:results"

#: Milliseconds after which this consumer takes over an event that another one has not acknowledged.
#: Must be longer than the handling of an event takes.
TAKE_OVER_AFTER = 60_000


def handle(event: dict[str, Any], books: sqlite3.Connection) -> None:
    """Handle an event, in the transaction that stores its id."""
    data = event["data"]
    # An outcome holds the customer's credentials: store it like a secret, and don't log it.
    what = sorted(data.get("outcome") or {}) or [one["code"] for one in data.get("errors", ())]
    print(event["type"], data.get("idempotency_key", event["subject"]), *what, flush=True)


def main(group: str, consumer: str) -> None:
    """Read until the process is stopped."""
    books = sqlite3.connect(os.environ.get("BOOKS", "books.db"))
    books.execute("CREATE TABLE IF NOT EXISTS events (id PRIMARY KEY, event)")
    client: Any = redis.Redis.from_url(
        os.environ["REGWORKER_REDIS_URL"], decode_responses=True, protocol=2
    )
    with suppress(redis.ResponseError):  # the group exists already
        client.xgroup_create(STREAM, group, "0", mkstream=True)
    while True:
        _, entries, _ = client.xautoclaim(STREAM, group, consumer, TAKE_OVER_AFTER, count=50)
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
    if len(sys.argv) != 3 or not all(sys.argv):
        sys.exit("usage: python consume.py GROUP CONSUMER")
    main(*sys.argv[1:])

"""Requests of the job stream whose sender waits for the result: `regworker serve`."""

import json
import re
from collections.abc import Mapping
from typing import Any

from regworker.ledger.transitions import JOBS, PREFIX, Command, done_channel

#: Milliseconds for which an answer is kept: longer than anybody waits for it.
KEPT = 60_000

#: The id of an answer: 128 random bits in hex, so that nobody else finds it.
ID = re.compile(r"[0-9a-f]{32}")


def answer_key(id_: str) -> str:
    """The key of an answer."""
    return f"{PREFIX}answer:{id_}"


def answer_channel(id_: str) -> str:
    """The channel that notifies the sender of its answer."""
    return done_channel(id_)


def offer(fields: Mapping[str, str], most: int) -> Command[bool]:
    """Add a request, unless `most` are in the job stream; returns whether it was added.

    `fields`: `job` or `cancel`, `answer` (an id as of `ID`), and `by` and `traceparent` if known.
    `by`: the name of the token; to cancel a job, only if the job is not that token's own.
    """
    flat = [part for pair in fields.items() for part in pair]
    return Command("offer", (JOBS,), (most, *flat), bool)


def answer(id_: str, entry: str, said: Mapping[str, Any]) -> Command[None]:
    """Answer a request; its entry is removed."""
    text = json.dumps(said, separators=(",", ":"))
    return Command("answer", (answer_key(id_), JOBS), (id_, text, KEPT, entry), lambda _: None)

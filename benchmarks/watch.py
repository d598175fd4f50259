"""Seeing results come to stand at the server, wherever a queue's library stores them."""

import json
import subprocess
import threading
import time
from collections.abc import Sequence
from typing import Any, Protocol

import redis

from benchmarks.contestants import SLOTS
from benchmarks.jobs import HOOK_EVERY
from benchmarks.stage import Stub

#: Seconds for anything here to happen. Far more than it takes; a benchmark that hangs says so.
PATIENCE = 120.0

#: Seconds between looks for the last result: a small part of what a round takes.
LOOK = 0.02

#: Ours.
STREAM = "{reg}:results"

#: Valkey tells of keys that are set: strings, lists and streams, whichever a result store uses.
NOTIFY = "K$lt"


class Alive:
    """Asked in a wait: raises `RuntimeError` when the worker is gone, or time is up."""

    def __init__(self, worker: subprocess.Popen[bytes], what: str) -> None:
        self._worker = worker
        self._what = what
        self._end = time.monotonic() + PATIENCE

    def __call__(self) -> None:
        """Look."""
        if self._worker.poll() is not None:
            raise RuntimeError(f"{self._what}: its worker ended with {self._worker.returncode}")
        if time.monotonic() > self._end:
            raise RuntimeError(f"{self._what}: not done within {PATIENCE:g} s")


class Watch(Protocol):
    """Sees results."""

    def wait(self, keys: Sequence[str], alive: Alive) -> None:
        """Wait until these, which nobody has waited for yet, are there."""
        ...

    def arrivals(self, over: threading.Event, seen: dict[str, float]) -> None:
        """Note when each comes, until it is over."""
        ...


class Keys:
    """Results of which each has a key."""

    def __init__(self, server: redis.Redis, pattern: str) -> None:
        self._server = server
        self._pattern = pattern

    def wait(self, keys: Sequence[str], alive: Alive) -> None:
        """Look for all that are missing, but only once the last ones are there."""
        missing = list(keys)
        while missing:
            alive()
            last = missing[-SLOTS:]
            if self._server.exists(*last) == len(last):
                pipeline = self._server.pipeline(transaction=False)
                for key in missing:
                    pipeline.exists(key)
                there = pipeline.execute()
                missing = [key for key, one in zip(missing, there, strict=True) if not one]
            time.sleep(LOOK)

    def arrivals(self, over: threading.Event, seen: dict[str, float]) -> None:
        """By what the server tells of its keys."""
        listener = self._server.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        self._server.config_set("notify-keyspace-events", NOTIFY)
        listener.psubscribe(f"__keyspace@0__:{self._pattern}")
        while not over.is_set():
            message = listener.get_message(timeout=0.1)
            if message:
                key = message["channel"].decode().partition(":")[2]
                seen.setdefault(key, time.time())
        listener.close()
        self._server.config_set("notify-keyspace-events", "")


class Stream:
    """Ours: all results are on one stream, and webhooks go out beside them."""

    def __init__(self, server: redis.Redis, provider: Stub) -> None:
        self._server = server
        self._provider = provider
        self._results = self._skipped = 0
        self._hooks_before = provider.count("hooks")

    def wait(self, keys: Sequence[str], alive: Alive) -> None:
        """By the stream's length, and by what the receiver of the webhooks has counted."""
        self._results += len(keys)
        while self._server.xlen(STREAM) < self._results + self._skipped:
            alive()
            time.sleep(LOOK)
        hooks = self._results // HOOK_EVERY
        while self._provider.count("hooks") - self._hooks_before < hooks:
            alive()
            time.sleep(LOOK)

    def skip(self, count: int) -> None:
        """So many more results stand there than this worker made."""
        self._skipped += count

    def arrivals(self, over: threading.Event, seen: dict[str, float]) -> None:
        """As a consumer reads them."""
        last: Any = "$"
        while not over.is_set():
            found: Any = self._server.xread({STREAM: last}, block=100)
            now = time.time()
            for _, entries in found.items() if isinstance(found, dict) else found:
                for entry, fields in entries:
                    last = entry
                    seen[json.loads(fields[b"event"])["subject"]] = now

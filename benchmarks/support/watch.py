"""Waits for results at the server, wherever a queue's library stores them."""

import json
import subprocess
import threading
import time
from collections.abc import Sequence
from typing import Any, Protocol

import redis

from benchmarks.contestants import SLOTS
from benchmarks.support.jobs import HOOK_EVERY
from benchmarks.support.stage import Stub

#: Seconds for anything to happen here. Far more than it takes; a hanging benchmark reports it.
PATIENCE = 120.0

#: Seconds between checks for the last result: a small part of a round.
LOOK = 0.02

#: Our results.
STREAM = "{reg}:results"

#: Valkey reports set keys: strings, lists and streams, whichever a result store uses.
NOTIFY = "K$lt"


class Alive:
    """Called during a wait: raises `RuntimeError` when the worker is gone, or the time is over."""

    def __init__(self, worker: subprocess.Popen[bytes], what: str) -> None:
        self._worker = worker
        self._what = what
        self._end = time.monotonic() + PATIENCE

    def __call__(self) -> None:
        """Check."""
        if self._worker.poll() is not None:
            raise RuntimeError(f"{self._what}: its worker ended with {self._worker.returncode}")
        if time.monotonic() > self._end:
            raise RuntimeError(f"{self._what}: not done within {PATIENCE:g} s")


class Watch(Protocol):
    """Waits for results."""

    def wait(self, keys: Sequence[str], alive: Alive) -> None:
        """Wait until these results, which were not awaited before, are there."""
        ...

    def arrivals(self, over: threading.Event, seen: dict[str, float]) -> None:
        """Record when each arrives, until it is over."""
        ...


class Keys:
    """Results with one key each."""

    def __init__(self, server: redis.Redis, pattern: str) -> None:
        self._server = server
        self._pattern = pattern

    def wait(self, keys: Sequence[str], alive: Alive) -> None:
        """Check all missing ones, but only once the last ones are there."""
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
        """From the server's keyspace notifications."""
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
    """Ours: all results are on one stream, and webhooks are sent beside them."""

    def __init__(self, server: redis.Redis, provider: Stub) -> None:
        self._server = server
        self._provider = provider
        self._results = self._skipped = 0
        self._hooks_before = provider.count("hooks")

    def wait(self, keys: Sequence[str], alive: Alive) -> None:
        """By the stream's length, and by the webhook receiver's count."""
        self._results += len(keys)
        while self._server.xlen(STREAM) < self._results + self._skipped:
            alive()
            time.sleep(LOOK)
        hooks = self._results // HOOK_EVERY
        while self._provider.count("hooks") - self._hooks_before < hooks:
            alive()
            time.sleep(LOOK)

    def skip(self, count: int) -> None:
        """The stream has so many more results than this worker made."""
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

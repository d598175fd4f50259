"""Jobs that are enqueued all the time while servers fail over, and the commands of who looks."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from regworker import ResultConsumer
from regworker.domain.errors import LedgerUnavailable
from tests.integration.installation import PATIENCE, Installation
from tests.integration.jobs import skypostal

#: Jobs without a result, above which no more are enqueued: a busy machine must catch up at the end.
MOST_OPEN = 50


@dataclass
class Load:
    """Jobs that go on being enqueued, one after the other; and their results, read in a group."""

    here: Installation
    accepted: list[str] = field(default_factory=list)
    published: dict[str, list[str]] = field(default_factory=dict)
    _ended: threading.Event = field(default_factory=threading.Event)
    _all_in: threading.Event = field(default_factory=threading.Event)
    """Set when the last enqueue has returned: only then is it known what was accepted."""
    _given_up: threading.Event = field(default_factory=threading.Event)
    """Set when the test is over anyway: a thread that goes on would disturb other tests."""

    def enqueue(self) -> None:
        """Until the end; while at most `MOST_OPEN` jobs have no result yet."""
        while not self._ended.wait(0.02):
            if len(self.accepted) - len(self.published) >= MOST_OPEN:
                continue
            job = skypostal()
            while not self._given_up.is_set():
                try:
                    self.accepted.append(self.here.producer.enqueue(job).job_id)
                    break
                except LedgerUnavailable:
                    pass  # we cannot tell; its key makes the repeat safe
        self._all_in.set()

    def read(self) -> None:
        """Until all that was accepted is published."""
        settings = self.here.producer.settings
        with ResultConsumer("load", settings=settings) as consumer:
            while not (
                self._given_up.is_set()
                or (self._all_in.is_set() and set(self.accepted) <= set(self.published))
            ):
                # A ledger that is away for longer than a call waits: the next call goes on.
                with suppress(LedgerUnavailable):
                    if (result := consumer.take(1.0)) is not None:
                        ids = self.published.setdefault(result.event.subject, [])
                        if result.event.id not in ids:
                            ids.append(result.event.id)
                        consumer.ack(result)

    def where(self, job_id: str) -> dict[str, object]:
        """What is known of a job, for whoever reads why a test failed."""
        return {
            "status": self.here.producer.status(job_id),
            "events": len(self.here.events(job_id)),
        }

    def stop(self) -> None:
        """Enqueue no more."""
        self._ended.set()

    def give_up(self) -> None:
        """Read no more."""
        self._given_up.set()


@contextmanager
def load(here: Installation) -> Iterator[Load]:
    """Two threads of it; at the end all that was accepted has been published."""
    found = Load(here)
    threads = [
        threading.Thread(target=one, name=one.__name__, daemon=True)
        for one in (found.enqueue, found.read)
    ]
    for one in threads:
        one.start()
    try:
        yield found
    finally:
        found.stop()
        for one in threads:
            one.join(PATIENCE)
        slow = [one.name for one in threads if one.is_alive()]
        found.give_up()
        for one in threads:
            one.join(PATIENCE)
    missing = [one for one in found.accepted if one not in found.published]
    assert not missing, (
        f"{len(missing)} of {len(found.accepted)} jobs have no result that was read: "
        f"{[found.where(one) for one in missing[:5]]}; not ended in time: {slow}"
    )


def regworker(here: Installation, *command: str) -> subprocess.CompletedProcess[str]:
    """A command, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "worker.cli", *command],
        env={**os.environ, **here.environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def doctors(here: Installation) -> dict[str, dict[str, str]]:
    """What the doctor finds, by subject."""
    said = regworker(here, "doctor", "--json").stdout.splitlines()
    return {one["subject"]: one for one in map(json.loads, said)}

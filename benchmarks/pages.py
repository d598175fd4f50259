"""`python -m benchmarks.pages`: how long each page takes with a full ledger.

The ledger holds real records, copied within the server: a million finished jobs in their index,
queued jobs and reviews. The pages are those of `regworker serve`, in a process of its own,
requested over one connection. The CPU time of that process and of Valkey is measured too: on a busy
machine a page is slow, but does not use more CPU time.
"""

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import httpx
import psutil

from regworker.domain.event import EventType
from regworker.domain.outcome import Registered
from regworker.domain.states import State
from regworker.event_builder import EventBuilder
from regworker.ledger import SyncLedger
from regworker.ledger.admin import Limits, announce
from regworker.ledger.records import Claim
from regworker.ledger.snapshot import OPEN, place
from regworker.ledger.transitions import (
    ClaimRules,
    Decision,
    SettleRules,
    claim,
    job_key,
    settle,
)
from regworker.producer import Producer
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from sandbox.documented import SKYPOSTAL_REGISTRATION
from worker.cli.local import stack

KEYS = Keyring.new("bench")
PASSWORD = "only for this benchmark"

CLAIM = ClaimRules("pages:1", lease=60, settle_delay=0, max_attempts=12, probe=20)
SETTLE = SettleRules(settle_delay=0, breaker_threshold=50, breaker_pause=30, retention=7 * 86400)

#: Copies made by one script: some milliseconds.
BATCH = 5000

#: Copies a finished job with its entry in the index of finished jobs. KEYS: record, stream; ARGV:
#: first, last.
COPY_ENDED = """
local prefix = KEYS[1]:sub(1, #KEYS[1] - 36)
for number = tonumber(ARGV[1]), tonumber(ARGV[2]) do
  local id = string.format('%08x-0000-8000-8000-%012x', number, number)
  redis.call('COPY', KEYS[1], prefix .. id)
  redis.call('XADD', KEYS[2], '*', 'i', id)
end
"""

#: Copies an unfinished job with its entries in sorted sets. KEYS: record; ARGV: first, last, then
#: sorted set, score, ...
COPY_OPEN = """
local prefix = KEYS[1]:sub(1, #KEYS[1] - 36)
for number = tonumber(ARGV[1]), tonumber(ARGV[2]) do
  local id = string.format('%08x-0000-8000-8000-%012x', number, number)
  redis.call('COPY', KEYS[1], prefix .. id)
  for i = 3, #ARGV, 2 do redis.call('ZADD', ARGV[i], ARGV[i + 1] + number, id) end
end
"""


class Filling:
    """Creates one job of each kind, and copies it."""

    def __init__(self, ledger: SyncLedger, settings: Settings) -> None:
        self._ledger, self._settings = ledger, settings
        self._redis: Any = ledger.redis
        self._builder = EventBuilder(settings, Keyring.parse(KEYS))
        self._next = 0

    def ended(self, count: int) -> str:
        """Finished jobs."""
        job_id, held = self._claimed("finished")
        found = Registered({"customer_box_id": 811111, "customer_key": "a key of a customer"})
        publication = self._builder.registered(held.record, self._ledger.now(), found)
        self._ledger(settle(held, Decision("registered"), SETTLE, publication))
        self.copy_ended(job_id, "registered:skypostal:default", count)
        self._redis.hincrby("{reg}:stats", "registered:skypostal:default", count)
        self._redis.set("{reg}:indexed", "done")
        return job_id

    def reviews(self, count: int) -> str:
        """Jobs in review."""
        job_id, held = self._claimed("review")
        self._ledger(settle(held, Decision("unknown", "connection closed"), SETTLE, None))
        asking = self._ledger(claim(job_id, CLAIM, 0))
        assert isinstance(asking, Claim)
        publication = self._builder.failed(EventType.REVIEW, asking.record, self._ledger.now(), ())
        self._ledger(settle(asking, Decision("unresolvable", "cannot tell"), SETTLE, publication))
        self._copy(COPY_OPEN, [job_key(job_id)], count, self._places(job_id))
        return job_id

    def queued(self, count: int) -> str:
        """Queued jobs."""
        job_id = self._made("queued")
        self._copy(COPY_OPEN, [job_key(job_id)], count, self._places(job_id))
        return job_id

    def like(self, job_id: str, name: str, fields: dict[str, str]) -> str:
        """A record like that of another job, in no index; returns its id."""
        new = str(uuid5(NAMESPACE_URL, name))
        self._redis.copy(job_key(job_id), job_key(new))
        self._redis.hset(job_key(new), mapping=fields)
        return new

    def copy_ended(self, job_id: str, index: str, count: int) -> None:
        """Copies of a finished job, in its index."""
        self._copy(COPY_ENDED, [job_key(job_id), f"{{reg}}:ended:{index}"], count, [])

    def copy_open(self, job_id: str, count: int) -> None:
        """Copies of a queued job, in the index of unfinished ones: without an alarm, no worker
        starts them."""
        score = place(State.QUEUED, "live", round(self._ledger.now()) - 10**9)
        self._copy(COPY_OPEN, [job_key(job_id)], count, [OPEN, score])

    def _made(self, key: str) -> str:
        registration = {k: v for k, v in SKYPOSTAL_REGISTRATION.items() if k != "copa_id"}
        with Producer(self._settings) as producer:
            job = {"provider": "skypostal", "idempotency_key": key, "registration": registration}
            return producer.enqueue(job).job_id

    def _claimed(self, key: str) -> tuple[str, Claim]:
        job_id = self._made(key)
        held = self._ledger(claim(job_id, CLAIM, 0))
        assert isinstance(held, Claim)
        return job_id, held

    def _places(self, job_id: str) -> list[str | float]:
        found: list[str | float] = []
        for key in self._redis.scan_iter("{reg}:*", count=1000, _type="zset"):
            if (score := self._redis.zscore(key, job_id)) is not None:
                found += [key.decode(), score]
        return found

    def _copy(self, script: str, keys: list[str], count: int, more: list[Any]) -> None:
        run = self._redis.register_script(script)
        first, self._next = self._next, self._next + count
        for start in range(first, self._next, BATCH):
            run(keys=keys, args=[start, min(start + BATCH, self._next) - 1, *more])


@contextmanager
def served(folder: Path, environment: dict[str, str]) -> Iterator[tuple[httpx.Client, int]]:
    """The pages, with a signed-in user; and the process that serves them."""
    with (folder / "serve.log").open("wb") as log:
        command = [sys.executable, "-m", "worker.cli", "serve", "--port", "0"]
        env = {**os.environ, **environment}
        with stack.process(command, env, folder, log) as child:
            file = folder / "serve.log"
            stack.until(lambda: b"listening on " in file.read_bytes(), "the pages")
            found = re.search(rb"listening on (\S+)", file.read_bytes())
            assert found
            with httpx.Client(base_url=found[1].decode(), timeout=60) as client:
                form = {"name": "bench", "password": PASSWORD}
                assert client.post("/sign-in", data=form).status_code == 303
                yield client, child.pid


def measured(
    ask: Callable[[], httpx.Response], rounds: int, cpu: Callable[[], float]
) -> tuple[float, float, float]:
    """Milliseconds of a page: median, 95th percentile, and CPU time."""
    took, before = [], cpu()
    for _ in range(rounds):
        begun = time.perf_counter()
        answer = ask()
        took.append((time.perf_counter() - begun) * 1000)
        assert answer.status_code in {200, 303}, answer.text
    used = (cpu() - before) / rounds * 1000
    return median(took), sorted(took)[int(len(took) * 0.95) - 1], used


def main() -> None:
    """Fill, request the pages, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--finished", type=int, default=1_000_000, help="finished jobs (1000000)")
    parser.add_argument("--queued", type=int, default=100_000, help="queued jobs (100000)")
    parser.add_argument("--reviews", type=int, default=1000, help="jobs in review (1000)")
    parser.add_argument("--rounds", type=int, default=40, help="times that each is asked for (40)")
    options = parser.parse_args()
    with ExitStack() as running:
        running.enter_context(stack.ending_by_signal())
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        valkey = running.enter_context(stack.valkey(folder / "valkey", fsync="no"))
        values = {"redis_url": valkey.connection_url, "sealing_keys": KEYS}
        settings = Settings.load(**values)
        ledger = SyncLedger(valkey.connection_url)
        running.callback(ledger.close)
        limits = [Limits("skypostal", "default", 0, 0, 0)]
        ledger(announce(limits, ["results"], settings.streams()))
        filling = Filling(ledger, settings)
        ended = filling.ended(options.finished)
        review, queued = filling.reviews(options.reviews), filling.queued(options.queued)
        environment = {f"REGWORKER_{name.upper()}": value for name, value in values.items()}
        environment["REGWORKER_SERVE_PASSWORD"] = PASSWORD
        client, pid = running.enter_context(served(folder, environment))
        serving = psutil.Process(pid)
        redis: Any = ledger.redis

        def cpu() -> float:
            times, info = serving.cpu_times(), redis.info("cpu")
            server = sum(float(info[f"used_cpu_{one}_main_thread"]) for one in ("user", "sys"))
            return float(times.user + times.system) + server

        account = "skypostal%2Fdefault"
        paths = {
            "overview": "/",
            "jobs, all": "/jobs",
            "jobs, oldest first": "/jobs?sort=oldest",
            "jobs, registered at an account": f"/jobs?state=registered&account={account}",
            "jobs, in review": "/jobs?state=review",
            "jobs, unfinished": "/jobs?state=unfinished",
            "jobs, registered in the last hour": "/jobs?state=registered&age=1h",
            "jobs, of an account without any": "/jobs?account=open2b%2Fdefault",
            "jobs, by a reason that many have": "/jobs?reason=registered",
            "jobs, by a reason that none has": "/jobs?reason=nonsense",
            "jobs, by metadata that none has": "/jobs?metadata=shop%3D7",
            "a finished job": f"/jobs/{ended}",
            "a job in review": f"/jobs/{review}",
            "a queued job": f"/jobs/{queued}",
            "reviews": "/reviews",
            "deliveries": "/deliveries",
            "accounts": "/accounts",
            "quarantine": "/quarantine",
            "workers": "/workers",
            "audit": "/audit",
        }
        asked: dict[str, Callable[[], httpx.Response]] = {
            name: partial(client.get, path) for name, path in paths.items()
        }
        token = re.search(r'name="form_token" value="([^"]+)"', client.get("/").text)
        assert token
        for name, text in {"id": ended, "key": "finished"}.items():
            form = {"form_token": token[1], "job": text}
            asked[f"find a job by its {name}"] = partial(client.post, "/find", data=form)
        for name, ask in asked.items():
            ask()
            half, most, used = measured(ask, options.rounds, cpu)
            print(f"{name}: {half:.1f} ms, 95 % within {most:.1f} ms, {used:.1f} ms of CPU")


if __name__ == "__main__":
    main()

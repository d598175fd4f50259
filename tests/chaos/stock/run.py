"""The chaos run with a plain Celery task in our worker's place: same load, same nemesis."""

import argparse
import os
import random
import sys
import threading
import time
from itertools import islice

import redis
from rich.console import Console

from regworker.domain.job import job_id
from tests.chaos import checks
from tests.chaos.checks import Violation
from tests.chaos.cluster import ROOT, Cluster
from tests.chaos.collect import Seen, parsed
from tests.chaos.load import Accepted, Offer, offers
from tests.chaos.nemesis import Nemesis, schedule
from tests.chaos.report import Report
from tests.chaos.rest import Patience
from worker.cli.local import stack


class StockSide:
    """One run of the stock task."""

    def __init__(self, here: Cluster, given: argparse.Namespace, console: Console) -> None:
        self.here = here
        self.given = given
        self.console = console
        self.accepted: list[Accepted] = []
        self.server = redis.Redis.from_url(here.ledger.url, socket_timeout=10)
        self._over = threading.Event()

    def carry_out(self) -> tuple[Report, list[Violation]]:
        """Everything from the first job to the last check."""
        self._start_workers()
        self.here.weather(0)
        nemesis = Nemesis(
            schedule(self.given.seed, self.given.duration, self.here.profile), self.here
        )
        count = self.here.profile.producers
        producers = [
            threading.Thread(target=self._produce, args=(number,), daemon=True)
            for number in range(count)
        ]
        try:
            for producer in producers:
                producer.start()
            nemesis.start()
            self._watch(nemesis)
        finally:
            self._over.set()
            nemesis.stop()
        healed = time.monotonic()
        self.here.heal()
        for producer in producers:
            producer.join(60)
        self._wait_for_quiet()
        return self._report(nemesis, time.monotonic() - healed)

    def _start_workers(self) -> None:
        for number in range(self.here.profile.workers):
            whose = f"worker-{number}"
            environment = {
                "STOCK_BROKER": self.here.link(whose, self.here.broker_url, "broker"),
                "STOCK_REDIS": self.here.link(whose, self.here.ledger.url, "ledger"),
                "STOCK_PROVIDER": self.here.link(whose, self.here.sandbox_url, "provider"),
                "STOCK_TIMEOUT": str(self.here.profile.pace["call_budget"]),
                "PYTHONPATH": str(ROOT),
            }
            app = ["-A", "tests.chaos.stock.app", "worker", "--pool", "threads"]
            threads = ["--concurrency", str(self.here.profile.pace["concurrency"])]
            name = ["--hostname", f"{whose}@%h", "--loglevel", "INFO"]
            self.here.add_worker(
                [sys.executable, "-m", "celery", *app, *threads, *name], environment
            )
        for slot in self.here.workers:
            stack.until(lambda slot=slot: slot.ready, f"{slot.name} is not ready")
        self.here.link("producers", self.here.ledger.url, "ledger")
        os.environ["STOCK_BROKER"] = self.here.link("producers", self.here.broker_url, "broker")

    def _produce(self, number: int) -> None:
        from tests.chaos.stock.app import app, register

        chance = random.Random(f"stock {self.given.seed} {number}")
        rate = self.here.profile.rate / self.here.profile.producers
        # Keys mean nothing here, so no job is repeated, cancelled or sent with other content.
        fresh = (one for one in offers(self.given.seed, number) if one.choice == "fresh")
        with app.connection_for_write() as connection:
            for offer in islice(fresh, 100_000):
                if self._over.wait(chance.expovariate(rate)):
                    return
                self._enqueue(register, connection, offer)

    def _enqueue(self, register: object, connection: object, offer: Offer) -> None:
        job = offer.job
        id_ = job_id(job["provider"], "default", job["idempotency_key"])
        while True:
            try:
                # With a new id: a second message would be a second run in any case.
                register.apply_async(  # type: ignore[attr-defined]
                    (id_, job), task_id=id_, connection=connection, retry=False
                )
            except Exception:  # noqa: BLE001 -- whatever it was, the broker did not say yes
                if self._over.wait(0.2):
                    return
                continue
            known = Accepted(id_, job["idempotency_key"], job["provider"], offer.email, "", False)
            self.accepted.append(known)
            return

    def _watch(self, nemesis: Nemesis) -> None:
        end = time.monotonic() + self.given.duration
        while (left := end - time.monotonic()) > 0 and nemesis.error is None:
            time.sleep(min(1.0, left))
            self.here.supervise()
            text = f"{self.given.duration - left:3.0f} s  enqueued {len(self.accepted)}"
            self.console.print(f"{text}  {nemesis.last}", markup=False, highlight=False)

    def _wait_for_quiet(self) -> None:
        patience = Patience(self.given.duration)
        while not patience.out:
            ended = {event["subject"] for event in parsed(self._events())}
            waiting = sum(one.job_id not in ended for one in self.accepted)
            if not waiting:
                return
            patience.see(waiting)
            self.console.print(f"waiting for {waiting} jobs", highlight=False)
            time.sleep(1.0)

    def _events(self) -> tuple[bytes, ...]:
        return tuple(fields[b"event"] for _, fields in self.server.xrange("{reg}:results"))

    def _report(self, nemesis: Nemesis, seconds: float) -> tuple[Report, list[Violation]]:
        events = self._events()
        accounts = tuple(self.here.sandbox.accounts())
        requests = tuple(self.here.sandbox.requests())
        report = Report(self.given.seed, f"{self.given.broker}, stock task", self.given.duration)
        seen = Seen(accepted=tuple(self.accepted), accounts=accounts, requests=requests)
        report.count(seen, ())
        report.events = len(events)
        kinds = [event["type"].removeprefix("registration.") for event in parsed(events)]
        report.registered, report.rejected = kinds.count("registered"), kinds.count("rejected")
        report.seconds_to_quiet = round(seconds, 1)
        report.nemesis = dict(nemesis.done.most_common())
        found = checks.stock(seen.accepted, accounts, events)
        report.judge(found)
        return report, found

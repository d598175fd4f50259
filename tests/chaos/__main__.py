"""`python -m tests.chaos`: no job is lost and none runs twice, whatever is killed or cut off.

Real processes on this machine, a seeded nemesis, and checks of all records from outside. Exit
codes: 0 everything held, 1 something did not, 2 wrong use.
"""

import argparse
import json
import logging
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path

import redis
from rich.console import Console

from regworker.ledger.servers import sync_pool
from regworker.settings import Settings
from tests.chaos import checks, collect
from tests.chaos.checks import Violation
from tests.chaos.cluster import Cluster, add_workers, cluster
from tests.chaos.collect import Seen
from tests.chaos.failovers import LEVELS, Failovers
from tests.chaos.load import Load, load
from tests.chaos.nemesis import Nemesis, schedule
from tests.chaos.profiles import LATE, PROFILES, Profile
from tests.chaos.replicated import ReplicatedStore
from tests.chaos.report import Report, as_json, measurable
from tests.chaos.rest import Patience
from tests.chaos.sabotage import LEVEL_OF, SABOTAGES
from tests.chaos.skew import MISSING, Watch, library
from tests.chaos.stock.run import StockSide
from worker.cli.local import stack

#: Seconds between looks during a run, and the pause after a look as a multiple of its duration: a
#: long run has many records, and must not spend its time reading them. A run that stops at its
#: first violation looks all the time.
LOOK, LOOK_RATIO = 0.7, 8.0


class Run:
    """One run: start, injure, heal, wait, check."""

    def __init__(self, here: Cluster, given: argparse.Namespace, console: Console) -> None:
        self.here = here
        self.given = given
        self.console = console
        self.report = Report(given.seed, given.broker, given.duration)
        self.server = redis.Redis(connection_pool=sync_pool(here.ledger.url, socket_timeout=10))
        self.clock = Watch()
        self.found: list[Violation] = []
        self.failovers: Failovers | None = None
        if isinstance(here.ledger, ReplicatedStore):
            level = LEVELS[given.level]
            self.failovers = Failovers(here.ledger, level, here.workers, given.seed, here.folder)

    def carry_out(self, producers: Load, nemesis: Nemesis) -> None:
        """Everything from the first job to the last check."""
        producers.start(self.here.profile.producers)
        nemesis.start()
        if self.failovers is not None:
            self.failovers.start()
        self._disturb(producers, nemesis)
        nemesis.stop()
        if self.failovers is not None:
            self._say("waiting for the last failover")
            self.failovers.stop()
        if self.found:
            self.here.ledger.start()
            seen = self.seen(producers)
        else:
            seen = self._come_to_rest(producers, nemesis)
            self.found = checks.final(seen)
        self.report.nemesis = dict(nemesis.done.most_common())
        self.report.repeats = producers.counts["repeats"]
        self.report.conflicts = producers.counts["conflicts"]
        self.report.clock_moved = round(self.clock.moved, 2)
        self.report.count(seen, measurable(self.here.kills, self.here.jumps))
        if self.failovers is not None:
            self.found, forgotten = checks.split(
                self.found, forgets=LEVELS[self.given.level].forgets
            )
            self.report.fail_over(self.failovers, seen, forgotten)
        self.report.judge(self.found)
        self.report.workers_killed = len(self.here.kills)
        self.report.brokers_killed = self.here.brokers_killed
        self.report.lies = {lie: n for lie, n in self.here.way.lies.most_common() if lie}
        self.report.starts_refused = self.here.starts_refused
        if self.found:
            # Written beside the logs, which are kept then: the providers' records end with their
            # process.
            books = json.dumps(asdict(seen), default=_plain)
            (self.here.folder / "books.json").write_text(books)

    def seen(self, producers: Load, unclean: tuple[str, ...] = ()) -> Seen:
        """Read all records.

        They are read one after another, so while workers run they show different moments: the
        ledger, which is read last, may have a registered customer that the provider did not have
        yet.
        """
        accepted = tuple(producers.accepted())
        return Seen(
            accepted=accepted,
            refused=frozenset(producers.refused),
            accounts=tuple(self.here.sandbox.accounts()),
            requests=tuple(self.here.sandbox.requests()),
            hooks=tuple(self.here.hooks()),
            ledger=collect.ledger(self.server),
            unclean=unclean,
            fails_over=self.failovers is not None,
        )

    def _come_to_rest(self, producers: Load, nemesis: Nemesis) -> Seen:
        self._say("healing")
        healed = time.monotonic()
        self.here.heal()
        producers.stop()
        unrest = self._wait_for_quiet()
        self.report.seconds_to_quiet = round(time.monotonic() - healed, 1)
        self._say("stopping the workers")
        self.here.retire_workers()
        # A request that the provider has received but not carried out yet is visible nowhere.
        time.sleep(LATE)
        unclean = [*producers.wrong, *self.here.unclean, *unrest]
        if nemesis.error is not None:
            unclean.append(f"the nemesis failed: {nemesis.error!r}")
        if self.failovers is not None and self.failovers.error is not None:
            unclean.append(f"the failovers failed: {self.failovers.error!r}")
        return self.seen(producers, tuple(unclean))

    def _disturb(self, producers: Load, nemesis: Nemesis) -> None:
        end = time.monotonic() + self.given.duration
        next_look = 0.0
        while (left := end - time.monotonic()) > 0 and nemesis.error is None:
            if self.failovers is not None and self.failovers.error is not None:
                return
            time.sleep(min(LOOK, left))
            self.here.supervise()
            found: list[Violation] = []
            began = time.monotonic()
            with suppress(redis.ConnectionError, redis.TimeoutError):
                self.clock.look(self.server)
                if began >= next_look or self.given.until_violation:
                    found = checks.underway(self.seen(producers))
                    if self.failovers is not None:
                        forgets = LEVELS[self.given.level].forgets
                        found, _ = checks.split(found, forgets=forgets)
                    took = time.monotonic() - began
                    next_look = began + LOOK_RATIO * took
            count = producers.counts
            self._say(
                f"{self.given.duration - left:3.0f}/{self.given.duration:g} s"
                f"  enqueued {count['enqueued']}  {nemesis.last}"
                + (f"  failovers {self.failovers.failovers}" if self.failovers else "")
            )
            if found:
                self._say(f"violated: {found[0]}")
                if self.given.until_violation:
                    self.found = found
                    return

    def _wait_for_quiet(self) -> list[str]:
        patience = Patience(self.given.duration)
        while True:
            self.here.supervise()
            left = collect.alarms(self.server)
            if not left:
                return []
            patience.see(len(left))
            if patience.out:
                return [patience.out]
            deliveries = sum(member.startswith("d:") for member in left)
            self._say(f"waiting for {len(left) - deliveries} jobs, {deliveries} deliveries")
            time.sleep(LOOK)

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def _plain(value: bytes | frozenset[str]) -> str | list[str]:
    return value.decode() if isinstance(value, bytes) else sorted(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it."""
    given = _arguments(arguments)
    # Producers log the outages that the run makes on purpose: drop these logs.
    logging.getLogger("worker").addHandler(logging.NullHandler())
    console = Console(stderr=True, quiet=given.quiet)
    output = Console(width=100)
    console.print(f"chaos: seed {given.seed}, {given.duration:g} s, broker {given.broker}")
    profile = PROFILES[given.profile]
    if given.rate:
        profile = replace(profile, rate=given.rate)
    profile = replace(profile, unique=given.unique)
    if given.stock:
        profile = profile.without("junk")  # the first junk would end it for good
    if profile.kinds.get("jump_clock") and library() is None:
        profile = profile.without("jump_clock")
        # Printed even without progress output: such a run proves less.
        Console(stderr=True).print(f"chaos: {MISSING}", soft_wrap=True)
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    report: Report | None = None
    keep = given.keep
    try:
        with ExitStack() as running:
            running.enter_context(stack.ending_by_signal())
            here = running.enter_context(
                cluster(
                    profile,
                    given.broker,
                    folder,
                    durable_broker=given.stock,
                    level=LEVELS[given.level] if given.level else None,
                    seed=given.seed,
                )
            )
            report, found = _run(here, profile, given, console)
    except BaseException:
        keep = not isinstance(sys.exception(), KeyboardInterrupt)
        raise
    finally:
        keep = keep or (report is not None and not report.good and not given.sabotage)
        if keep:
            console.print(f"chaos: logs are kept in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    if given.json:
        sys.stdout.write(json.dumps(as_json(report, found)) + "\n")
    else:
        report.show(output, found)
        sys.stdout.write(report.last_line + "\n")
    return 0 if report.good else 1


def _run(
    here: Cluster, profile: Profile, given: argparse.Namespace, console: Console
) -> tuple[Report, list[Violation]]:
    if given.stock:
        return StockSide(here, given, console).carry_out()
    console.print("chaos: starting Valkey, the broker, the providers' sandbox and the workers")
    replicas = LEVELS[given.level].replicas if given.level else 0
    add_workers(here, given.sabotage, replicas)
    here.weather(0)
    here.receiver(profile.hook_faults)
    settings = Settings.load(
        redis_url=here.link("producers", here.ledger.url, "ledger"),
        broker_url=here.link("producers", here.broker_url, "broker"),
        sealing_keys=here.keys,
    )
    run = Run(here, given, console)
    faults = schedule(given.seed, given.duration, profile)
    (here.folder / "schedule.txt").write_text("\n".join(map(str, faults)))
    nemesis = Nemesis(faults, here)
    log = here.folder / "accepted.ndjson"
    try:
        with load(settings, log, given.seed, profile.rate) as producers:
            producers.forgets = bool(given.level) and LEVELS[given.level].forgets
            run.carry_out(producers, nemesis)
    finally:
        nemesis.stop()
    return run.report, run.found


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--duration", type=float, default=60.0, help="seconds (%(default)s)")
    parser.add_argument("--seed", type=int, help="repeats a run's schedule; by chance if left out")
    parser.add_argument("--broker", choices=["redis", "rabbitmq"], default="redis")
    parser.add_argument("--rate", type=float, help="jobs a second")
    parser.add_argument("--unique", action="store_true", help="the providers refuse known e-mails")
    parser.add_argument("--sabotage", choices=sorted(SABOTAGES), default="", help="break it")
    parser.add_argument(
        "--profile", choices=list(PROFILES), help="default: the sabotage's, or full"
    )
    parser.add_argument("--until-violation", action="store_true", help="stop at the first one")
    parser.add_argument(
        "--level", choices=list(LEVELS), help="fail over, with a ledger that is run like this"
    )
    parser.add_argument("--stock", action="store_true", help="a plain Celery task instead of ours")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--keep", action="store_true", help="keep the logs of a good run, too")
    given = parser.parse_args(arguments)
    if given.duration <= 0:
        parser.error("--duration must be more than 0")
    if given.stock and given.level:
        parser.error("--stock has no ledger that could fail over")
    given.level = given.level or LEVEL_OF.get(given.sabotage, "")
    fails_over = "failovers" if given.level else "full"
    given.profile = given.profile or (given.sabotage in PROFILES and given.sabotage) or fails_over
    if given.seed is None:
        given.seed = random.SystemRandom().randrange(10**6)
    return given


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.stderr.write("chaos: stopped; every process has been ended\n")
        sys.exit(130)

"""`python -m tests.chaos`: nothing lost, nothing twice, whatever is killed or cut off.

Real processes on this machine, a seeded nemesis, and checks of every book from outside. Exit codes:
0 all held, 1 something did not, 2 wrong use.
"""

import argparse
import json
import logging
import os
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

from tests.chaos import checks, collect
from tests.chaos.checks import Violation
from tests.chaos.cluster import Cluster, add_workers, cluster
from tests.chaos.collect import Seen
from tests.chaos.load import Load, load
from tests.chaos.nemesis import Nemesis, schedule
from tests.chaos.profiles import LATE, PROFILES, Profile
from tests.chaos.report import Report, as_json, measurable
from tests.chaos.rest import Patience
from tests.chaos.sabotage import SABOTAGES
from tests.chaos.skew import MISSING, Watch, library
from tests.chaos.stock.run import StockSide
from worker.cli import stack
from worker.settings import Settings

AMQP_URL = os.environ.get("REGWORKER_TEST_AMQP_URL", "amqp://guest:guest@127.0.0.1:5672//")

#: Seconds between looks while a run goes on, and how many times as long as a look took: the books
#: of a long run are thick, and reading them is not what it is to be busy with. A run that is to
#: stop at a violation looks always.
LOOK, LOOK_RATIO = 0.7, 8.0


class Run:
    """One run: start, hurt, heal, wait, check."""

    def __init__(self, here: Cluster, given: argparse.Namespace, console: Console) -> None:
        self.here = here
        self.given = given
        self.console = console
        self.report = Report(given.seed, given.broker, given.duration)
        self.server = redis.Redis.from_url(here.ledger.url, socket_timeout=10)
        self.clock = Watch()
        self.found: list[Violation] = []

    def carry_out(self, producers: Load, nemesis: Nemesis) -> None:
        """Everything from the first job to the last check."""
        producers.start(self.here.profile.producers)
        nemesis.start()
        self._disturb(producers, nemesis)
        nemesis.stop()
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
        self.report.judge(self.found)
        self.report.workers_killed = len(self.here.kills)
        self.report.brokers_killed = self.here.brokers_killed
        if self.found:
            # Beside the logs, which are kept then: the providers' own books end with their process.
            books = json.dumps(asdict(seen), default=_plain)
            (self.here.folder / "books.json").write_text(books)

    def seen(self, producers: Load, unclean: tuple[str, ...] = ()) -> Seen:
        """Look at all books.

        One after the other, so while workers run they tell of different moments: the ledger, which
        comes last, may have a customer registered whom the provider did not have yet when asked.
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
        # What the provider has taken and not carried out yet is nowhere to be seen.
        time.sleep(LATE)
        unclean = [*producers.wrong, *self.here.unclean, *unrest]
        if nemesis.error is not None:
            unclean.append(f"the nemesis failed: {nemesis.error!r}")
        return self.seen(producers, tuple(unclean))

    def _disturb(self, producers: Load, nemesis: Nemesis) -> None:
        end = time.monotonic() + self.given.duration
        next_look = 0.0
        while (left := end - time.monotonic()) > 0 and nemesis.error is None:
            time.sleep(min(LOOK, left))
            self.here.supervise()
            found: list[Violation] = []
            began = time.monotonic()
            with suppress(redis.ConnectionError, redis.TimeoutError):
                self.clock.look(self.server)
                if began >= next_look or self.given.until_violation:
                    found = checks.underway(self.seen(producers))
                    took = time.monotonic() - began
                    next_look = began + LOOK_RATIO * took
            count = producers.counts
            self._say(
                f"{self.given.duration - left:3.0f}/{self.given.duration:g} s"
                f"  enqueued {count['enqueued']}  {nemesis.last}"
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
    # What producers log of an outage that was made on purpose is no news.
    logging.getLogger("worker").addHandler(logging.NullHandler())
    console = Console(stderr=True, quiet=given.quiet)
    output = Console(width=100)
    console.print(f"chaos: seed {given.seed}, {given.duration:g} s, broker {given.broker}")
    profile = PROFILES[given.profile]
    if given.rate:
        profile = replace(profile, rate=given.rate)
    profile = replace(profile, unique=given.unique)
    if profile.kinds.get("jump_clock") and library() is None:
        profile = profile.without("jump_clock")
        # Also where nobody wants to see progress: such a run proves less.
        Console(stderr=True).print(f"chaos: {MISSING}", soft_wrap=True)
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    report: Report | None = None
    keep = given.keep
    try:
        with ExitStack() as running:
            running.enter_context(stack.ending_by_signal())
            here = running.enter_context(
                cluster(profile, given.broker, AMQP_URL, folder, durable_broker=given.stock)
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
    add_workers(here, given.sabotage)
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
    parser.add_argument("--stock", action="store_true", help="a plain Celery task instead of ours")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--keep", action="store_true", help="keep the logs of a good run, too")
    given = parser.parse_args(arguments)
    if given.duration <= 0:
        parser.error("--duration must be more than 0")
    given.profile = given.profile or given.sabotage or "full"
    if given.seed is None:
        given.seed = random.SystemRandom().randrange(10**6)
    return given


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.stderr.write("chaos: stopped; every process has been ended\n")
        sys.exit(130)

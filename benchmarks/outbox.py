"""`python -m benchmarks.outbox`: rows per second that one relay moves from a database to the
ledger.

The database is `REGWORKER_TEST_POSTGRES_URL`, or PostgreSQL on its usual port. The time does not
include adding the rows.
"""

import argparse
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from sqlalchemy import create_engine

from benchmarks.support.jobs import job
from regworker.ledger import SyncLedger
from regworker.ledger.admin import Limits, announce
from regworker.outbox import Outbox, Relay, metadata
from regworker.producer import Producer
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from tests.databases import database
from worker.cli.local import stack


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000, help="rows a round (10000)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (3)")
    parser.add_argument("--database", default="postgresql", help="postgresql, mariadb or sqlite")
    options = parser.parse_args()
    rates, costs = [], []
    with (
        TemporaryDirectory() as folder,
        database(options.database, Path(folder)) as url,
        stack.valkey(Path(folder) / "valkey") as valkey,
        Producer(_settings(valkey.connection_url)) as producer,
    ):
        engine = create_engine(url, hide_parameters=True)
        metadata.create_all(engine)
        outbox, relay = Outbox(producer.settings), Relay(producer)
        for number in range(options.rounds):
            with engine.begin() as connection:
                for row in range(options.rows):
                    outbox.add(connection, job(number * options.rows + row, reply_to=["results"]))
            began, cpu = time.perf_counter(), time.process_time()
            while not relay.turn(engine).idle:
                pass
            rates.append(options.rows / (time.perf_counter() - began))
            costs.append((time.process_time() - cpu) / options.rows * 1e6)
        engine.dispose()
    print(
        f"relay on {options.database}: {median(rates):.0f} rows/s, {median(costs):.0f} us of CPU "
        f"a row (median of {options.rounds} rounds of {options.rows})"
    )


def _settings(redis_url: str) -> Settings:
    """The settings of a host; a worker has announced itself to the ledger."""
    settings = Settings.load(redis_url=redis_url, sealing_keys=Keyring.new("bench"))
    ledger = SyncLedger(redis_url)
    ledger(announce([Limits("skypostal", "default", 0, 0, 0)], ["results"], settings.streams()))
    ledger.close()
    return settings


if __name__ == "__main__":
    main()

"""Transactional outbox: a job that is enqueued if, and only if, the host's transaction commits.

    from regworker.outbox import Outbox, metadata

    outbox = Outbox()                            # settings from REGWORKER_*
    with engine.begin() as connection:
        connection.execute(insert(customers).values(...))
        outbox.add(connection, job)              # a row in the same transaction

A relay (`regworker outbox relay`, or `Relay.turn` in a loop of your own) moves committed rows into
the ledger. `Outcomes` writes results back into a table, each once. Needs SQLAlchemy 2 and the
extra `outbox`; PostgreSQL, MariaDB 10.6 or MySQL 8, and SQLite are tested.
"""

from regworker.outbox.outbox import Outbox
from regworker.outbox.outcomes import Outcomes
from regworker.outbox.relay import Relay, Turn
from regworker.outbox.tables import metadata, outbox_table, outcomes_table

__all__ = ["Outbox", "Outcomes", "Relay", "Turn", "metadata", "outbox_table", "outcomes_table"]

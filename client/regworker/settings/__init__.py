"""Settings: environment variables `REGWORKER_*`, optionally a TOML file in `REGWORKER_CONFIG`.

Each value may be in a file of its own. Nothing here is read at import. Every duration is in
seconds.

    model.py            `Settings`: all of them in one model, and how they are read
    ledgers.py          the ledgers, their brokers, and how they are made durable
    account_ledgers.py  the rules that say which ledger an account's jobs are in
    security.py         what is trusted, how connections leave the network, the keys that seal jobs
    accounts.py         the providers, and the accounts at them
    endpoints.py        the endpoints for results
    jobs.py             a job: its calls, leases, retries and retention
    worker.py           what a worker process does, and the relay of an outbox
    monitoring.py       log lines, metrics, traces, and reports of errors
    serving.py          the pages of `regworker serve`: who may read, and who may act
    base.py             what all of these share
    sources.py          where settings come from: the environment, the file in `REGWORKER_CONFIG`
    files.py            values in files of their own
    problems.py         the errors, by the variable that is wrong
    variables.py        the names of variables
"""

from regworker.settings.base import HIGHEST, LONGEST
from regworker.settings.endpoints import (
    LEDGER_WORDS,
    DeliveredEndpoint,
    Endpoint,
    QueueEndpoint,
    StreamEndpoint,
    WebhookEndpoint,
)
from regworker.settings.ledgers import LedgerServers
from regworker.settings.model import Settings
from regworker.settings.problems import no_setting
from regworker.settings.serving import Role
from regworker.settings.variables import PREFIX, variable
from regworker.settings.worker import ONE_POOL

__all__ = [
    "HIGHEST",
    "LEDGER_WORDS",
    "LONGEST",
    "ONE_POOL",
    "PREFIX",
    "DeliveredEndpoint",
    "Endpoint",
    "LedgerServers",
    "QueueEndpoint",
    "Role",
    "Settings",
    "StreamEndpoint",
    "WebhookEndpoint",
    "no_setting",
    "variable",
]

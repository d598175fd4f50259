"""What integration tests share."""

import pytest

from regworker.ledger import SyncLedger
from regworker.ledger.records import Record
from tests.integration.ledger_steps import job, record, serve, take_in


@pytest.fixture
def shop(ledger: SyncLedger) -> SyncLedger:
    """A ledger where a worker has announced itself."""
    serve(ledger)
    return ledger


@pytest.fixture
def accepted(shop: SyncLedger) -> Record:
    """A job that was accepted."""
    take_in(shop, job(reply_to=("results", "crm")))
    return record(shop)

"""When the outcome of a step alerts a person."""

import logging

import pytest

from regworker.domain.outcome import Registered
from regworker.domain.states import State
from regworker.ledger.records import Claim, Settled, Stale
from tests.unit.execution.test_decision import RECORD
from worker.execution.attempt import _weight

CALL = Claim(RECORD, asking=False, at=0)


@pytest.mark.parametrize("state", ["rejected", "abandoned", "cancelled", "gone"])
def test_a_customer_of_a_job_that_has_none_alerts_a_person(state: str) -> None:
    """Its event says that there is no customer, or the ledger has lost the job."""
    assert _weight(CALL, Registered({}), Stale(state)) == (logging.ERROR, "late")


@pytest.mark.parametrize("settled", [Stale("registered"), Settled(State.REGISTERED, 0)], ids=str)
def test_a_customer_of_a_registered_job_alerts_nobody(settled: Settled | Stale) -> None:
    """Its producer knows it."""
    assert _weight(CALL, Registered({}), settled) == (logging.INFO, "")

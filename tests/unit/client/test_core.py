"""The steps of a producer keep no more than they need."""

import gc

from regworker.core import ProducerCore
from regworker.domain.job import Job
from regworker.ledger.steps import Each
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from tests.integration.jobs import skypostal


def test_jobs_are_not_kept_while_the_ledger_works() -> None:
    """Once a job is sealed, only the caller holds its registration, which contains a password."""
    core = ProducerCore(
        Settings.load(redis_url="redis://127.0.0.1:1/0", sealing_keys=Keyring.new("test"))
    )
    given = skypostal()
    waiting = core.accept([(0, given)])
    step = next(waiting)
    assert isinstance(step, Each)
    [command] = step.commands
    gc.collect()
    jobs = [one for one in gc.get_objects() if type(one) is Job]
    assert given["idempotency_key"] in command.args
    assert given["idempotency_key"] not in [one.idempotency_key for one in jobs]
    waiting.close()

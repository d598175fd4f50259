"""Connections of commands, from the settings. Heavy modules are imported when they are needed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from worker.cli.output import note

if TYPE_CHECKING:
    from regworker.ledger import SyncLedger
    from regworker.producer import Producer, Status
    from regworker.settings import Settings
    from worker.monitoring.overview import Observer
    from worker.operations.admin_actions import AdminActions
    from worker.operations.key_rotation import Rotation


def say_which(settings: "Settings") -> None:
    """Note on stderr which ledger a command uses, if there are several and nobody chose one."""
    if settings.ledgers and "ledger" not in settings.model_fields_set:
        others = ", ".join(settings.ledgers)
        note(f"uses only the ledger {settings.ledger}; REGWORKER_LEDGER chooses another: {others}")


@contextmanager
def open_producer(settings: "Settings | None" = None) -> Iterator["Producer"]:
    """A producer, closed at the end."""
    from regworker.producer import Producer

    producer = Producer(settings)
    with producer:
        yield producer


def status_of(
    job_id: str | None, *, key: str | None = None, provider: str = "", account: str = "default"
) -> "Status":
    """A job's status. Without the key of its event, a note says so, and the rest is shown."""
    from regworker.core import ProducerCore, named
    from regworker.domain.errors import SealingError
    from regworker.ledger.steps import carry
    from regworker.sealing.keyring import Keyring
    from regworker.settings import Settings

    try:
        with open_producer() as producer:
            return producer.status(job_id, key=key, provider=provider, account=account)
    except SealingError as error:
        settings = Settings.load_for_client(sealing_keys="")
        if settings.ledgers:
            raise  # the job may be in any of them
        note(f"its event is not shown: {error}")
    with open_ledger(settings) as ledger:
        core = ProducerCore(settings, Keyring.of(settings))
        return carry(core.status(named(job_id, key, provider, account)), ledger.carry)


@contextmanager
def open_ledger(
    settings: "Settings | None" = None, *, probe: bool = False
) -> Iterator["SyncLedger"]:
    """A connection to the ledger, for a command that neither seals nor opens anything.

    `probe`: it does not say which one: a supervisor runs the command every few seconds, and its log
    keeps what it prints; or the command says it anyway.
    """
    from regworker.ledger import SyncLedger
    from regworker.settings import Settings

    # Reading published events needs no key.
    settings = settings or Settings.load_for_client(sealing_keys="")
    if not probe:
        say_which(settings)
    ledger = SyncLedger(settings.redis_url)
    try:
        yield ledger
    finally:
        ledger.close()


@contextmanager
def open_admin(ledger: str | None = None) -> Iterator["AdminActions"]:
    """An operator's connection, closed at the end; `ledger`: instead of that of the settings."""
    from regworker.settings import Settings
    from worker.operations.admin_actions import AdminActions

    settings = Settings.load(**({"ledger": ledger} if ledger else {}))
    say_which(settings)
    operator = AdminActions(settings)
    with operator:
        yield operator


@contextmanager
def open_observer(*, probe: bool = False) -> Iterator["Observer"]:
    """The reader of the whole installation's state, closed at the end; it needs no key. `probe` as
    for `open_ledger`."""
    from regworker.settings import Settings
    from worker.monitoring.overview import Observer

    settings = Settings.load_for_client(sealing_keys="")
    if not probe:
        say_which(settings)
    observer = Observer(settings)
    with observer:
        yield observer


@contextmanager
def open_rotation() -> Iterator["Rotation"]:
    """The reader of the keys in use, closed at the end."""
    from regworker.settings import Settings
    from worker.operations.key_rotation import Rotation

    settings = Settings.load()
    say_which(settings)
    rotation = Rotation(settings)
    with rotation:
        yield rotation

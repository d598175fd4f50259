"""Connections of commands, from the settings. Imports what is heavy when it is needed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from worker.errors import SettingsError

if TYPE_CHECKING:
    from worker.ledger import SyncLedger
    from worker.lookout import Lookout
    from worker.operator import Operator
    from worker.producer import Producer
    from worker.rotation import Rotation
    from worker.settings import Settings


@contextmanager
def open_producer(settings: "Settings | None" = None) -> Iterator["Producer"]:
    """A producer, closed at the end."""
    from worker.producer import Producer

    with _url_checked():
        producer = Producer(settings)
    with producer:
        yield producer


@contextmanager
def open_ledger(settings: "Settings | None" = None) -> Iterator["SyncLedger"]:
    """A connection to the ledger, for a command that neither seals nor opens anything."""
    from worker.ledger import SyncLedger
    from worker.settings import Settings

    # Whoever only reads what is published needs no key.
    settings = settings or Settings.load(sealing_keys="")
    with _url_checked():
        ledger = SyncLedger(settings.redis_url)
    try:
        yield ledger
    finally:
        ledger.close()


@contextmanager
def open_operator() -> Iterator["Operator"]:
    """An operator's connection, closed at the end."""
    from worker.operator import Operator
    from worker.settings import Settings

    settings = Settings.load()
    with _url_checked():
        operator = Operator(settings)
    with operator:
        yield operator


@contextmanager
def open_lookout() -> Iterator["Lookout"]:
    """Eyes on the whole installation, closed at the end; they need no key."""
    from worker.lookout import Lookout
    from worker.settings import Settings

    settings = Settings.load(sealing_keys="")
    with _url_checked():
        lookout = Lookout(settings)
    with lookout:
        yield lookout


@contextmanager
def open_rotation() -> Iterator["Rotation"]:
    """A look at which keys are in use, closed at the end."""
    from worker.rotation import Rotation
    from worker.settings import Settings

    settings = Settings.load()
    with _url_checked():
        rotation = Rotation(settings)
    with rotation:
        yield rotation


@contextmanager
def _url_checked() -> Iterator[None]:
    try:
        yield
    except ValueError:
        # Without redis-py's words: they can quote a part of the URL, and so of its password.
        what = "is not of the form redis://user:password@host:port/0 (percent-encode its parts)"
        raise SettingsError([("REGWORKER_REDIS_URL", what)]) from None

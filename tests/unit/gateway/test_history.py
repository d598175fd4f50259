"""The history behind the charts of the overview."""

from types import SimpleNamespace
from typing import Any

from regworker.settings import Settings
from tests.gateway.service import KEYS
from worker.gateway.pages.history import History


def test_the_first_jobs_of_an_installation_are_counted() -> None:
    """The first snapshot counts none, because it cannot know when they ended; the next ones do."""
    history = History(Settings.load(redis_url="redis://127.0.0.1:1", sealing_keys=KEYS))
    ledger: Any = SimpleNamespace(many=list)
    ended = []
    for stats in ({}, {"registered:acme:a": 3}, {"registered:acme:a": 5}):
        found: Any = SimpleNamespace(snapshot=SimpleNamespace(at=1, accounts=(), stats=stats))
        ended.append(history._point(found, ledger).ended)
    assert ended == [{}, {"acme/a": 3}, {"acme/a": 2}]

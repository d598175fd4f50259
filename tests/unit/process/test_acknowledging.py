"""Acknowledgements on a connection that is gone."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from celery.bootsteps import CLOSE, RUN

from worker.process.consumer import Consumer


class Lost:
    """A message whose connection is gone."""

    channel = None

    def ack(self) -> None:
        """Fails."""
        raise ConnectionError


@pytest.mark.parametrize("state", [RUN, CLOSE])
def test_a_lost_acknowledgement_makes_a_worker_reconnect_unless_it_stops(state: int) -> None:
    """While it stops, the error would keep other acknowledgements and steps from their turn."""
    soon: list[Callable[[], Any]] = []
    consumer: Any = object.__new__(Consumer)
    consumer.hub = SimpleNamespace(call_soon=soon.append)
    consumer.connection_errors = (ConnectionError,)
    consumer.blueprint = SimpleNamespace(state=state)
    consumer.call_soon_ack(Lost().ack)
    [acknowledge] = soon
    if state == RUN:
        with pytest.raises(ConnectionError):
            acknowledge()
    else:
        acknowledge()

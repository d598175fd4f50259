"""How an item of a Redis list is read."""

import json
from typing import Any

import pytest
from kombu.utils.json import dumps

from worker.broker.envelopes import MALFORMED, envelope

QUEUE = "registrations"


def item(body: Any, **properties: Any) -> dict[str, Any]:
    """An envelope as a client puts it into a list."""
    return {
        "body": body,
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"task": "registrations.register", "id": "1"},
        "properties": {
            "delivery_tag": "1",
            "delivery_info": {"exchange": "", "routing_key": QUEUE},
            **properties,
        },
    }


@pytest.mark.parametrize("encoding", [{}, {"body_encoding": "utf-8"}, {"body_encoding": "base64"}])
def test_an_envelope_is_taken_as_it_is(encoding: dict[str, str]) -> None:
    """Any form of body is kept as it is."""
    given = item("W10=", **encoding)
    assert envelope(json.dumps(given).encode(), QUEUE) == given


def test_a_message_that_kombu_put_back_is_taken_again() -> None:
    """A plain text body became bytes on the way, and kombu marks that."""
    put_back = dumps(item(b"[[], {}, {}]", body_encoding=None))
    assert envelope(put_back.encode(), QUEUE)["body"] == b"[[], {}, {}]"


@pytest.mark.parametrize("thing", ["{", "[]", "1", "\\ud800", '{"body": 1}', "{}"])
def test_what_is_no_envelope_is_put_into_one(thing: str) -> None:
    """An item that is not an envelope is not lost, and does not end the worker."""
    assert envelope(thing.encode(), QUEUE)["headers"][MALFORMED]

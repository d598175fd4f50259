"""What is handed on of a message from any client."""

import json

import pytest
from kombu.message import Message

from worker.broker.wakeups import REGISTER
from worker.process.message_check import MAX_WAKE_BYTES, Messages


def register(job: dict[str, object] | str) -> None:
    """The task's parameters."""


register.run = register  # type: ignore[attr-defined]


@pytest.mark.parametrize("size", [1, MAX_WAKE_BYTES])
def test_a_request_is_handed_on_as_text_whatever_its_size(size: int) -> None:
    """With the values that Celery's clients can mark, which nothing then computes with."""
    bomb = {"__type__": "decimal", "__value__": "1E+999999999"}
    job = {"idempotency_key": "k" * size, "registration": {"quantity": bomb}}
    message = Message(
        json.dumps([[], {"job": job}, None]),
        headers={"task": REGISTER, "id": "one"},
        content_type="application/json",
        content_encoding="utf-8",
        properties={},
        delivery_info={},
    )
    Messages({REGISTER: register}).check(message)
    [text], kwargs, _ = message.decode()
    assert not kwargs
    assert json.loads(text) == {**job, "registration": {"quantity": "1E+999999999"}}

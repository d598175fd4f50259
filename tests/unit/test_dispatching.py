"""Celery's events, when their connection breaks."""

from typing import Any

from celery import Celery

from worker.celery import app as workers


class Recorder:
    """A producer that notes how it is to publish."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def publish(self, event: Any, **how: Any) -> None:
        """Called by the dispatcher."""
        self.asked.append(how)


def test_a_sign_of_life_is_tried_again_but_not_without_an_end() -> None:
    """By Celery's own way it is, at once and for ever, in the thread that takes messages."""
    app = Celery(set_as_current=False, events=workers.events_cls)
    dispatcher = app.events.Dispatcher(app.connection_for_write("memory://"), enabled=False)
    recorder = Recorder()
    dispatcher.publish("worker-heartbeat", {}, recorder, retry=True)
    [how] = recorder.asked
    assert how["retry"] is True
    assert how["retry_policy"]["max_retries"] == 2

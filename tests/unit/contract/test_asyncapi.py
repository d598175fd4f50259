"""The template of the AsyncAPI document uses the names of the code."""

from regworker.ledger.transitions import JOBS, PREFIX
from worker.broker.wakeups import CANCEL, REGISTER, REQUESTS
from worker.contract.asyncapi import template


def test_the_template_names_streams_queues_and_tasks_as_the_code_does() -> None:
    """The template is a static file, so a changed name must be changed there, too."""
    found = template()
    addresses = {name: one["address"] for name, one in found["channels"].items()}
    assert addresses["jobs"] == JOBS
    assert addresses["results"] == f"{PREFIX}results"
    assert addresses["tasks"] == REQUESTS
    assert found["channels"]["tasks"]["bindings"]["amqp"]["queue"]["name"] == REQUESTS
    messages = found["components"]["messages"]
    for name, task in {"jobTask": REGISTER, "cancelTask": CANCEL}.items():
        assert messages[name]["title"] == f"A task {task}"
        assert messages[name]["headers"]["properties"]["task"]["const"] == task
        assert f"`{task}`" in found["channels"]["tasks"]["description"]


def test_every_example_of_the_template_is_filled_in_by_the_models() -> None:
    """The template itself contains no example, schema or version."""
    found = template()
    assert found["info"]["version"] == ""
    assert found["components"]["schemas"] == {}
    kept = [one.get("examples", []) for one in found["components"]["messages"].values()]
    assert not any(kept)

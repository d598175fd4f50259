"""Every event has the form of the contract, whatever the outcome of the job."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regworker.domain.event import Event, EventData, EventType, read_event
from regworker.domain.outcome import Code, Fault, Registered
from regworker.domain.states import State
from regworker.event_builder import EventBuilder
from regworker.ledger.records import Record
from regworker.sealing import seals
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings

KEYS = Keyring.new("test")
KEYRING = Keyring.parse(KEYS)
ANNOUNCER = EventBuilder(Settings(sealing_keys=KEYS), KEYRING)

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=10,
)
OBJECTS = st.dictionaries(TEXT, JSON, max_size=4)
FAULTS = st.builds(Fault, st.sampled_from(Code), TEXT, TEXT, st.none() | TEXT)
#: Milliseconds, from 1970 to 2100; a whole second has no fraction in an event.
TIMES = st.integers(0, 4_102_444_800_000) | st.integers(0, 4_102_444_800).map(lambda s: s * 1000)


def record(**given: Any) -> Record:
    """A job during its call."""
    fields = {
        "id": "0e5f2a7e-7c1b-8f4e-9d43-5f0c1f7a9b11",
        "state": State.CALLING,
        "provider": "skypostal",
        "account": "default",
        "idempotency_key": "crm-8841",
        "lane": "live",
        "if_exists": "reject",
        "reply_to": ("results",),
        "metadata": {},
        "accepted_at": 1_790_000_000_123,
        "deadline_at": 1_790_086_400_123,
        "due_at": 0,
        "attempts": 1,
        "unknowns": 0,
        "asks": 0,
        "fence": 3,
        "lease_until": 0,
        "settle_until": 0,
        "finished_at": 0,
        "leased_by": "worker",
        "why": "",
    }
    return Record(**{**fields, **given})


def test_a_registered_customer_is_announced_as_the_contract_says() -> None:
    """The event has exactly these bytes."""
    made = ANNOUNCER.registered(
        record(metadata={"order": "A-17", "note": None}),
        1_790_000_001_000,
        Registered({"customer_box_id": 811111, "customer_key": "Zoë="}),
    )
    assert made.event_id == "0e5f2a7e-7c1b-8f4e-9d43-5f0c1f7a9b11.registered"
    assert made.event.decode() == (
        '{"specversion":"1.0","id":"0e5f2a7e-7c1b-8f4e-9d43-5f0c1f7a9b11.registered",'
        '"source":"/registration-worker","type":"registration.registered",'
        '"subject":"0e5f2a7e-7c1b-8f4e-9d43-5f0c1f7a9b11","time":"2026-09-21T14:13:21Z",'
        '"datacontenttype":"application/json","data":{'
        '"job_id":"0e5f2a7e-7c1b-8f4e-9d43-5f0c1f7a9b11","idempotency_key":"crm-8841",'
        '"provider":"skypostal","account":"default","attempts":1,"recovered":false,'
        '"accepted_at":"2026-09-21T14:13:20.123000Z","finished_at":"2026-09-21T14:13:21Z",'
        '"metadata":{"order":"A-17","note":null},'
        '"outcome":{"customer_box_id":811111,"customer_key":"Zoë="}}}'
    )
    assert KEYRING.open(made.sealed, seals.event(made.event_id, "results")) == made.event


def test_a_record_keeps_of_an_event_what_it_does_not_say_itself() -> None:
    """The stored part has no field that the record or the event's form already has."""
    made = ANNOUNCER.registered(
        record(metadata={"order": "A-17"}),
        1_790_000_001_000.4,
        Registered({"customer_box_id": 811111, "customer_key": "Zoë="}, recovered=True),
    )
    assert KEYRING.open(made.kept, seals.kept(made.event_id.partition(".")[0])).decode() == (
        '{"type":"registered","source":"/registration-worker","at":1790000001000,'
        '"attempts":1,"reopened":0,'
        '"outcome":{"customer_box_id":811111,"customer_key":"Zoë="},"recovered":true}'
    )


def test_a_late_fact_is_told_again_as_it_was_told_first() -> None:
    """The event has its first id and content, whatever claims and attempts follow."""
    stale = record()
    made = ANNOUNCER.registered(stale, 1_790_000_001_000, Registered({}))
    over = replace(stale, fence=7, reopened=1, attempts=4, asks=2, event=made.kept)
    assert ANNOUNCER.last(over) == read_event(made.event)


@pytest.mark.parametrize("reopened", [0, 2])
def test_an_end_that_the_ledger_forgot_is_published_again_under_the_same_id(reopened: int) -> None:
    """The id depends neither on the claim and its fence nor on the attempts."""
    first = record(reopened=reopened)
    again = replace(first, fence=9, attempts=5, unknowns=1, asks=3)
    ids = {
        ANNOUNCER.registered(one, at, Registered({})).event_id
        for one, at in ((first, 1_790_000_001_000), (again, 1_790_000_099_000))
    }
    assert len(ids) == 1


def test_each_time_that_a_job_is_reopened_its_events_get_other_ids() -> None:
    """A consumer that drops repeats must not drop the second review, or the second end."""
    ids = [
        ANNOUNCER.failed(kind, record(reopened=reopened), 1_790_000_001_000, ()).event_id
        for reopened in range(3)
        for kind in (EventType.REVIEW, EventType.ABANDONED)
    ]
    assert len(set(ids)) == len(ids)


@given(
    kind=st.sampled_from(EventType),
    errors=st.lists(FAULTS, max_size=3).map(tuple),
    outcome=st.none() | st.builds(Registered, OBJECTS, st.booleans()),
    metadata=OBJECTS,
    key=TEXT,
    accepted_at=TIMES,
    at=TIMES,
)
def test_events_are_what_their_model_would_write(
    kind: EventType,
    errors: tuple[Fault, ...],
    outcome: Registered | None,
    metadata: dict[str, Any],
    key: str,
    accepted_at: int,
    at: float,
) -> None:
    """If the model reads an event and writes it again, the bytes are the same."""
    job = record(metadata=metadata, idempotency_key=key, accepted_at=accepted_at)
    if outcome is not None:
        made = ANNOUNCER.registered(job, at, outcome)
    else:
        made = ANNOUNCER.failed(kind, job, at, errors)
    event = Event.model_validate_json(made.event)
    assert ANNOUNCER.last(replace(job, event=made.kept)) == read_event(made.event)
    assert isinstance(event.data, EventData)
    assert event.encode() == made.event
    assert (event.id, event.data.idempotency_key) == (made.event_id, key)
    if not _odd(metadata):
        assert event.data.metadata == metadata


def _odd(value: Any) -> bool:
    # JSON cannot express these; the event has null.
    match value:
        case float():
            return not math.isfinite(value)
        case dict():
            return any(map(_odd, value.values()))
        case list():
            return any(map(_odd, value))
        case _:
            return False

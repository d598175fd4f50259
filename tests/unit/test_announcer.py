"""What is announced has the form of the contract, whatever became of a job."""

import math
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from worker.announcer import Announcer
from worker.event import Event, EventData, EventType, read_event
from worker.ledger.records import Record
from worker.lifecycle import State
from worker.outcome import Code, Fault, Registered
from worker.sealing import Keyring
from worker.settings import Settings

KEYS = Keyring.new("test")
KEYRING = Keyring.parse(KEYS)
ANNOUNCER = Announcer(Settings(sealing_keys=KEYS), KEYRING)

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
    """A job, whose call has just come back."""
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
    """Byte for byte."""
    told = ANNOUNCER.registered(
        record(metadata={"order": "A-17", "note": None}),
        1_790_000_001_000,
        Registered({"customer_box_id": 811111, "customer_key": "Zoë="}),
    )
    assert told.event_id == "0e5f2a7e-7c1b-8f4e-9d43-5f0c1f7a9b11.3.registered"
    assert told.event.decode() == (
        '{"specversion":"1.0","id":"0e5f2a7e-7c1b-8f4e-9d43-5f0c1f7a9b11.3.registered",'
        '"source":"/registration-worker","type":"registration.registered",'
        '"subject":"0e5f2a7e-7c1b-8f4e-9d43-5f0c1f7a9b11","time":"2026-09-21T14:13:21Z",'
        '"datacontenttype":"application/json","data":{'
        '"job_id":"0e5f2a7e-7c1b-8f4e-9d43-5f0c1f7a9b11","idempotency_key":"crm-8841",'
        '"provider":"skypostal","account":"default","attempts":1,"recovered":false,'
        '"accepted_at":"2026-09-21T14:13:20.123000Z","finished_at":"2026-09-21T14:13:21Z",'
        '"metadata":{"order":"A-17","note":null},'
        '"outcome":{"customer_box_id":811111,"customer_key":"Zoë="}}}'
    )
    assert KEYRING.open(told.sealed) == told.event


def test_a_record_keeps_of_an_event_what_it_does_not_say_itself() -> None:
    """Nor does it keep the event's form."""
    told = ANNOUNCER.registered(
        record(metadata={"order": "A-17"}),
        1_790_000_001_000.4,
        Registered({"customer_box_id": 811111, "customer_key": "Zoë="}, recovered=True),
    )
    assert KEYRING.open(told.kept).decode() == (
        '{"type":"registered","fence":3,"source":"/registration-worker","at":1790000001000,'
        '"attempts":1,"outcome":{"customer_box_id":811111,"customer_key":"Zoë="},"recovered":true}'
    )


def test_a_late_fact_is_told_again_as_it_was_told_first() -> None:
    """By the claim it came from, whatever claims and attempts the record has seen since."""
    stale = record()
    told = ANNOUNCER.registered(stale, 1_790_000_001_000, Registered({}))
    over = replace(stale, fence=7, attempts=4, asks=2, event=told.kept)
    assert ANNOUNCER.last(over) == read_event(told.event)


def test_an_event_that_the_first_version_kept_is_read() -> None:
    """It kept the whole of it."""
    job = record()
    told = ANNOUNCER.failed(EventType.CANCELLED, job, 1_790_000_001_000, ())
    assert ANNOUNCER.last(replace(job, event=told.sealed)) == read_event(told.event)
    assert ANNOUNCER.last(job) is None


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
    """Read by the model and written by it again, an event has the same bytes."""
    job = record(metadata=metadata, idempotency_key=key, accepted_at=accepted_at)
    if outcome is not None:
        told = ANNOUNCER.registered(job, at, outcome)
    else:
        told = ANNOUNCER.failed(kind, job, at, errors)
    event = Event.model_validate_json(told.event)
    assert ANNOUNCER.last(replace(job, event=told.kept)) == read_event(told.event)
    assert isinstance(event.data, EventData)
    assert event.encode() == told.event
    assert (event.id, event.data.idempotency_key) == (told.event_id, key)
    if not _odd(metadata):
        assert event.data.metadata == metadata


def _odd(value: Any) -> bool:
    # What JSON has no word for, and an event tells as null.
    match value:
        case float():
            return not math.isfinite(value)
        case dict():
            return any(map(_odd, value.values()))
        case list():
            return any(map(_odd, value))
        case _:
            return False

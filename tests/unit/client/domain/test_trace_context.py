"""The header `traceparent`: which values are accepted, and which are ignored."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regworker.domain.job import Job
from regworker.domain.trace_context import trace_of, traceparent
from regworker.tracing import HEADERS, MOST, carried, carried_by, enqueuing, onward
from tests.integration.jobs import skypostal

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    ("given_", "read"),
    [
        (GOOD, GOOD),
        (f"00-{TRACE}-{SPAN}-00", f"00-{TRACE}-{SPAN}-00"),
        (f"00-{TRACE}-{SPAN}-ff", f"00-{TRACE}-{SPAN}-03"),  # flags that are not defined yet
        (f"cc-{TRACE}-{SPAN}-01-what-comes-then", GOOD),  # a version that does not exist yet
        (f"cc-{TRACE}-{SPAN}-01", GOOD),
    ],
)
def test_a_well_formed_one_is_taken_as_version_00(given_: str, read: str) -> None:
    """A later version is read as far as version 00 defines it."""
    assert traceparent(given_) == read
    assert trace_of(read) == TRACE


@pytest.mark.parametrize(
    "bad",
    [
        *("", "00", GOOD.upper(), f" {GOOD}", f"{GOOD}\n", f"{GOOD}-more", GOOD[:-1], f"{GOOD}0"),
        *(f"ff-{TRACE}-{SPAN}-01", f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01"),
        *(
            f"cc-{TRACE}-{SPAN}-01.more",
            f"cc-{TRACE}-{SPAN}-01-{'x' * 9999}",
            f"0-{TRACE}-{SPAN}-01",
        ),
        *(None, 1, b"00", [GOOD], {"traceparent": GOOD}, float("nan")),
    ],
)
def test_a_malformed_one_counts_as_none(bad: Any) -> None:
    """Neither as a field nor as a header does it make a job invalid."""
    assert traceparent(bad) == ""
    assert Job.model_validate({**skypostal(), "traceparent": bad}).traceparent is None
    assert enqueuing(bad, bad).trace == ""
    assert carried({"traceparent": bad}) == ""


@given(
    st.one_of(st.text(), st.binary(), st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-.."))
)
def test_what_is_taken_is_well_formed(anything: Any) -> None:
    """Any text gives nothing, or a header that others can read."""
    found = traceparent(anything)
    assert traceparent(found) == found


def test_the_jobs_own_goes_before_what_came_beside_it() -> None:
    """The header beside the job is used only if the job has none; a repeat in another trace is
    the same job."""
    other = f"00-{'1' * 32}-{SPAN}-01"
    assert carried_by(enqueuing(GOOD, other).trace) == GOOD
    assert carried_by(enqueuing(None, other).trace) == other
    first, second = (
        Job.model_validate({**skypostal(), "traceparent": one}) for one in (GOOD, other)
    )
    assert first.model_copy(update={"idempotency_key": second.idempotency_key}).content(
        b"{}"
    ) == second.content(b"{}")


@given(st.dictionaries(st.sampled_from(HEADERS), st.text(max_size=3 * MOST), max_size=3))
def test_what_a_message_carries_is_bounded(headers: dict[str, str]) -> None:
    """Baggage is dropped first, so that what is stored with a job fits its limit."""
    kept = carried(headers)
    assert len(kept) <= MOST
    assert set(json.loads(kept) if kept else {}) <= set(HEADERS)


@pytest.mark.parametrize(
    "trace", ["", "{}", "[]", "1", "{", '{"traceparent": 5}', '{"traceparent": "x"}']
)
def test_what_is_kept_and_unreadable_is_sent_on_as_none(trace: str) -> None:
    """A changed record does not make an attempt fail."""
    assert onward(trace) == ""

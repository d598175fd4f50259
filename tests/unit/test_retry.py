"""When to try again."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.retry import Backoff, parse_retry_after

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)

tries = st.integers(1, 10_000)
chances = st.floats(0, 1, exclude_max=True)


@given(tries, chances)
def test_a_delay_is_never_longer_than_the_cap(tries: int, chance: float) -> None:
    """However often a call failed, the next try is at most `cap` away."""
    assert 0 <= Backoff(base=2, cap=300).delay(tries, chance) <= 300


@given(tries)
def test_the_longest_delay_never_shrinks(tries: int) -> None:
    """Each failure lets the next wait be as long as the last, or longer."""
    backoff = Backoff(base=2, cap=300)
    assert backoff.delay(tries, 0.999) <= backoff.delay(tries + 1, 0.999)


@pytest.mark.parametrize(("tries", "longest"), [(1, 2), (2, 4), (3, 8), (8, 256), (9, 300)])
def test_the_longest_delay_doubles(tries: int, longest: float) -> None:
    """The first wait is at most `base`; every further one at most twice the last."""
    assert Backoff(base=2, cap=300).delay(tries, 0.5) == longest / 2


@given(tries, chances, st.floats(0, 1e9))
def test_never_sooner_than_the_provider_asked(tries: int, chance: float, asked: float) -> None:
    """Retry-After is kept, also where it is longer than the cap."""
    assert Backoff(base=2, cap=300).after(tries, chance, asked) >= asked


def test_those_told_the_same_second_come_back_apart() -> None:
    """Jitter is added to Retry-After, too."""
    backoff = Backoff(base=2, cap=300)
    assert backoff.after(1, 0.25, 60) != backoff.after(1, 0.75, 60)


def test_without_retry_after_the_backoff_alone_counts() -> None:
    """A provider that says nothing is asked again by our own schedule."""
    backoff = Backoff(base=2, cap=300)
    assert backoff.after(3, 0.5, None) == backoff.delay(3, 0.5)


@given(st.integers(0, 999_999_999))
def test_retry_after_in_seconds(seconds: int) -> None:
    """`Retry-After: 120` is two minutes."""
    assert parse_retry_after(f" {seconds} ") == seconds


@given(st.integers(0, 10**7))
def test_retry_after_as_a_date(seconds: int) -> None:
    """`Retry-After: Sun, 01 Mar 2026 12:02:00 GMT` is as long as it is until then."""
    value = format_datetime(NOW + timedelta(seconds=seconds), usegmt=True)
    assert parse_retry_after(value, NOW) == seconds


def test_a_date_without_a_zone_is_utc() -> None:
    """`-0000` says that the zone is unknown; dates of HTTP are in UTC."""
    assert parse_retry_after("Sun, 01 Mar 2026 12:02:00 -0000", NOW) == 120


def test_a_date_that_has_passed_is_no_wait() -> None:
    """A provider whose clock is behind doesn't make us travel in time."""
    assert parse_retry_after("Sun, 01 Mar 2026 11:00:00 GMT", NOW) == 0


@pytest.mark.parametrize("value", [None, "", "soon", "-5", "1.5", "²", "١٢", "Sun, 99 Mar 2026"])
def test_a_retry_after_that_is_none_is_ignored(value: str | None) -> None:
    """What cannot be read asks for nothing."""
    assert parse_retry_after(value) is None


@given(st.one_of(st.text(), st.text("0123456789 :+-,MonJaGT", max_size=40)))
def test_no_header_breaks_the_reading(value: str) -> None:
    """Any text gives a wait or none, and never an error."""
    found = parse_retry_after(value)
    assert found is None or found >= 0

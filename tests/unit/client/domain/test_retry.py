"""Retry delays."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regworker.domain.retry import LONGEST_WAIT, Backoff, parse_retry_after

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)

tries = st.integers(1, 10_000)
chances = st.floats(0, 1, exclude_max=True)


@given(tries, chances)
def test_a_delay_is_never_longer_than_the_cap(tries: int, chance: float) -> None:
    """After any number of failures the next attempt is at most `cap` away."""
    assert 0 <= Backoff(base=2, cap=300).delay(tries, chance) <= 300


@given(tries)
def test_the_longest_delay_never_shrinks(tries: int) -> None:
    """After each failure the longest possible delay is the same or longer."""
    backoff = Backoff(base=2, cap=300)
    assert backoff.delay(tries, 0.999) <= backoff.delay(tries + 1, 0.999)


@pytest.mark.parametrize(("tries", "longest"), [(1, 2), (2, 4), (3, 8), (8, 256), (9, 300)])
def test_the_longest_delay_doubles(tries: int, longest: float) -> None:
    """The first delay is at most `base`, and each further one at most twice the one before."""
    assert Backoff(base=2, cap=300).delay(tries, 0.5) == longest / 2


@given(tries, chances, st.floats(0, 1e9))
def test_never_sooner_than_the_provider_asked(tries: int, chance: float, asked: float) -> None:
    """The delay is never shorter than Retry-After, even if that is longer than the cap."""
    assert Backoff(base=2, cap=300).after(tries, chance, asked) >= asked


def test_those_told_the_same_second_come_back_apart() -> None:
    """Retry-After gets jitter, too."""
    backoff = Backoff(base=2, cap=300)
    assert backoff.after(1, 0.25, 60) != backoff.after(1, 0.75, 60)


def test_without_retry_after_the_backoff_alone_counts() -> None:
    """Without Retry-After the delay follows our own schedule."""
    backoff = Backoff(base=2, cap=300)
    assert backoff.after(3, 0.5, None) == backoff.delay(3, 0.5)


@given(st.integers(0, 86400))
def test_retry_after_in_seconds(seconds: int) -> None:
    """`Retry-After: 120` is two minutes."""
    assert parse_retry_after(f" {seconds} ") == seconds


@given(st.integers(0, 86400))
def test_retry_after_as_a_date(seconds: int) -> None:
    """`Retry-After: Sun, 01 Mar 2026 12:02:00 GMT` is the time until then."""
    value = format_datetime(NOW + timedelta(seconds=seconds), usegmt=True)
    assert parse_retry_after(value, NOW) == seconds


def test_a_date_without_a_zone_is_utc() -> None:
    """`-0000` means an unknown zone; dates in HTTP are in UTC."""
    assert parse_retry_after("Sun, 01 Mar 2026 12:02:00 -0000", NOW) == 120


def test_a_date_that_has_passed_is_no_wait() -> None:
    """A date in the past gives a delay of zero."""
    assert parse_retry_after("Sun, 01 Mar 2026 11:00:00 GMT", NOW) == 0


@pytest.mark.parametrize(
    "value",
    [
        *(None, "", "soon", "-5", "²", "١٢", "Sun, 99 Mar 2026", "nan", "inf", "1e3", "0x10"),
        *("5 seconds", "5;6", "5,soon", "Sun, 01 Mar 2026 12:00:00 +9999999999", "1.2.3", ","),
    ],
)
def test_a_retry_after_that_is_none_is_ignored(value: str | None) -> None:
    """An unreadable value gives no delay."""
    assert parse_retry_after(value, NOW) is None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("1.5", 1.5),
        ("0", 0),
        ("007", 7),
        ("120, 120", 120),
        ("5, 60", 60),
        ("5,", 5),
        (", 5 ,\t, 60", 60),
        ("99999999999999999999", LONGEST_WAIT),
        ("9" * 5000, LONGEST_WAIT),
        ("Fri, 31 Dec 9999 23:59:59 GMT", LONGEST_WAIT),
        ("Fri, 31 Dec 9999 23:59:59 -2359", LONGEST_WAIT),
        ("Mon, 01 Jan 0001 00:00:00 +2359", 0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
    ],
)
def test_an_odd_retry_after_is_read_as_it_is_meant(value: str, seconds: float) -> None:
    """Servers send fractions, repeated values, and years in the far future."""
    assert parse_retry_after(value, NOW) == seconds


@given(st.one_of(st.text(), st.text("0123456789. :+-,MonJaGT", max_size=40)))
def test_no_header_breaks_the_reading(value: str) -> None:
    """Any text gives a delay or none, and never an error."""
    found = parse_retry_after(value)
    assert found is None or 0 <= found <= LONGEST_WAIT

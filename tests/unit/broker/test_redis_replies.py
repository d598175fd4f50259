"""A value that is too large is left out of a reply before it is read."""

from typing import Any

import hiredis
from hypothesis import given
from hypothesis import strategies as st

from worker.broker.envelopes import MAX_VALUE_BYTES, left_out
from worker.broker.redis_replies import LARGE, MOST_BYTES, Sieve

SMALL = st.binary(max_size=50) | st.sampled_from([b"$999999999\r\n", b"*5\r\n", b"\r\n", b"$"])
VALUES = st.recursive(
    SMALL | st.integers(-5, 5) | st.none() | st.builds(lambda n: b"x" * n, st.just(LARGE)),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=12,
)


def spelt(value: Any) -> bytes:
    """A reply as the server writes it."""
    match value:
        case None:
            return b"$-1\r\n"
        case bytes():
            return b"$%d\r\n%b\r\n" % (len(value), value)
        case int():
            return b":%d\r\n" % value
        case _:
            return b"*%d\r\n" % len(value) + b"".join(map(spelt, value))


def read(stream: bytes, cuts: list[int]) -> list[Any]:
    """The replies in a stream that arrives in pieces."""
    reader = hiredis.Reader(notEnoughData=...)
    sieve = Sieve(reader)
    ends = sorted({min(cut, len(stream)) for cut in cuts} | {len(stream)})
    found, start = [], 0
    for end in ends:
        sieve.feed(bytearray(stream), start, end - start)
        start = end
        while (reply := sieve.gets()) is not ...:
            found.append(reply)
    return found


@given(st.lists(VALUES, min_size=1, max_size=4), st.lists(st.integers(0, 400), max_size=8))
def test_what_is_small_is_read_as_it_came(replies: list[Any], cuts: list[int]) -> None:
    """Replies with small values are unchanged, whatever the pieces and the values."""
    assert read(b"".join(map(spelt, replies)), cuts) == replies


@given(st.lists(st.integers(0, 3 * MAX_VALUE_BYTES), max_size=8))
def test_a_value_that_is_too_large_is_left_out_and_all_else_is_read(cuts: list[int]) -> None:
    """A short note with its size replaces it."""
    stream = spelt([b"queue", b"x" * (MAX_VALUE_BYTES + 1), 7]) + spelt(b"next")
    [[queue, value, seven], following] = read(stream, cuts)
    assert (queue, seven, following) == (b"queue", 7, b"next")
    assert left_out(value) == MAX_VALUE_BYTES + 1
    assert len(value) < 100


def test_many_large_values_of_one_reply_are_bounded_together() -> None:
    """Small values among them are kept, and the next reply has the whole limit again."""
    one = b"x" * (MAX_VALUE_BYTES // 2)
    values = read(spelt([one] * 9 + [b"small"]) + spelt([one, one]), [])
    assert sum(map(len, values[0])) <= MOST_BYTES + 1000
    assert [left_out(value) for value in values[0][-2:]] == [len(one), None]
    assert values[1] == [one, one]


def test_replies_of_the_newer_protocol_are_followed() -> None:
    """Maps, pushes, verbatim strings and nulls of RESP3 are read."""
    first = b"%1\r\n+key\r\n$1\r\nv\r\n" + b"=5\r\ntxt:x\r\n"
    stream = first + b">2\r\n+a\r\n$1\r\nb\r\n" + b"_\r\n"
    assert len(read(stream + spelt(b"end"), [3, 9, 20])) == 5

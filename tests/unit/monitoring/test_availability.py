"""The doctor's findings on replicas and Sentinels, with advice for each."""

import pytest

from worker.monitoring import availability

ONLINE = {f"slave{number}": {"state": "online"} for number in range(2)}


@pytest.mark.parametrize(
    ("least", "wanted", "level", "words"),
    [
        (2, 2, "ok", "2, and REGWORKER_REPLICAS is 2"),
        (2, 1, "ok", "2, and REGWORKER_REPLICAS is 1"),
        (0, 2, "warning", "set `min-replicas-to-write 2`"),
        (1, 2, "warning", "set `min-replicas-to-write 2`"),
        (3, 2, "unsafe", "all writes fail"),
        (None, 1, "warning", "not set"),
    ],
)
def test_the_servers_own_limit_is_held_against_ours(
    least: int | None, wanted: int, level: str, words: str
) -> None:
    """With two replicas connected, the server's limit is too low, too high, or right."""
    found = availability.writes(least, ONLINE, wanted)
    assert found.level == level
    assert words in f"{found.found} {found.advice}"


def test_a_limit_whose_value_is_hidden_is_seen_all_the_same() -> None:
    """`INFO` shows that a limit is set, also without the right to read the configuration."""
    found = availability.writes(None, {**ONLINE, "min_slaves_good_slaves": 2}, 2)
    assert (found.level, found.found.partition(" (")[0]) == ("ok", "set")


def test_fewer_than_all_replicas_may_forget() -> None:
    """If only one of two replicas has a write, the other one may be promoted."""
    found = availability.majority(2, 1)
    assert found.level == "warning"
    assert "set REGWORKER_REPLICAS=2" in found.advice
    assert availability.majority(2, 2).level == "ok"


@pytest.mark.parametrize(
    ("others", "agree", "level", "words"),
    [
        (2, 2, "ok", "a failover needs 2"),
        (4, 3, "ok", "a failover needs 3"),
        (0, 1, "warning", "run 3"),
        (1, 2, "warning", "run 3"),
        (2, 1, "warning", "sentinel set ledger quorum 2"),
        (2, 3, "warning", "if 1 are down, there is no failover"),
    ],
)
def test_the_quorum_is_held_against_the_majority(
    others: int, agree: int, level: str, words: str
) -> None:
    """A failover needs the majority of all Sentinels, whatever the quorum is."""
    reply = {"name": "ledger", "num-other-sentinels": str(others), "quorum": str(agree)}
    found = availability.quorum(reply)
    assert found.level == level
    assert words in f"{found.found} {found.advice}"


def test_sentinels_that_are_away_are_named() -> None:
    """The finding is short, and has advice."""
    found = availability.quorum("no Sentinel answered (ConnectionError)")
    assert (found.level, found.advice) == (
        "warning",
        "start them, or set the addresses of those that run",
    )

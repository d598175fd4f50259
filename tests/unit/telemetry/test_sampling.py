"""Log lines about junk: the first of each kind are logged, and the others counted."""

from worker.telemetry.sampling import MOST, PERIOD, Sampled


def test_the_first_of_each_kind_are_said_and_the_others_counted() -> None:
    """Each period starts anew; each kind has its own limit."""
    lines: list[tuple[str, tuple[object, ...], dict[str, object]]] = []
    now = [0.0]

    def warn(line: str, *parts: object, **facts: object) -> None:
        lines.append((line, parts, facts))

    warn_of = Sampled(warn, lambda: now[0])
    for number in range(1000):
        warn_of("refused", entry=number)
    warn_of("%s of %s", "one", "two")
    assert [line for line, _, _ in lines] == ["refused"] * MOST + ["%s of %s"]
    assert lines[-1][1] == ("one", "two")
    lines.clear()
    now[0] += PERIOD
    warn_of("refused", entry=1000)
    warn_of("%s of %s", "three", "four")
    more, first, other = lines
    assert more == (f"refused (and {1000 - MOST} more of these)", (), {"entry": 1000})
    assert first == ("refused", (), {"entry": 1000})
    assert other == ("%s of %s", ("three", "four"), {})

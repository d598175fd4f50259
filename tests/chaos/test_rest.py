"""A run is waited for as long as jobs end, and the clocks of its servers can be set."""

import time
from pathlib import Path

import redis

from tests.chaos import skew
from tests.chaos.processes import Store
from tests.chaos.rest import LONGEST, Patience
from worker.cli.local import stack

#: Seconds. Far more than anything here takes.
PATIENCE = 30.0


class Time:
    """A clock that tests advance."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """The current time."""
        return self.now


def test_as_long_as_less_is_left_there_is_patience() -> None:
    """However long a backlog takes: each job that ends counts."""
    clock = Time()
    patience = Patience(duration=1000, quiet=10, now=clock)
    for left in range(100, 0, -1):
        patience.see(left)
        clock.now += 9
        assert not patience.out


def test_there_is_none_when_nothing_has_moved() -> None:
    """Nor if the number only goes up and down: the same job is retried again and again."""
    clock = Time()
    patience = Patience(duration=1000, quiet=10, now=clock)
    for left in (3, 4, 3, 4, 3):
        assert not patience.out
        patience.see(left)
        clock.now += 2.5
    assert "nothing has moved" in patience.out


def test_there_is_none_without_end() -> None:
    """A run that takes longer to finish than it lasted was overloaded."""
    clock = Time()
    patience = Patience(duration=100, quiet=10, now=clock)
    for left in range(1000, 0, -1):
        patience.see(left)
        clock.now += 9
        if patience.out:
            break
    assert "not at rest" in patience.out
    assert LONGEST + 100 <= clock.now < LONGEST + 200


def test_a_file_says_how_far_the_clock_is_ahead(tmp_path: Path) -> None:
    """In the format of libfaketime."""
    clock = skew.Clock(tmp_path, Path("libfaketimeMT.so.1"))
    assert (tmp_path / "clock").read_text() == "+0\n"
    clock.set(2.5)
    assert (tmp_path / "clock").read_text() == "+2.5\n"


def test_the_servers_clock_jumps_forth_and_back(tmp_path: Path) -> None:
    """If libfaketime is installed; otherwise a run says how to install it."""
    library = skew.library()
    if library is None:
        assert "apt-get install faketime" in skew.MISSING
        return
    clock = skew.Clock(tmp_path, library)
    store = Store(tmp_path / "store", durable=True, clock=clock)
    store.start()
    try:
        with redis.Redis.from_url(store.url) as server:
            clock.set(3600)
            # Valkey reads the clock once for everything that it reads at a time.
            stack.until(lambda: _ahead(server) > 3000, "an hour ahead", PATIENCE)
            store.kill()
            store.start()
            assert _ahead(server) > 3000, "it started by another clock"
            clock.set(0)
            stack.until(lambda: _ahead(server) < 600, "back again", PATIENCE)
    finally:
        store.kill()


def _ahead(server: "redis.Redis") -> float:
    seconds, _ = server.time()
    return float(seconds) - time.time()


def test_what_the_way_to_a_server_takes_is_no_jump_of_its_clock() -> None:
    """However slow the machine is: only what that cannot explain counts."""

    class Server:
        def __init__(self) -> None:
            self.ahead, self.slow = 0.0, 0.0

        def time(self) -> tuple[int, int]:
            shown = time.time() + self.ahead
            time.sleep(self.slow)
            return int(shown), int(shown % 1 * 1e6)

    server, watch = Server(), skew.Watch()
    for server.slow in (0.0, 0.2, 0.0):
        watch.look(server)  # type: ignore[arg-type]
        assert watch.moved == 0
    server.ahead, server.slow = 60.0, 0.1
    watch.look(server)  # type: ignore[arg-type]
    assert 50 < watch.moved <= 60

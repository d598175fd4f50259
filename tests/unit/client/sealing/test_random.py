"""Random values are never the same, whoever asks and however a process came to be."""

import ctypes
import os
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from regworker.sealing.random import PIECES, SIZE, nonce

MANY = 3 * PIECES


def test_values_are_as_long_as_asked_and_all_different() -> None:
    """Over several refills, of each length."""
    found = [nonce(12) for _ in range(MANY)]
    assert {len(one) for one in found} == {12}
    assert len(set(found)) == MANY
    assert {len(nonce(size)) for size in range(SIZE + 1)} == set(range(SIZE + 1))
    with pytest.raises(ValueError, match="at most"):
        nonce(SIZE + 1)


def test_threads_never_get_the_same_value() -> None:
    """Also while one of them makes new ones."""
    found: list[list[bytes]] = []
    ready = threading.Barrier(8)

    def take() -> None:
        ready.wait()
        found.append([nonce(12) for _ in range(20 * MANY)])

    threads = [threading.Thread(target=take) for _ in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len({value for values in found for value in values}) == 8 * 20 * MANY


def fork_into_another_namespace() -> int:
    """As the first process of a container within a container: both have the number 1."""
    os.getpid = lambda: 1
    nonce(12)
    return os.fork()


#: How a process may come to be; past Python as an embedding server forks.
FORKS: dict[str, Callable[[], int]] = {
    "os.fork": os.fork,
    "past Python": lambda: int(ctypes.CDLL(None).fork()),
    "into another namespace": fork_into_another_namespace,
}

FORKING = """
import sys
from tests.unit.client.sealing.test_random import FORKS, MANY
import os
from regworker.sealing.random import nonce
nonce(12)
reader, writer = os.pipe()
child = FORKS[sys.argv[1]]()
if not child:
    os.write(writer, b"".join(nonce(12) for _ in range(MANY)))
    os._exit(0)
os.close(writer)
own = {nonce(12) for _ in range(MANY)}
with open(reader, "rb") as pipe:
    read = pipe.read()
os.waitpid(child, 0)
theirs = {read[at : at + 12] for at in range(0, len(read), 12)}
assert len(theirs) == len(own) == MANY
assert not own & theirs
"""


@pytest.mark.parametrize("way", FORKS)
def test_a_forked_process_has_values_of_its_own(way: str) -> None:
    """It inherits those that its parent has not used yet, and drops them."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORKING, way], check=False)
    assert done.returncode == 0

"""Unpredictable random bytes without a call for each.

`secrets` asks the system each time, and releases the interpreter meanwhile; in a busy worker the
other thread takes it then, so that each of a job's three calls would wait. So the system's bytes
are taken for many values at once.

No two values may be the same, whoever asks: a repeated one would break the seals (AES-GCM). Threads
take whole pieces. A forked process drops those of its parent: by Python's own hook, since it may
have the same number in another namespace; and where a program forks past Python, by its number.
"""

import os
from collections import deque

#: Bytes of a piece, which are as many as any caller needs; and pieces that are made at once.
SIZE, PIECES = 16, 256

_pieces: deque[bytes] = deque()
_owner = 0


def nonce(size: int) -> bytes:
    """So many random bytes, `SIZE` at most."""
    if size > SIZE:
        raise ValueError(f"at most {SIZE} bytes, not {size}")
    while True:
        if _owner != os.getpid():
            _begin()
        try:
            return _pieces.popleft()[:size]
        except IndexError:
            made = os.urandom(SIZE * PIECES)
            _pieces.extend([made[at : at + SIZE] for at in range(0, len(made), SIZE)])


def _begin() -> None:
    global _owner
    _pieces.clear()
    _owner = os.getpid()


os.register_at_fork(after_in_child=_begin)

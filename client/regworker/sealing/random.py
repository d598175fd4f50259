"""Unpredictable random bytes without a system call.

`secrets` asks the system each time, and releases the interpreter meanwhile; in a busy worker the
other thread takes it then, so that each of a job's three calls would wait. OpenSSL's generator is
seeded by the system, and seeded again in a forked process.
"""

from ssl import RAND_bytes


def nonce(size: int) -> bytes:
    """So many random bytes."""
    return RAND_bytes(size)

"""Random bytes that nobody can guess, without a stop.

`secrets` asks the system each time, and lets go of the interpreter meanwhile; in a busy worker the
other thread takes it then, so that each of a job's three would be a wait. OpenSSL's generator is
seeded by the system, and seeded again in a process that was forked off.
"""

from ssl import RAND_bytes


def nonce(size: int) -> bytes:
    """So many random bytes."""
    return RAND_bytes(size)

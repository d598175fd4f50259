"""How many files and connections this process may have open."""

import resource
from contextlib import suppress


def allow_files(count: int) -> None:
    """Let this process open so many files, if the system allows it. The usual limit is 1,024; on
    macOS it is 256."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft == resource.RLIM_INFINITY or soft >= most:
        return
    # macOS refuses what is above a limit of its kernel's, which it does not tell here.
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))

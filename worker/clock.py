"""The time that leases are measured by in this process."""

import time
from collections.abc import Callable

#: Goes on while the machine sleeps, where there is such a clock: a virtual machine that was
#: suspended past its leases must find them run out when it wakes.
_BOOT = getattr(time, "CLOCK_BOOTTIME", None)


def _boottime() -> float:
    return time.clock_gettime(_BOOT) if _BOOT is not None else time.monotonic()


#: Seconds from an arbitrary start; never set back.
steady: Callable[[], float] = _boottime

"""The clock of leases in this process."""

import time
from collections.abc import Callable

#: Continues while the machine sleeps, if there is such a clock: in a virtual machine that was
#: suspended longer than its leases, they must be expired when it wakes.
_BOOT = getattr(time, "CLOCK_BOOTTIME", None)


def _boottime() -> float:
    return time.clock_gettime(_BOOT) if _BOOT is not None else time.monotonic()


#: Seconds since an arbitrary start; never set back.
steady: Callable[[], float] = _boottime

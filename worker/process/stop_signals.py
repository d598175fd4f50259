"""Which signals stop a worker: all in the same way, however often they come.

Celery ends on the second or third SIGQUIT or SIGINT at once, which cuts off calls that may have
made a customer. At SIGHUP it replaces itself by a new process, which fails if it was started with
`python -m celery`, and then ignores a SIGTERM; starting it again is the supervisor's business.
"""

import signal
from typing import Any

from celery.apps import worker as stock
from celery.platforms import EX_FAILURE

#: The signals of supervisors, terminals and `kill`; only SIGKILL ends a worker at once.
SIGNALS = ("SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP")


class Worker(stock.Worker):  # type: ignore[misc]
    """Celery's worker, which stops in order at each of these signals."""

    def install_platform_tweaks(self, worker: Any) -> None:
        """Called by Celery at its start, to handle signals."""
        ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # started by nohup
        super().install_platform_tweaks(worker)
        if ignored:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        for name in SIGNALS[:-1] if ignored else SIGNALS:
            # Without the line that Celery prints: a full pipe would block the main thread.
            stock._shutdown_handler(worker, sig=name, how="Warm", verbose=False)

    def terminate(self, in_sighandler: bool = False) -> None:
        """Called by Celery where the worker must end at once, such as without free files.

        No signal leads here, so it has failed; Celery would end with 0, and some supervisors start
        only what has failed."""
        self.exitcode: int = EX_FAILURE
        super().terminate(in_sighandler)

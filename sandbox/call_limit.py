"""A limit of calls in a sliding window."""

import threading
import time
from collections import deque
from collections.abc import Callable


class CallLimit:
    """Counts calls. Invented: that Open2b's window slides and does not count refused calls."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._lock = threading.Lock()
        self._now = now
        self._calls: deque[float] = deque()

    def admit(self, calls: int, seconds: float) -> bool:
        """Admit one more call, unless there were `calls` within the last `seconds`."""
        with self._lock:
            now = self._now()
            while self._calls and self._calls[0] <= now - seconds:
                self._calls.popleft()
            if len(self._calls) >= calls:
                return False
            self._calls.append(now)
            return True

    def clear(self) -> None:
        """Forget all calls."""
        with self._lock:
            self._calls.clear()

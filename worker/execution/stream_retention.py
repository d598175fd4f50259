"""Trims streams: entries past their retention are removed, unless a group has not read them yet."""

from collections.abc import Iterable

import structlog
from redis.exceptions import ResponseError

from regworker.ledger import AsyncLedger
from regworker.ledger.admin import trim
from regworker.ledger.transitions import AUDIT
from regworker.settings import StreamEndpoint
from worker.telemetry import alert
from worker.telemetry.redaction import name_of

log = structlog.get_logger(__name__)

#: Seconds between two turns. Entries are kept for days; a minute more does no harm.
PERIOD = 60.0

#: Seconds until the next turn while there is more to trim; other commands run in between.
PAUSE = 0.1

#: Entries trimmed at a time: a script of about a millisecond.
MOST = 500


class StreamTrimmer:
    """Trims the results streams. Every worker does so without coordination, since trimming twice
    does no harm.
    """

    def __init__(
        self, ledger: AsyncLedger, streams: Iterable[StreamEndpoint], audit: float
    ) -> None:
        """`audit`: for how many seconds the audit is kept."""
        self._audit = audit
        self._ledger = ledger
        self.use(streams)
        self._told: dict[str, tuple[str, ...]] = {}

    def use(self, streams: Iterable[StreamEndpoint]) -> None:
        """From now on, trim these streams."""
        self._retentions = {one.stream: one.retention for one in streams}
        self._retentions[AUDIT] = self._audit

    async def trim_once(self) -> float:
        """Trim old entries of each stream; return the seconds until the next turn."""
        more = False
        for stream, retention in self._retentions.items():
            try:
                dropped, holding = await self._ledger(trim(stream, retention, MOST))
            except ResponseError as error:
                # The other streams are trimmed nevertheless.
                alert("stream not trimmed", kind="stream", stream=stream, error=name_of(error))
                continue
            more = more or dropped >= MOST
            self._tell(stream, holding)
        return PAUSE if more else PERIOD

    def _tell(self, stream: str, holding: tuple[str, ...]) -> None:
        # Logged once, and again when it changes, not every minute.
        if holding != self._told.get(stream, ()):
            self._told[stream] = holding
            if holding:
                log.warning("groups hold back a stream", stream=stream, groups=holding)

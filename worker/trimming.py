"""The streams' ends: entries past their retention go, but none that a group has still to read."""

from collections.abc import Iterable

import structlog

from worker.ledger import AsyncLedger
from worker.ledger.operations import trim
from worker.settings import StreamEndpoint

log = structlog.get_logger(__name__)

#: Seconds between two looks. An entry's age is counted in days; a minute more does no harm.
PERIOD = 60.0

#: Seconds until the next look while there is more to drop: others have their turn meanwhile.
PAUSE = 0.1

#: Entries dropped at a time: a script of a millisecond or so.
MOST = 500


class StreamTrimmer:
    """Trims the streams that results are written to. Every worker does; it takes turns with none,
    since trimming twice does no harm.
    """

    def __init__(self, ledger: AsyncLedger, streams: Iterable[StreamEndpoint]) -> None:
        self._ledger = ledger
        self._retentions = {one.stream: one.retention for one in streams}
        self._told: dict[str, tuple[str, ...]] = {}

    async def trim_once(self) -> float:
        """Drop what is old from each stream; seconds until the next look."""
        more = False
        for stream, retention in self._retentions.items():
            dropped, holding = await self._ledger(trim(stream, retention, MOST))
            more = more or dropped >= MOST
            self._tell(stream, holding)
        return PAUSE if more else PERIOD

    def _tell(self, stream: str, holding: tuple[str, ...]) -> None:
        # Said once, and again when it changes; a line a minute is a line that nobody reads.
        if holding != self._told.get(stream, ()):
            self._told[stream] = holding
            if holding:
                log.warning("groups hold back a stream", stream=stream, groups=holding)

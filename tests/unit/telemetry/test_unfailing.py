"""Log lines that cannot be written."""

import errno
import io
import os

from worker.telemetry.logs import _Unfailing


def test_a_reader_that_has_ended_stops_nobody() -> None:
    """`worker | collector`, and the collector ends; or the stream is closed."""
    reader, writer = os.pipe()
    os.close(reader)
    stream = io.TextIOWrapper(os.fdopen(writer, "wb", buffering=0), write_through=True)
    lines = _Unfailing(stream)
    for _ in range(3):
        lines.write("a line\n")
        lines.flush()
    stream.close()
    lines.write("a line\n")


def test_a_full_disk_stops_nobody() -> None:
    """And lines are written again when there is room."""

    class Disk(io.StringIO):
        full = True

        def flush(self) -> None:
            if self.full:
                raise OSError(errno.ENOSPC, "no space left on device")

    disk = Disk()
    lines = _Unfailing(disk)
    lines.write("first\n")
    disk.full = False
    lines.write("second\n")
    assert disk.getvalue().endswith("second\n")

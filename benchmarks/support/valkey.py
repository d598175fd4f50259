"""A Valkey in a session of its own, its data in the working directory.

Some kernels share the cores between sessions first: the server then has a session's part, and not
that of one among the programs of a terminal. It prints `listening on URL`.
"""

import signal
from contextlib import suppress
from pathlib import Path

from worker.cli.local import stack


def main() -> None:
    """Serve until it is stopped."""
    with (
        suppress(KeyboardInterrupt),
        stack.ending_by_signal(),
        stack.valkey(Path.cwd()) as server,
    ):
        print(f"listening on {server.connection_url}", flush=True)
        signal.pause()


if __name__ == "__main__":
    main()

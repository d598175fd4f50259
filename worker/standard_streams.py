"""The streams with which a process is started."""

import os
import sys
from pathlib import Path

#: The streams, with the modes in which they are opened.
MODES = {"stdin": "r", "stdout": "w", "stderr": "w"}


def open_closed() -> None:
    """Open those that the caller has closed, to nowhere: a connection must not get their number.

    Call it before anything else is opened."""
    for name, mode in MODES.items():
        if getattr(sys, name) is None:
            nowhere = Path(os.devnull).open(mode)  # noqa: SIM115 -- to the end
            setattr(sys, name, nowhere)
            setattr(sys, f"__{name}__", nowhere)

"""What to say of a file that a setting names, and that cannot be used.

A secret may be where its file's path belongs. So a path is shown only if there is such a file.
"""

import os
from pathlib import Path

#: Names no file: the value may be a secret.
NO_FILE = "no such file: it must hold a file's path, and not the value itself"


def not_a_file(path: str | Path) -> str:
    """Why a path is not one of a file."""
    return f"is not a file: {path}" if os.path.lexists(path) else NO_FILE


def unreadable(file: str | Path, error: OSError) -> str:
    """Why a file cannot be read."""
    if not os.path.lexists(file):
        return NO_FILE
    return f"cannot be read ({error.strerror}): {file}"

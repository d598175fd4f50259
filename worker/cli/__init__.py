"""The command `regworker`: for operators, and for developers who integrate with the workers.

`app.py` has the table of commands; each is one module, imported when it is called.
"""

import sys


def main() -> int:
    """Run the command line; its exit code: 0 done, 1 failed, 2 wrong use, 130 interrupted."""
    try:
        # Imported here, so that an installation without rich and typer gets a clear message.
        from worker.cli.app import run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"typer", "rich"}:
            raise
        sys.stderr.write("regworker: needs `pip install 'registration-worker[cli]'`\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return run()


__all__ = ["main"]

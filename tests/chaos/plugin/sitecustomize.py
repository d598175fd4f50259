"""Loaded by the worker processes of a chaos run: speeds up what has no setting, and sabotage.

Production code does not use it: only these processes have it in their `PYTHONPATH`.
"""

import os
import sys
import traceback

if "CHAOS_SABOTAGE" in os.environ:
    try:
        from tests.chaos import sabotage

        sabotage.hurry()
        sabotage.apply(os.environ["CHAOS_SABOTAGE"])
    except BaseException:  # noqa: BLE001 -- Python would go on without it
        traceback.print_exc(file=sys.stderr)
        os._exit(70)

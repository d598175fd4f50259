"""Found by the worker processes of a chaos run: what no setting can make quick, and sabotage.

Production code knows nothing of it: it is on the `PYTHONPATH` of these processes alone.
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

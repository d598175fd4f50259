"""Explore the model: figures, or the shortest way to what is wrong.

`python -m tests.model [whole]`: `whole` takes the kinds of faults together, not one after another.
"""

import sys

from tests.model.explore import explore
from tests.model.model import DEFAULT, WHOLE

for name, bounds in (WHOLE if sys.argv[1:] == ["whole"] else DEFAULT).items():
    found = explore(bounds=bounds)
    print(f"{name}: {found}")  # noqa: T201
    if found.flaw:
        sys.exit(1)

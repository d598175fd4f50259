"""Explore the model: print figures, or the shortest trace to a flaw.

`python -m tests.model [whole]`: `whole` combines the kinds of faults instead of exploring one
after another."""

import sys

from tests.model.explore import explore
from tests.model.model import DEFAULT, WHOLE

for name, bounds in (WHOLE if sys.argv[1:] == ["whole"] else DEFAULT).items():
    found = explore(bounds=bounds)
    print(f"{name}: {found}")  # noqa: T201
    if found.flaw:
        sys.exit(1)

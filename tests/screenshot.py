"""`python -m tests.screenshot`: takes the pictures of the documents anew, from what really runs."""

import sys
import tempfile
from pathlib import Path

from tests.browser import browser
from tests.integration.installation import ROOT
from tests.integration.test_flower import rows, story, watched

IMAGES = ROOT / "docs" / "images"


def main() -> None:
    """Flower's page of tasks, after some jobs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # The machine's own name is nobody's business.
        options = ("--hostname", "worker-1@shop")
        with watched(folder, *options) as seen, browser(folder, 2000, 640) as page:
            for _ in range(2):
                story(seen)
            rows(page, seen)
            page.screenshot(IMAGES / "flower.png")
    sys.stdout.write(f"{IMAGES / 'flower.png'}\n")


if __name__ == "__main__":
    main()

"""`python -m tests.screenshot` takes new pictures for the documents from a running installation."""

import sys
import tempfile
from pathlib import Path

from tests.browser import Page, browser
from tests.gateway.stage import PASSWORD, Stage, pages
from tests.integration.installation import PATIENCE, ROOT
from tests.integration.jobs import open2b, skypostal
from tests.integration.test_flower import rows, story, watched
from worker.cli.local import stack
from worker.gateway.pages.history import PERIOD

IMAGES = ROOT / "docs" / "images"

#: Bursts of jobs, so that the charts have a shape.
BURSTS = (8, 20, 14, 30, 24, 10)


def main() -> None:
    """Flower's page of tasks, and the pages of `regworker serve`, each after some jobs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # The pictures must not show this machine's name.
        options = ("--hostname", "worker-1@shop")
        with watched(folder, *options) as seen, browser(folder, 2000, 640) as page:
            for _ in range(2):
                story(seen)
            rows(page, seen)
            page.screenshot(IMAGES / "flower.png")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with pages(folder) as stage, browser(folder, 1280, 900) as page:
            take(stage, page)
    sys.stdout.write("".join(f"{file}\n" for file in sorted(IMAGES.glob("*.png"))))


def take(stage: Stage, page: Page) -> None:
    """Take the pictures of the pages."""
    page.open(f"{stage.url}/")
    page.run("document.querySelector('#name').focus()")
    page.press("jane", "Tab", PASSWORD)
    page.leave(lambda: page.press("Enter"), "the overview")
    for burst in BURSTS:
        for number in range(burst):
            make = skypostal if number % 3 else open2b
            stage.here.producer.enqueue(make())
        seen = charted(page, stage)
        stack.until(lambda seen=seen: charted(page, stage) > seen, "a look", PATIENCE + PERIOD)
    page.screenshot(IMAGES / "pages-overview.png", whole=True)
    page.open(f"{stage.url}/jobs/{stage.jobs['review']}")
    page.run("document.querySelector('.choices details').open = true")
    page.screenshot(IMAGES / "pages-review.png", whole=True)
    for number in range(2001, 2004):
        stage.in_review(f"order-{number}")
    page.open(f"{stage.url}/reviews")
    page.run("document.querySelector('details.acts').open = true")
    page.run("document.querySelector('#many-act').value = 'review.resend'")
    page.run("document.querySelector('#many-why').value = 'the provider answers again'")
    page.leave(
        lambda: page.run("document.querySelector('details.acts form').requestSubmit()"), "the plan"
    )
    page.screenshot(IMAGES / "pages-plan.png", whole=True)
    page.resize(390, 900)
    page.show(dark=True)
    page.open(f"{stage.url}/reviews")
    page.screenshot(IMAGES / "pages-phone.png")


def charted(page: Page, stage: Stage) -> int:
    """The number of points in the first chart."""
    page.open(f"{stage.url}/")
    found = page.run("document.querySelector('.chart .line').getAttribute('d').split('L').length")
    return int(found)


if __name__ == "__main__":
    main()

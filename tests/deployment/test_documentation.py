"""The documentation's site builds, has no broken links, and loads nothing from other hosts."""

import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from regworker import __version__
from tests.browser import browser
from tests.integration.installation import PATIENCE, ROOT
from tests.programs import needed
from worker.cli.local import stack

#: This file starts many programs, one after the other; each may be slow on a busy machine.
pytestmark = pytest.mark.timeout(900)

#: The sources of the site.
SOURCES = ("docs", "examples", "mkdocs.yml", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, published as a version in a repository of its own; a broken link ends the build."""
    needed("the documentation's versions", "git")
    folder = tmp_path_factory.mktemp("documentation")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    name = {"GIT_AUTHOR_NAME": "test", "GIT_AUTHOR_EMAIL": "test@example.com"}
    name |= {"GIT_COMMITTER_NAME": "test", "GIT_COMMITTER_EMAIL": "test@example.com"}
    environment = {
        **os.environ,
        **name,
        "NO_MKDOCS_2_WARNING": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
    }
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    def run(*command: str) -> None:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    run("git", "init", "--quiet")
    run("git", "add", "mkdocs.yml")
    run("git", "commit", "--quiet", "--message", "The documentation")
    run("mike", "deploy", "--update-aliases", __version__, "latest")
    run("mike", "set-default", "latest")
    run("git", "worktree", "add", "--quiet", "published", "gh-pages")
    return folder / "published"


@pytest.fixture(scope="module")
def url(site: Path) -> Iterator[str]:
    """The address of the site for a browser."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Print nothing."""

    handler = partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_pages_are_published_under_their_version(site: Path) -> None:
    """The latest version has an alias, and the address without a version redirects to it."""
    [version] = json.loads((site / "versions.json").read_text("utf-8"))
    assert version["version"] == __version__
    assert version["aliases"] == ["latest"]
    assert "latest/" in (site / "index.html").read_text("utf-8")


def test_every_page_of_the_documentation_is_in_it(site: Path) -> None:
    """Each file of the documentation has a page, so the navigation names all of them."""
    for page in (ROOT / "docs").rglob("*.md"):
        place = page.relative_to(ROOT / "docs").with_suffix("")
        place = place.parent if place.name in {"README", "index"} else place
        assert (site / __version__ / place / "index.html").is_file(), page


def test_no_page_names_a_resource_of_another_host(site: Path) -> None:
    """Scripts, styles, fonts and pictures are part of the site."""
    elsewhere = re.compile(r"<(?:script|img|link|iframe)[^>]*(?:src|href)=\"?(?:https?:)?//[^>]*>")
    for page in site.rglob("*.html"):
        assert elsewhere.findall(page.read_text("utf-8")) == [], page
    for style in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import )['\"]?(?:https?:)?//", style.read_text("utf-8"))


def test_a_reader_searches_the_site_and_nothing_is_loaded_from_elsewhere(
    url: str, tmp_path: Path
) -> None:
    """After a search, everything that the browser has loaded came from the site's host."""
    with browser(tmp_path) as page:
        page.open(f"{url}/{__version__}/")
        page.run("document.querySelector('.md-search__input').focus()")
        page.press("settle delay")
        found = "document.querySelectorAll('.md-search-result__link').length"
        stack.until(lambda: page.run(found) > 0, "what the search finds", PATIENCE)
        loaded = page.run("performance.getEntriesByType('resource').map(one => one.name)")
        assert len(loaded) > 3
        assert [one for one in loaded if not one.startswith(f"{url}/")] == []

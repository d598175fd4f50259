"""docs/http.md: each command runs beside a worker and a service, and prints what the page shows."""

from contextlib import ExitStack, closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.gateway.service import start
from tests.integration.guide import Reader, blocks
from tests.integration.installation import ROOT, installation
from tests.programs import needed

PAGE = ROOT / "docs" / "http.md"


def test_each_block_of_the_page_does_what_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blocks lead from the token to the outcome."""
    needed("the blocks of docs/http.md", "bash", "curl")
    with ExitStack() as running:
        here = running.enter_context(installation(tmp_path, broker_url=""))
        url, _, _ = start(running, tmp_path, here.environment, "--port", "0")
        for name, value in here.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        folder = tmp_path / "reader"
        folder.mkdir()
        servers = {"127.0.0.1:8080": urlsplit(url).netloc}
        reader = running.enter_context(closing(Reader(folder, servers)))
        for block in blocks(PAGE):
            reader.read(block)

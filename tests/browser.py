"""A real browser for tests: headless Chromium, driven over its DevTools protocol.

`.ci/run` installs it where it is missing (Debian: `apt install chromium`). It reaches nothing but
this machine's loopback address.
"""

import asyncio
import base64
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.integration.installation import PATIENCE
from tests.programs import leave_out
from worker.cli import stack

#: Under what names it is known.
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

#: Tells which port it has chosen, once it listens; written into the profile's folder.
_PORT_FILE = "DevToolsActivePort"


class BrowserError(Exception):
    """The browser can't do what was asked of it."""


class Page:
    """A tab of the browser."""

    def __init__(self, runner: asyncio.Runner, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._runner = runner
        self._socket = socket
        self._number = 0

    def open(self, url: str) -> None:
        """Go to a page, and wait until all of it is there."""
        # The page before this one is complete already: a mark of it tells the two apart.
        self.run("window.left = true")
        self._call("Page.navigate", url=url)
        stack.until(self._is_there, f"the page {url.rpartition('@')[2]}", PATIENCE)

    def run(self, script: str) -> Any:
        """Evaluate JavaScript in the page; its value."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def text(self) -> str:
        """What a person reads on the page."""
        return str(self.run("document.body ? document.body.innerText : ''"))

    def table(self, selector: str) -> list[dict[str, str]]:
        """A table's visible rows, by the heads of its columns."""
        rows = self.run(
            f"[...document.querySelectorAll({selector!r} + ' tr')]"
            ".map(row => [...row.children].filter(cell => cell.offsetParent)"
            ".map(cell => cell.innerText.trim()))"
        )
        heads, *rest = [row for row in rows if row] or [[]]
        return [dict(zip(heads, row, strict=False)) for row in rest]

    def resize(self, width: int, height: int) -> None:
        """Show so much of a page; a window's own frame would take some of it."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", **size)

    def screenshot(self, file: Path) -> None:
        """Take a picture (PNG) of what the window shows."""
        answer = self._call("Page.captureScreenshot", format="png")
        file.write_bytes(base64.b64decode(answer["data"]))

    def _is_there(self) -> bool:
        try:
            return self.run("!window.left && document.readyState === 'complete'") is True
        except BrowserError:  # in the middle between two pages
            return False

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        return self._runner.run(self._answer(self._number, method, parameters))

    async def _answer(self, number: int, method: str, parameters: Any) -> dict[str, Any]:
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = await self._socket.receive_json(timeout=PATIENCE)
            if message.get("id") == number:
                if "error" in message:
                    raise BrowserError(message["error"]["message"])
                answer: dict[str, Any] = message["result"]
                return answer


@contextmanager
def browser(folder: Path, width: int = 1280, height: int = 720) -> Iterator[Page]:
    """Start Chromium with a profile of its own in a folder; its only tab."""
    profile = folder / "profile"
    command = [_chromium(), *_options(profile), "about:blank"]
    with (
        (folder / "chromium.log").open("wb") as log,
        stack.process(command, {}, folder, log) as child,
        asyncio.Runner() as runner,
    ):
        port = _port(profile, child)
        session, socket = runner.run(_connect(port))
        try:
            page = Page(runner, socket)
            page.resize(width, height)
            yield page
        finally:
            runner.run(session.close())


def _chromium() -> str:
    for name in NAMES:
        if found := shutil.which(name):
            return found
    leave_out(f"Flower in a browser: needs one of {', '.join(NAMES)} on this machine")
    raise AssertionError


def _options(profile: Path) -> list[str]:
    return [
        "--headless=new",
        f"--user-data-dir={profile}",
        "--remote-debugging-port=0",
        "--hide-scrollbars",
        "--no-first-run",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        # Nothing of its own that would look for the outside.
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-proxy-server",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        # Its own sandbox it cannot have as root, which CI is.
        *(["--no-sandbox"] if os.geteuid() == 0 else []),
    ]


def _port(profile: Path, child: subprocess.Popen[bytes]) -> int:
    file = profile / _PORT_FILE

    def listens() -> bool:
        assert child.poll() is None, "the browser ended; see chromium.log"
        return file.exists() and file.read_text().count("\n") > 0

    stack.until(listens, "the browser", PATIENCE)
    return int(file.read_text().splitlines()[0])


async def _connect(port: int) -> tuple[aiohttp.ClientSession, aiohttp.ClientWebSocketResponse]:
    session = aiohttp.ClientSession()
    async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
        [tab] = [one for one in await answer.json() if one["type"] == "page"]
    # A screenshot is larger than what a message may be by default.
    socket = await session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0)
    return session, socket

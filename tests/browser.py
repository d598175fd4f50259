"""A real browser for tests: headless Chromium, driven over its DevTools protocol.

`.ci/run` installs it where it is missing (Debian: `apt install chromium`). It can reach only
this machine's loopback address."""

import asyncio
import base64
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.integration.installation import PATIENCE
from tests.programs import leave_out
from worker.cli.local import stack

#: The names that its program may have.
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

#: Chromium writes the port that it listens on into this file in the profile's folder.
_PORT_FILE = "DevToolsActivePort"


#: Keys with a name: the text that each types, and its key code.
_KEYS = {"Tab": ("", 9), "Enter": ("\r", 13), "Space": (" ", 32), "ArrowDown": ("", 40)}


class BrowserError(Exception):
    """The browser can't do what was asked."""


class Page:
    """A tab of the browser."""

    def __init__(self, runner: asyncio.Runner, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._runner = runner
        self._socket = socket
        self._number = 0

    def open(self, url: str) -> None:
        """Go to a page, and wait until it has loaded."""
        # The page before this one has loaded already; its mark shows which of the two is open.
        self.run("window.left = true")
        self._call("Page.navigate", url=url)
        stack.until(self._is_there, f"the page {url.rpartition('@')[2]}", PATIENCE)

    def run(self, script: str) -> Any:
        """Evaluate JavaScript in the page, and return its value."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def text(self) -> str:
        """The text that a person sees on the page."""
        return str(self.run("document.body ? document.body.innerText : ''"))

    def table(self, selector: str) -> list[dict[str, str]]:
        """The visible rows of a table, by column heading."""
        rows = self.run(
            f"[...document.querySelectorAll({selector!r} + ' tr')]"
            ".map(row => [...row.children].filter(cell => cell.offsetParent)"
            ".map(cell => cell.innerText.trim()))"
        )
        heads, *rest = [row for row in rows if row] or [[]]
        return [dict(zip(heads, row, strict=False)) for row in rest]

    def resize(self, width: int, height: int) -> None:
        """Set the size of the visible page; a window's frame would take a part of it."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", **size)

    def show(self, *, dark: bool = False, script: bool = True) -> None:
        """Show the next pages in dark or light mode, and with or without scripts."""
        wanted = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._call("Emulation.setEmulatedMedia", features=wanted)
        self._call("Emulation.setScriptExecutionDisabled", value=not script)

    def press(self, *keys: str) -> None:
        """Press keys, one after another: a key of `_KEYS`, or a text to type."""
        for key in keys:
            if key not in _KEYS:
                self._call("Input.insertText", text=key)
                continue
            text, code = _KEYS[key]
            for kind in ("keyDown", "keyUp"):
                more = {"text": text} if text and kind == "keyDown" else {}
                self._call(
                    "Input.dispatchKeyEvent",
                    type=kind,
                    key=text if key == "Space" else key,
                    code=key,
                    windowsVirtualKeyCode=code,
                    **more,
                )

    def leave(self, act: Callable[[], object], what: str) -> None:
        """Do something that leads to another page, and wait until that page has loaded."""
        self.run("window.left = true")
        act()
        stack.until(self._is_there, what, PATIENCE)

    def headers(self, headers: dict[str, str]) -> None:
        """Send these headers with each request from now on."""
        self._call("Network.enable")
        self._call("Network.setExtraHTTPHeaders", headers=headers)

    def save_into(self, folder: Path) -> None:
        """Save files that pages offer into a folder, without a question."""
        self._call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))

    def screenshot(self, file: Path, *, whole: bool = False) -> None:
        """Take a picture (PNG) of the window, or with `whole` of the whole page."""
        answer = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(answer["data"]))

    def _is_there(self) -> bool:
        try:
            return self.run("!window.left && document.readyState === 'complete'") is True
        except BrowserError:  # the browser is between two pages
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
    """Start Chromium with a new profile in a folder, and yield its only tab."""
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
        # Nothing in the browser may contact the network.
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-proxy-server",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        # Chromium's sandbox doesn't work for root, and CI runs as root.
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
    # A screenshot is larger than the default limit of a message.
    socket = await session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0)
    return session, socket

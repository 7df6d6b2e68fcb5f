"""A page in a real browser: headless Chromium over its DevTools protocol, for pictures and tests.

The protocol is JSON over one WebSocket (https://chromedevtools.github.io/devtools-protocol/); the few commands used
here need no driver library. The browser gets a new profile in a temporary folder, and needs no network.
"""

import asyncio
import base64
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from pupujepa.errors import UserError

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    # containers have little shared memory
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)
START_DEADLINE_S = 180.0
LOAD_DEADLINE_S = 180.0
LEAVE_DEADLINE_S = 30.0


class BrowserError(UserError):
    """There is no browser, or it did not answer."""


@dataclass(frozen=True)
class View:
    """Size, colour scheme and medium of the page."""

    width: int = 1280
    height: int = 900
    dark: bool = False
    scale: float = 1.0
    media: str = ""


@dataclass
class Visit:
    """Record of a visit: the script's result, console errors, requested URLs, pictures by selector."""

    result: Any = None
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    pictures: dict[str, bytes] = field(default_factory=dict)


class Browser:
    """A Chromium process; a context manager, so that it never outlives its use.

    Raises:
        BrowserError: no Chromium on this machine.
    """

    def __enter__(self) -> "Browser":
        binary = next((found for name in NAMES if (found := shutil.which(name))), None)
        if binary is None:
            raise BrowserError(
                "no Chromium was found, so the page cannot be looked at; install it: apt-get install chromium"
            )
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._process = subprocess.Popen(
            [binary, *FLAGS, f"--user-data-dir={self._profile.name}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._address = self._wait_for_address()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(LEAVE_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._profile.cleanup()

    def visit(self, url: str, script: str = "null", *, view: View = View(), pictures: Sequence[str] = ()) -> Visit:
        """Opens `url` in a new tab, evaluates `script` and takes a picture of each selector's first match.

        Args:
            script: a JavaScript expression; a promise is awaited; its value must be JSON.

        Raises:
            BrowserError: the page did not load in time, the script threw, or a selector matches nothing.
        """
        return asyncio.run(self._visit(url, script, view, pictures))

    def _wait_for_address(self) -> str:
        told = Path(self._profile.name) / "DevToolsActivePort"
        deadline = time.monotonic() + START_DEADLINE_S
        while not (told.exists() and told.read_text().count("\n")):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._process.kill()
                self._process.wait()
                self._profile.cleanup()
                raise BrowserError(
                    f"Chromium did not start within {START_DEADLINE_S:.0f} s; try it by hand: chromium --headless"
                )
            time.sleep(0.05)
        return f"http://127.0.0.1:{told.read_text().splitlines()[0]}"

    async def _visit(self, url: str, script: str, view: View, pictures: Sequence[str]) -> Visit:
        async with aiohttp.ClientSession() as session:
            async with session.put(f"{self._address}/json/new?about:blank") as answer:
                target = await answer.json()
            async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                tab = _Tab(socket)
                await tab.look(view)
                await tab.open(url)
                tab.visit.result = await tab.evaluate(script)
                for selector in pictures:
                    tab.visit.pictures[selector] = await tab.picture(selector)
            async with session.get(f"{self._address}/json/close/{target['id']}"):
                return tab.visit


class _Tab:
    """One tab: commands out, answers and events in, over one socket."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse):
        self.socket, self.visit, self._number = socket, Visit(), 0
        self._loaded = False

    async def look(self, view: View) -> None:
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.command(f"{domain}.enable")
        metrics = {"width": view.width, "height": view.height, "deviceScaleFactor": view.scale, "mobile": False}
        await self.command("Emulation.setDeviceMetricsOverride", **metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if view.dark else "light"}
        still = {"name": "prefers-reduced-motion", "value": "reduce"}
        await self.command("Emulation.setEmulatedMedia", media=view.media, features=[scheme, still])

    async def open(self, url: str) -> None:
        self._loaded = False
        await self.command("Page.navigate", url=url)
        while not self._loaded:
            await self._receive()

    async def evaluate(self, expression: str) -> Any:
        answer = await self.command(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in answer:
            raise BrowserError(f"the script failed in the page: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    async def picture(self, selector: str) -> bytes:
        box = await self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); if (!e) return null;"
            " const b = e.getBoundingClientRect();"
            " return {x: b.x + scrollX, y: b.y + scrollY, width: b.width, height: b.height}; })()"
        )
        if box is None:
            raise BrowserError(f"nothing on the page matches {selector!r}, so there is no picture of it")
        answer = await self.command("Page.captureScreenshot", captureBeyondViewport=True, clip={**box, "scale": 1})
        return base64.b64decode(answer["data"])

    async def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        await self.socket.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            message = await self._receive()
            if message.get("id") == self._number:
                if "error" in message:
                    raise BrowserError(f"Chromium refused {method}: {message['error']['message']}")
                return message["result"]

    async def _receive(self) -> dict[str, Any]:
        try:
            message = await self.socket.receive_json(timeout=LOAD_DEADLINE_S)
        except TimeoutError as error:
            raise BrowserError(f"Chromium did not answer for {LOAD_DEADLINE_S:.0f} s while loading the page") from error
        parameters = message.get("params", {})
        match message.get("method"):
            case "Page.loadEventFired":
                self._loaded = True
            case "Network.requestWillBeSent":
                self.visit.requests.append(parameters["request"]["url"])
            case "Runtime.exceptionThrown":
                self.visit.errors.append(parameters["exceptionDetails"].get("text", "exception"))
            case "Runtime.consoleAPICalled" if parameters["type"] in ("error", "warning", "assert"):
                self.visit.errors.append(str([a.get("value") for a in parameters["args"]]))
            case "Log.entryAdded" if parameters["entry"]["level"] in ("error", "warning"):
                self.visit.errors.append(parameters["entry"]["text"])
        return message

"""A headless Chromium driven over its DevTools protocol: what the tests of the page and the makers of pictures need."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp

CANDIDATES = ("chromium", "chromium-browser", "google-chrome")
_START_S, _ANSWER_S = 60.0, 30.0


def find_chromium() -> str | None:
    """The path of the first browser of ``CANDIDATES`` that is installed."""
    return next((path for path in map(shutil.which, CANDIDATES) if path), None)


class Browser:
    """One page of a browser of its own; use it as a context manager."""

    def __init__(self, width: int = 1000, height: int = 900) -> None:
        program = find_chromium()
        if program is None:
            raise RuntimeError(f"none of {', '.join(CANDIDATES)} is installed")
        self._profile = tempfile.mkdtemp(prefix="wl-browser-")
        self._process = subprocess.Popen(
            [
                program,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--hide-scrollbars",
                "--remote-debugging-port=0",
                f"--user-data-dir={self._profile}",
                f"--window-size={width},{height}",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._numbers = itertools.count(1)
        self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(self._connect())

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._loop.run_until_complete(self._session.close())
        self._loop.close()
        self._process.terminate()
        self._process.wait(20)
        shutil.rmtree(self._profile, ignore_errors=True)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol; raises ``RuntimeError`` with the browser's error."""
        return self._loop.run_until_complete(asyncio.wait_for(self._send(method, parameters), _ANSWER_S))

    def open(self, url: str) -> None:
        self.send("Page.navigate", url=url)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, promises awaited."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 20.0) -> Any:
        """The value of ``expression`` once it is true; raises ``TimeoutError`` where it stays false."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if value := self.evaluate(expression):
                    return value
            except RuntimeError:  # the page is not there yet
                pass
            time.sleep(0.05)
        raise TimeoutError(f"{expression} stayed false for {seconds} s")

    def press(self, key: str, hold_s: float = 0.0) -> None:
        """Press and let go of a key as a person does, e.g. ``ArrowUp`` or ``w``."""
        text = {"text": key} if len(key) == 1 else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        time.sleep(hold_s)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key)

    def resize(self, width: int, height: int) -> None:
        """Show the page in so many pixels; a window cannot be as narrow as a phone."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def screenshot(self) -> bytes:
        """The page as a PNG."""
        return base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"])

    async def _connect(self) -> None:
        port_file, end = Path(self._profile) / "DevToolsActivePort", time.monotonic() + _START_S
        while not (port_file.exists() and port_file.read_text().strip()):
            if time.monotonic() > end or self._process.poll() is not None:
                raise RuntimeError("the browser did not start")
            await asyncio.sleep(0.05)
        port = port_file.read_text().split()[0]
        self._session = aiohttp.ClientSession()
        async with self._session.get(f"http://127.0.0.1:{port}/json/list") as answer:
            pages = [target for target in await answer.json() if target["type"] == "page"]
        self._socket = await self._session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0)
        await self._send("Page.enable", {})

    async def _send(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        async for message in self._socket:
            answer = json.loads(message.data)
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return dict(answer["result"])
        raise RuntimeError("the browser went away")

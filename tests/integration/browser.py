"""A page in headless Chromium over its DevTools protocol: keys are pressed, requests are written down."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from websockets.sync.client import connect

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --remote-debugging-port=0"
).split()
#: Key → its code of Windows, which is how the protocol names keys without a text.
NAMED = {"Escape": 27, "Enter": 13, "ArrowLeft": 37, "ArrowRight": 39, "Tab": 9}


class Page:
    """One tab. `asked` has every address it requested, `errors` what its scripts did not catch."""

    def __init__(self, websocket: Any) -> None:
        self._websocket, self._sent = websocket, 0
        self.asked: list[str] = []
        self.errors: list[str] = []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._sent += 1
        self._websocket.send(json.dumps({"id": self._sent, "method": method, "params": parameters}))
        while (message := json.loads(self._websocket.recv(timeout=30))).get("id") != self._sent:
            self._note(message)
        assert "error" not in message, (method, message)
        return message["result"]

    def _note(self, event: dict[str, Any]) -> None:
        if event["method"] == "Network.requestWillBeSent":
            self.asked.append(event["params"]["request"]["url"])
        elif event["method"] == "Runtime.exceptionThrown":
            self.errors.append(str(event["params"]["exceptionDetails"]))
        elif event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
            self.errors.append(str(event["params"]["entry"]))

    def evaluate(self, expression: str) -> Any:
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, (expression, found)
        return found["result"].get("value")

    def until(self, expression: str, seconds: float = 15.0) -> Any:
        """The value of `expression` when it has become true."""
        end = time.monotonic() + seconds
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < end, f"not so: {expression}\n{self.evaluate('main.innerText')}"
            time.sleep(0.02)
        return value

    def open(self, address: str) -> None:
        """Loads it anew and waits for what it draws."""
        self.send("Page.navigate", url="about:blank")
        self.send("Page.navigate", url=address)
        self.until("document.getElementById('main')?.dataset.ready")

    @property
    def hash(self) -> str:
        return self.evaluate("location.hash")

    @property
    def text(self) -> str:
        return self.evaluate("main.innerText")

    def press(self, *keys: str) -> None:
        for key in keys:
            told = {"key": key, "windowsVirtualKeyCode": NAMED.get(key, ord(key[0].upper()))}
            told |= {"text": "\r"} if key == "Enter" else {} if key in NAMED else {"text": key}
            self.send("Input.dispatchKeyEvent", type="keyDown", **told)
            self.send("Input.dispatchKeyEvent", type="keyUp", key=key)

    def emulate(self, scheme: str, width: int = 1280, height: int = 900) -> None:
        """A colour scheme (light or dark) and a size of the window."""
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A new Chromium with one empty tab."""
    assert BROWSER is not None
    command = [BROWSER, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    with (profile.with_suffix(".log")).open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        port_file, end = profile / "DevToolsActivePort", time.monotonic() + 60
        while not (port_file.exists() and port_file.read_text().count("\n")):
            assert process.poll() is None and time.monotonic() < end, Path(log.name).read_text()[-2000:]
            time.sleep(0.05)
        port = int(port_file.read_text().split()[0])
        tabs = httpx.get(f"http://127.0.0.1:{port}/json/list", trust_env=False).json()
        tab = next(tab for tab in tabs if tab["type"] == "page")
        with connect(tab["webSocketDebuggerUrl"], max_size=None, proxy=None) as websocket:
            yield Page(websocket)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

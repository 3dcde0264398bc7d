"""Drives a headless Chromium over its debugging pipe, with the standard library alone."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

BROWSER_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")

_START_SCRIPT = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4);"
    "os.execvp(sys.argv[3], sys.argv[3:])"
)
"""The pipe's ends are file descriptors 3 and 4 of the browser."""


def find_chromium() -> str | None:
    """Return where a Chromium is, if there is one."""
    return next((path for name in BROWSER_NAMES if (path := shutil.which(name))), None)


class Browser:
    """One tab; what it logged and asked for is kept in `events`."""

    def __init__(self, profile: Path, *, width: int = 1280, height: int = 900) -> None:
        """Start the browser with its profile in the folder `profile`."""
        self.events: list[dict[str, Any]] = []
        self._waiting = b""
        self._last = 0
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        # Above 4, so that neither is overwritten before it is copied.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (theirs_in, theirs_out)]
        command = [
            find_chromium() or BROWSER_NAMES[0],
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
        ]
        command += ["--no-first-run", "--disable-extensions", "--hide-scrollbars"]
        command += ["--disable-background-networking", "--disable-dev-shm-usage"]
        command += [f"--user-data-dir={profile}", f"--window-size={width},{height}"]
        command += ["--remote-debugging-pipe", "about:blank"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START_SCRIPT, *map(str, ends), *command],
            pass_fds=ends,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (theirs_in, theirs_out, *ends):
            os.close(end)
        targets = self.send_command("Target.getTargets", session=False)["targetInfos"]
        page = next(t["targetId"] for t in targets if t["type"] == "page")
        self._session: str = self.send_command(
            "Target.attachToTarget", session=False, targetId=page, flatten=True
        )["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send_command(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._process.terminate()
        self._process.wait(timeout=30)
        os.close(self._in)
        os.close(self._out)

    def send_command(self, method: str, *, session: bool = True, **params: Any) -> dict[str, Any]:
        """Send a command; return its result."""
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": params}
        if session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            found = self._read_message(60)
            if found.get("id") == self._last:
                if "error" in found:
                    raise RuntimeError(f"{method}: {found['error']['message']}")
                return found["result"]
            self.events.append(found)

    def open(self, page: Path) -> float:
        """Open a file; return the seconds until it had loaded."""
        self.events.clear()
        started = time.perf_counter()
        self.send_command("Page.navigate", url=page.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read_message(60))
        return time.perf_counter() - started

    def evaluate(self, expression: str) -> Any:
        """Return the JSON value of a JavaScript expression."""
        found = self.send_command("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"].get("exception", {}).get("description"))
        return found["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 30) -> Any:
        """Return the first true value of an expression."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := self.evaluate(expression):
                return found
            time.sleep(0.02)
        raise TimeoutError(expression)

    def list_errors(self) -> list[str]:
        """Return every error, warning and exception that the page caused."""
        found: list[str] = []
        for event in self.events:
            params = event.get("params", {})
            match event.get("method"):
                case "Runtime.exceptionThrown":
                    found.append(str(params["exceptionDetails"]))
                case "Log.entryAdded":
                    found.append(str(params["entry"]))
                case "Runtime.consoleAPICalled":
                    found.append(str(params["args"]))
        return found

    def list_requests(self) -> list[str]:
        """Return every address that the page asked for."""
        return [
            event["params"]["request"]["url"]
            for event in self.events
            if event.get("method") == "Network.requestWillBeSent"
        ]

    def screenshot(self, path: Path, **clip: float) -> None:
        """Write what is seen, or the region `x, y, width, height` of the page, as PNG."""
        more = {"clip": clip | {"scale": 1}, "captureBeyondViewport": True} if clip else {}
        found = self.send_command("Page.captureScreenshot", format="png", **more)
        path.write_bytes(base64.b64decode(found["data"]))

    def _read_message(self, seconds: float) -> dict[str, Any]:
        while b"\0" not in self._waiting:
            ready, _, _ = select.select([self._in], [], [], seconds)
            if not ready:
                raise TimeoutError(f"Chromium said nothing for {seconds:g} s")
            part = os.read(self._in, 1 << 20)
            if not part:
                raise RuntimeError("Chromium ended")
            self._waiting += part
        message, self._waiting = self._waiting.split(b"\0", 1)
        return json.loads(message)

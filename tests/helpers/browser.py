"""A headless Chromium for tests, driven over its own debugging protocol through a pipe.

No driver and no library stand between: Chromium reads JSON on descriptor 3, writes it on 4, and
ends with the pipe. `Page` opens one page, evaluates JavaScript in it, and collects whatever the
browser complained about. https://chromedevtools.github.io/devtools-protocol tells the methods.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from helpers.support import PATIENCE, needed, wait_until

_LAUNCH = """
import os, sys
incoming, outgoing = int(sys.argv[1]), int(sys.argv[2])
os.dup2(incoming, 103); os.dup2(outgoing, 104)
os.dup2(103, 3); os.dup2(104, 4)
os.closerange(5, 200)
os.execv(sys.argv[3], sys.argv[3:])
"""
_FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
    "--hide-scrollbars",
)
#: What tells that something in a page went wrong.
_COMPLAINTS = {"Log.entryAdded", "Runtime.exceptionThrown", "Audits.issueAdded"}


class Browser:
    """A running browser.

    Attributes:
        complaints: what Chromium said of its pages, as the protocol tells it.
    """

    def __init__(self, directory: Path) -> None:
        program = needed("chromium", "chromium")
        theirs, self._out = os.pipe()
        self._in, theirs_too = os.pipe()
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        with (directory / "chromium.log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-c", _LAUNCH, str(theirs), str(theirs_too), program),
                    *(*_FLAGS, *sandbox, f"--user-data-dir={directory}/profile"),
                ],
                pass_fds=[theirs, theirs_too],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "HOME": str(directory)},
            )
        os.close(theirs)
        os.close(theirs_too)
        self._buffer = b""
        self._last = 0
        self.complaints: list[dict[str, Any]] = []

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[Browser]:
        """Run a browser with a profile of its own, and end it with all of its processes."""
        with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as made:
            browser = cls(Path(made))
            try:
                yield browser
            finally:
                browser.close()

    def close(self) -> None:
        """End it, whatever it does."""
        with contextlib.suppress(BrokenPipeError, AssertionError):
            self.call("Browser.close")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._out)
        os.close(self._in)

    def call(self, method: str, session: str = "", **params: Any) -> dict[str, Any]:
        """Call a method of the protocol, and return its result."""
        self._last += 1
        told = {"id": self._last, "method": method, "params": params}
        if session:
            told["sessionId"] = session
        os.write(self._out, json.dumps(told).encode() + b"\0")
        while True:
            message = self._receive()
            if message.get("id") == self._last:
                assert "error" not in message, (method, message["error"])
                result: dict[str, Any] = message["result"]
                return result
            if message.get("method") in _COMPLAINTS:
                self.complaints.append(message)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], PATIENCE)
            assert ready, "Chromium does not answer"
            chunk = os.read(self._in, 1 << 20)
            assert chunk, "Chromium has ended"
            self._buffer += chunk
        text, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        return message


class Page:
    """A page of a browser."""

    def __init__(
        self,
        browser: Browser,
        url: str,
        *,
        width: int = 1280,
        height: int = 900,
        dark: bool = False,
    ) -> None:
        self._browser = browser
        self._target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = browser.call("Target.attachToTarget", targetId=self._target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Log", "Runtime", "Audits", "Page"):
            self.call(f"{domain}.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        scheme = "dark" if dark else "light"
        self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )
        self.call("Page.navigate", url=url)
        self.wait_for("location.href !== 'about:blank' && document.readyState === 'complete'")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol for this page."""
        return self._browser.call(method, self._session, **params)

    def close(self) -> None:
        """Close the page; complaints of it that are under way have come by then."""
        self.get("new Promise((resolve) => setTimeout(resolve))")
        self._browser.call("Target.closeTarget", targetId=self._target)

    def get(self, expression: str) -> Any:
        """Evaluate JavaScript, and return its value."""
        result = self.call(
            "Runtime.evaluate",
            expression=expression,
            returnByValue=True,
            awaitPromise=True,
            allowUnsafeEvalBlockedByCSP=False,
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def text(self, selector: str) -> str:
        """Return the text of the first element that a selector finds; "" when there is none."""
        return str(self.get(f"document.querySelector({selector!r})?.innerText ?? ''"))

    def wait_for(self, expression: str) -> None:
        """Return when an expression is true; complaints are collected meanwhile."""
        wait_until(lambda: self.get(expression))

    def press(self, key: str) -> None:
        """Press a key, as a person would."""
        text = "\r" if key == "Enter" else key if len(key) == 1 else ""
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, text=text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def type(self, text: str) -> None:
        """Type into whatever has the focus."""
        self.call("Input.insertText", text=text)

    def picture(self, file: Path, *, whole: bool = False) -> None:
        """Save what is seen as PNG; `whole` takes what must be scrolled to as well."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(shot["data"]))
